"""The distance between pictures on a network's features: analytic cases and what it accepts."""

import pytest
import torch
from helpers import FIXTURES, systems
from helpers.tiny import make_clip, noise, pictures, shake
from safetensors.torch import save_file
from torch import nn

from minimodal.blocks.perceptual import (
    VGG16,
    PerceptualDistance,
    feature_distance,
    lpips_heads,
    moved,
    tower_maps,
    unit,
    vgg16,
)
from minimodal.data.preprocessing import normalize
from minimodal.errors import UserError
from minimodal.runs import load
from minimodal.training.opening import open_perceptual
from minimodal.training.tasks.vqgan import VQGANTraining


def test_orthogonal_features_are_two_apart():
    a, b = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    a[0, 0], b[0, 1] = 3.0, 5.0
    assert feature_distance([a], [b]).item() == pytest.approx(2)


def test_opposite_features_are_four_apart_and_equal_ones_not_at_all():
    a = noise(1, 4, 3, 3)
    assert feature_distance([a], [-a]).item() == pytest.approx(4, rel=1e-5)
    assert feature_distance([a], [a]).item() == 0


def test_how_strong_a_feature_vector_is_does_not_matter():
    a, b = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(feature_distance([a], [b]), feature_distance([7 * a], [0.1 * b]))


def test_layers_add_up_and_positions_are_averaged():
    a, b = noise(2, 4, 3, 5), noise(2, 4, 3, 5, seed=1)
    c, d = noise(2, 6, 1, 1, seed=2), noise(2, 6, 1, 1, seed=3)
    both = feature_distance([a, c], [b, d])
    by_hand = (unit(a) - unit(b)).square().sum(1).mean((1, 2))
    torch.testing.assert_close(both, by_hand + feature_distance([c], [d]))


def test_heads_weigh_the_channels():
    a, b = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    a[0, 0], b[0, 1] = 1.0, 1.0
    heads = [torch.tensor([0.5, 0.25])]
    assert feature_distance([a], [b], heads).item() == pytest.approx(0.75)


def test_a_vector_of_zeros_has_a_finite_gradient():
    a = torch.zeros(1, 3, 2, 2, requires_grad=True)
    feature_distance([a], [noise(1, 3, 2, 2)]).sum().backward()
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, -1), (-2, 3)])
def test_moving_keeps_the_size_and_what_stays_inside(shift):
    x, (down, right) = noise(1, 3, 8, 9), shift
    found = moved(x, shift)
    assert found.shape == x.shape
    for i, j in [(3, 4), (4, 3)]:
        assert torch.equal(found[..., i, j], x[..., i - down, j - right])


def clip_distance(clip) -> PerceptualDistance:
    tower = clip.image_encoder
    return PerceptualDistance(
        tower, features=lambda x: tower_maps(tower, normalize((x + 1) * 127.5)), size=8
    )


@pytest.mark.parametrize("changes", [{}, {"patch_size": 8, "stem": (6,), "stem_depth": 1}])
def test_on_a_clip_equal_pictures_are_at_distance_zero_and_others_are_not(changes):
    distance, x = clip_distance(make_clip(**changes)), pictures(2, 3, 8, 8)
    assert distance(x, x).item() == pytest.approx(0, abs=1e-9)
    assert distance(-x, x) > 0.01


def test_only_the_painted_picture_gets_a_gradient_and_the_network_none():
    clip = make_clip()
    distance, painted, images = clip_distance(clip), pictures(1, 3, 8, 8), pictures(1, 3, 8, 8)
    painted, images = (-painted).requires_grad_(), images.requires_grad_()
    distance(painted, images).backward()
    assert painted.grad.abs().sum() > 0 and images.grad is None
    assert all(p.grad is None for p in clip.image_encoder.parameters())


def test_the_gradient_brings_pictures_together():
    distance, images = clip_distance(make_clip()), pictures(1, 3, 8, 8)
    painted = pictures(1, 3, 8, 8, seed=1).requires_grad_()
    optimizer = torch.optim.Adam([painted], lr=0.02)
    before = distance(painted, images).item()
    for _ in range(40):
        optimizer.zero_grad()
        distance(painted, images).backward()
        optimizer.step()
    assert distance(painted, images) < 0.5 * before


def test_pictures_of_another_size_are_resized_to_the_clips():
    distance = clip_distance(make_clip())
    assert torch.isfinite(distance(pictures(1, 3, 20, 12), -pictures(1, 3, 20, 12)))


def test_the_last_map_of_a_clip_is_its_embedding():
    clip, x = make_clip(), noise(2, 3, 8, 8)
    torch.testing.assert_close(
        tower_maps(clip.image_encoder, x)[-1].flatten(1), clip.encode_image(x)
    )


