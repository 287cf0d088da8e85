"""The loop: chunks, resuming, randomness, the best step, and what it costs in memory."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import ROOT
from helpers.shape_check import check_shapes
from helpers.tiny import generator, make_clip, make_vqgan, noise, pictures

from minimodal.blocks.cutouts import PHOTOGRAPHS, Views, draw_views
from minimodal.blocks.drawers import DRAWERS, FourierDrawer, PixelDrawer, make_drawer
from minimodal.data.tokenizer import Tokenizer
from minimodal.errors import UserError
from minimodal.vqgan_clip.guide import make_guide
from minimodal.vqgan_clip.optimise import Optimisation, OptimiseConfig, pieces
from minimodal.vqgan_clip.prompts import read_prompts

CLIP = make_clip(vocab_size=Tokenizer().vocab_size)
CLIP.tokenizer = Tokenizer()
SECOND = make_clip(vocab_size=Tokenizer().vocab_size, image_size=12, embed_width=6)
SECOND.tokenizer = Tokenizer()
for model in (CLIP, SECOND):
    model.requires_grad_(False)
VQGAN = make_vqgan(patch=4, multipliers=(1,), codes=(7, 5)).requires_grad_(False)
START = pictures(2, 3, 16, 16)
CONFIG = OptimiseConfig(steps=6, views=5, lr=0.2, drops=(0.5,))
ALL = "a red circle:2 | a star:-0.5:-2 | noise=3:0.1 | [0,0,.5,1] a box"


def make(
    prompts: str = ALL, *, drawer: str = "vqgan", start: torch.Tensor = START,
    config: OptimiseConfig = CONFIG, clips: tuple = (CLIP, SECOND), **settings,
) -> Optimisation:  # fmt: skip
    guides = [make_guide(clip, read_prompts(prompts)) for clip in clips]
    settings = {"views": PHOTOGRAPHS, "seed": 3, **settings}
    return Optimisation(make_drawer(drawer, start, vqgan=VQGAN), guides, config, **settings)


# --- chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 5, 7, 100])
def test_chunks_have_the_gradient_of_all_views_at_once(chunk):
    whole, parts = make(), make(config=replace(CONFIG, chunk=chunk))
    losses, gradient = whole.guided(START)
    in_parts, in_part_gradient = parts.guided(START)
    torch.testing.assert_close(in_parts, losses, atol=1e-6, rtol=1e-6)
    assert float((in_part_gradient - gradient).abs().max()) <= 1e-6 * float(gradient.abs().max())
    for one in (whole, parts):
        one.step()
    for p, q in zip(whole.drawer.parameters, parts.drawer.parameters, strict=True):
        assert float((p.grad - q.grad).abs().max()) <= 1e-6 * max(1, float(p.grad.abs().max()))


def test_the_gradient_is_that_of_the_mean_loss():
    """Against one graph from the parameters to the loss, without any of the loop's ways."""
    run = make()
    drawn = run.drawer.pictures()
    rng, total = generator(3), torch.zeros(2)
    for guide in run.guides:
        for wanted in guide.wanted:
            draws = draw_views(PHOTOGRAPHS, 10, rng)
            found = run.view_losses(guide, wanted, drawn.repeat_interleave(5, 0), draws)
            total = total + found.view(2, 5).mean(1) / 4
    expected = torch.autograd.grad(total.sum(), run.drawer.parameters[0])[0]
    losses = run.step()
    torch.testing.assert_close(losses, total.detach())
    torch.testing.assert_close(run.drawer.parameters[0].grad, expected)


def kept_for_backward(run: Optimisation) -> int:
    """Most bytes that autograd holds at a time in `guided`, beside the weights."""
    held = most = 0
    weights = {p.untyped_storage().data_ptr() for p in CLIP.parameters()}

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal held, most
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            self.size *= tensor.untyped_storage().data_ptr() not in weights
            held += self.size
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        run.guided(START)
    return most


def test_memory_falls_with_the_chunk():
    config = replace(CONFIG, views=8)
    whole, half, eighth = (
        kept_for_backward(make("a", clips=(CLIP,), config=replace(config, chunk=chunk)))
        for chunk in (16, 8, 2)
    )
    assert half == pytest.approx(whole / 2, rel=0.05)
    assert eighth == pytest.approx(whole / 8, rel=0.1)


def test_pieces_cover_everything_once():
    assert pieces(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert pieces(7, 0) == pieces(7, 9) == [(0, 7)]


# --- one seed, one picture -----------------------------------------------------------------------


def fingerprint(run: Optimisation) -> str:
    return hashlib.sha256(run.best.numpy().tobytes()).hexdigest()


def test_a_seed_gives_the_same_bytes_in_another_process_and_whatever_else_was_drawn():
    script = (
        "import test_optimise as t; r = t.make(drawer='codes'); r.run(); print(t.fingerprint(r))"
    )
    folders = [ROOT, ROOT / "tests", ROOT / "tests" / "vqgan_clip"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
    pollute = "import torch; torch.manual_seed(99); torch.rand(7); torch.set_num_threads(1); "
    command = [sys.executable, "-c", pollute + script]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    torch.rand(3)
    here, other = make(drawer="codes"), make(drawer="codes", seed=4)
    before = torch.get_rng_state()
    here.run()
    other.run()
    assert torch.equal(torch.get_rng_state(), before)
    assert said.strip() == fingerprint(here)
    assert fingerprint(other) != fingerprint(here)


@pytest.mark.parametrize("drawer", DRAWERS)
def test_resumed_equals_uninterrupted(drawer, tmp_path):
    whole = make(drawer=drawer)
    whole.run()
    half = make(drawer=drawer)
    for _ in range(3):
        half.step()
    torch.save(half.state(), tmp_path / "state.pt")
    again = make(drawer=drawer, seed=77)
    again.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    again.run()
    assert again.number == whole.number == 6
    for one, other in (
        (again.drawer.parameters, whole.drawer.parameters),
        ([again.best, again.best_loss], [whole.best, whole.best_loss]),
    ):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def test_a_state_of_another_picture_is_refused():
    with pytest.raises(UserError, match="another drawer or another size"):
        make(start=START[:1]).restore(make().state())


def test_pictures_of_a_batch_do_not_know_of_each_other():
    """Without chance each of two pictures ends as it does alone."""
    settings = {"views": Views()}
    both = make(**settings)
    both.run()
    for i in range(2):
        alone = make(start=START[i : i + 1], **settings)
        alone.run()
        torch.testing.assert_close(alone.best, both.best[i : i + 1], atol=1e-4, rtol=0)


# --- the loop's own rules ------------------------------------------------------------------------


def test_it_gets_nearer_and_keeps_its_best_step():
    run, seen = make("a red circle", views=Views(), config=replace(CONFIG, steps=20)), []
    shown = [run.best.clone()]  # the picture that each step starts from

    def on_step(run: Optimisation, losses: torch.Tensor) -> None:
        seen.append(losses)
        shown.append(run.drawer.pictures().detach())

    run.run(on_step)
    table = torch.stack(seen)
    torch.testing.assert_close(run.best_loss, table.amin(dim=0))
    assert (run.best_loss < table[0]).all()
    for i, step in enumerate(table.argmin(dim=0).tolist()):
        torch.testing.assert_close(run.best[i], shown[step][i])


def test_the_rate_drops_at_shares_of_the_steps():
    config = OptimiseConfig(steps=100, lr=1.0, drops=(0.5, 0.75))
    assert [config.rate(n) for n in (0, 49, 50, 75)] == pytest.approx([1, 1, 0.1, 0.01])


def test_an_ensemble_is_the_mean_of_its_guides():
    sets = ((CLIP,), (SECOND,), (CLIP, SECOND))
    one, other, both = (make("a", clips=clips, views=Views()) for clips in sets)
    expected = (one.step() + other.step()) / 2
    torch.testing.assert_close(both.step(), expected)


def test_noise_prompts_reach_every_clip_and_no_other_region():
    run = make(ALL)
    for guide in run.guides:
        assert [len(wanted.weights) for wanted in guide.wanted] == [3, 1]


def test_settings_that_mean_nothing_are_refused():
    for wrong, message in (
        ({"steps": 0}, "steps"), ({"lr": 0.0}, "lr"),
        ({"chunk": -1}, "chunk"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            OptimiseConfig(**wrong)
    with pytest.raises(UserError, match="no CLIP"):
        Optimisation(PixelDrawer(START), [], CONFIG)


# --- stories -------------------------------------------------------------------------------------


def test_a_new_chapter_forgets_old_losses():
    run = make("a")
    run.run()
    run.ask([make_guide(CLIP, read_prompts("b:-1"))])
    assert run.best_loss.isinf().all()
    run.step()
    assert run.best_loss.isfinite().all()


def test_a_move_enlarges_about_the_middle_and_shifts_to_the_right_and_down():
    run = make("a", drawer="fourier")
    run.move(1, (3, -2))
    moved = run.drawer.pictures().detach()
    torch.testing.assert_close(moved[..., :-2, 3:], START[..., 2:, :-3])
    run = make("a", drawer="fourier")
    run.move(2, (0, 0))
    twice = torch.nn.functional.interpolate(START, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(run.drawer.pictures().detach(), twice[..., 8:24, 8:24])


@pytest.mark.parametrize("drawer", DRAWERS)
def test_after_a_move_the_steps_go_on_from_the_moved_picture(drawer):
    run = make(drawer=drawer)
    run.step()
    run.move(1.1, (1, 0))
    moved = run.drawer.pictures().detach()
    before = [p.detach().clone() for p in run.drawer.parameters]
    run.step()
    assert all(not torch.equal(p, q) for p, q in zip(run.drawer.parameters, before, strict=True))
    assert run.best_loss.isfinite().all()  # of the moved picture, no longer of the one before
    if drawer != "codes":  # which draws by chance
        torch.testing.assert_close(run.best, moved)


RUN = make("a", clips=(CLIP,))
DRAWS = draw_views(PHOTOGRAPHS, 2, generator())


@pytest.mark.parametrize(
    ("function", "arguments", "letters"),
    [
        (RUN.guided, dict(pictures=START), {}),
        (RUN.step, {}, {"B": 2}),
        (RUN.run, {}, {"B": 2, "H": 16, "W": 16}),
        (RUN.keep, dict(losses=noise(2), pictures=START), {}),
        (
            RUN.view_losses,
            dict(guide=RUN.guides[0], wanted=RUN.guides[0].wanted[0], pictures=START, draws=DRAWS),
            {"N": 2},
        ),
    ],
)
def test_shapes_are_as_documented(function, arguments, letters):
    check_shapes(function, arguments, function(**arguments), letters)


def test_the_fourier_drawer_is_moved_by_adam_too():
    run = make("a", drawer="fourier")
    assert isinstance(run.drawer, FourierDrawer)
    before = run.drawer.pictures().detach()
    run.step()
    assert not torch.equal(run.drawer.pictures().detach(), before)