# --- VGG16 ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Random weights with torchvision's names, and a classifier that is left out."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    state = {k: v for k, v in VGG16().state_dict().items() if k.startswith("features")}
    save_file({**state, "classifier.0.weight": torch.ones(2, 2)}, path)
    return path


def test_vgg16_has_five_maps_of_halving_size():
    shapes = [tuple(m.shape[1:]) for m in VGG16()(pictures(1, 3, 32, 32))]
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]


def test_a_vgg16_file_is_read_and_frozen(vgg_file):
    distance = open_perceptual(VQGANTraining(perceptual=str(vgg_file)))
    assert distance.heads is None
    assert not any(p.requires_grad for p in distance.net.parameters())
    assert distance(pictures(1, 3, 16, 16), -pictures(1, 3, 16, 16)) > 0


def test_lpips_heads_are_read_beside_it(vgg_file, tmp_path):
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{n}.model.1.weight": torch.full((1, w, 1, 1), 0.5) for n, w in enumerate(widths)}
    save_file(heads, tmp_path / "heads.safetensors")
    files = dict(perceptual=str(vgg_file), perceptual_heads=str(tmp_path / "heads.safetensors"))
    halved, plain = open_perceptual(VQGANTraining(**files)), vgg_file
    plain = open_perceptual(VQGANTraining(perceptual=str(vgg_file)))
    x, y = pictures(1, 3, 16, 16), pictures(1, 3, 16, 16, seed=1)
    torch.testing.assert_close(halved(x, y), 0.5 * plain(x, y))


def test_distances_are_lpips(vgg_file):
    """With the same random weights and heads as the lpips package, if it is installed."""
    lpips = pytest.importorskip("lpips")
    pytest.importorskip("torchvision")
    theirs = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).eval()
    slices = [getattr(theirs.net, f"slice{n}") for n in range(1, 6)]
    layers = {name: layer for part in slices for name, layer in part.named_children()}
    state = {
        f"features.{name}.{part}": getattr(layer, part)
        for name, layer in layers.items() if isinstance(layer, nn.Conv2d)
        for part in ("weight", "bias")
    }  # fmt: skip
    heads = {k: v.abs() for k, v in theirs.state_dict().items() if k.startswith("lin")}
    theirs.load_state_dict(heads, strict=False)
    net = vgg16(state, source="")
    ours = PerceptualDistance(net, features=net, heads=lpips_heads(heads, source=""))
    x, y = pictures(2, 3, 32, 32), pictures(2, 3, 32, 32, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, y), theirs(x, y).mean(), rtol=1e-4, atol=1e-6)


def test_a_file_that_is_neither_is_an_error(tmp_path):
    save_file({"conv.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="other.safetensors"):
        open_perceptual(VQGANTraining(perceptual=str(tmp_path / "other.safetensors")))


def test_a_vgg16_that_lacks_a_layer_is_an_error(vgg_file):
    with pytest.raises(UserError, match="no VGG16: features.0.weight is missing"):
        vgg16({}, source="this file")


def test_pictures_too_small_for_its_halvings_are_an_error():
    with pytest.raises(UserError, match="pictures of 16 pixels or more a side, got 16 x 8"):
        VGG16()(pictures(1, 3, 8, 16))


@pytest.mark.parametrize("layers", [1, 2, 0])
def test_of_a_clip_as_many_layers_are_compared_as_asked_for(layers):
    clip = FIXTURES / "clip_open_clip"
    distance = open_perceptual(VQGANTraining(perceptual=str(clip), perceptual_layers=layers))
    maps = distance.features(pictures(1, 3, distance.size, distance.size))
    assert len(maps) == (layers or len(load(clip).image_encoder.transformer.blocks) + 1)


def test_heads_without_a_network_are_an_error():
    with pytest.raises(UserError, match="perceptual_heads are for a VGG16"):
        VQGANTraining(perceptual_heads="heads.pth")


# --- in training ---------------------------------------------------------------------------------


def test_the_distance_is_a_term_of_the_generators_loss():
    task, clip = systems.make_vqgan(), shake(make_clip(image_size=32, patch_size=16))
    batch = task.batch(0, slice(0, 8))
    plain = task.loss(dict(batch), "generator", 0)[0]
    tower = clip.image_encoder
    task.perceptual = PerceptualDistance(
        tower, features=lambda x: tower_maps(tower, normalize((x + 1) * 127.5)), size=32
    )
    loss, metrics = task.loss(dict(batch), "generator", 0)
    assert metrics["perceptual"] > 0
    expected = plain + task.training.perceptual_weight * metrics["perceptual"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
