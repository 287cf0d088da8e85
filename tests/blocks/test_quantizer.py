"""Rounding to codes, what its losses and averages move, and how codebooks start and recover."""

import numpy as np
import pytest
import torch
from helpers.tiny import generator, integers, noise
from hypothesis import given
from hypothesis import strategies as st

from minimodal.blocks import nearest as searching
from minimodal.blocks.codebook import Codebook, draw_far
from minimodal.blocks.nearest import nearest
from minimodal.blocks.quantizer import Quantizer


def make(sizes: tuple[int, ...] = (7,), width: int = 4, **settings) -> Quantizer:
    """A quantizer whose codes are spread as wide as normal latents."""
    quantizer = Quantizer(sizes, width, **settings)
    for number, book in enumerate(quantizer.codebooks):
        book.codes.copy_(noise(book.size, width, seed=100 + number))
    return quantizer


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def clusters(n: int, centres: list[list[float]], *, seed: int = 0) -> torch.Tensor:
    """n points in tight clouds about each centre, shuffled."""
    points = torch.tensor(centres).repeat_interleave(n, dim=0)
    points = points + 0.05 * noise(*points.shape, seed=seed)
    return points[torch.randperm(len(points), generator=generator(seed))]


# --- rounding ------------------------------------------------------------------------------------


def test_nearest_is_the_argmin_of_the_distances():
    z, codes = noise(50, 4), noise(7, 4, seed=1)
    distances = np.square(z.numpy()[:, None].astype(float) - codes.numpy()[None]).sum(-1)
    indices, found = nearest(z, codes)
    assert np.array_equal(indices.numpy(), distances.argmin(1))
    np.testing.assert_allclose(found.numpy(), distances.min(1), atol=1e-5)


def test_nearest_is_computed_in_full_float32_whatever_the_caller_computes_in(monkeypatch):
    plain, seen = torch.addmm, []

    def addmm(*a, **k):
        found = plain(*a, **k)
        seen.append((torch.get_float32_matmul_precision(), found.dtype))
        return found

    monkeypatch.setattr(torch, "addmm", addmm)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32, as in trainings on CUDA
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nearest(noise(50, 4), noise(7, 4, seed=1))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [("highest", torch.float32)]


@pytest.mark.parametrize("most", [1, 7, 40])
def test_in_parts_that_fit_the_memory_the_nearest_are_the_same(monkeypatch, most):
    z, codes = noise(50, 4), noise(7, 4, seed=1)
    whole = nearest(z, codes)
    monkeypatch.setattr(searching, "MOST_SCORES", most)
    indices, distances = nearest(z, codes)
    assert torch.equal(indices, whole[0])
    torch.testing.assert_close(distances, whole[1], rtol=0, atol=1e-5)


def test_distances_are_never_negative():
    z = 1000 + noise(50, 4)
    assert (nearest(z, z)[1] >= 0).all()


def test_what_comes_out_is_the_nearest_code():
    quantizer, z = make(), noise(2, 4, 3, 5)
    codes = quantizer(z)
    vectors = quantizer.codebooks[0].codes[codes.indices].permute(0, 3, 1, 2)
    assert torch.equal(quantizer.vectors(codes.indices), vectors)
    torch.testing.assert_close(codes.z, vectors, rtol=0, atol=1e-6)


def test_a_code_is_rounded_to_itself():
    quantizer, indices = make((7, 5)), integers(35, 2, 3, 3)
    assert torch.equal(quantizer(quantizer.vectors(indices)).indices, indices)


def test_quantizing_leaves_the_latents_as_they_were():
    quantizer, z = make(), noise(2, 4, 3, 5)
    kept = z.clone()
    quantizer(z)
    assert torch.equal(z, kept)


# --- gradients -----------------------------------------------------------------------------------


def test_straight_through_gradient_is_the_identity():
    quantizer, z, g = make((7, 5)), noise(2, 8, 3, 3).requires_grad_(), noise(2, 8, 3, 3, seed=5)
    (quantizer(z).z * g).sum().backward()
    assert torch.equal(z.grad, g)


def test_commitment_is_beta_times_the_squared_error():
    quantizer, z = make(beta=0.5), noise(2, 4, 3, 3)
    codes = quantizer(z)
    assert float(codes.loss) == pytest.approx(0.5 * float((z - codes.z).square().mean()), rel=1e-5)


def test_commitment_moves_the_encoder_towards_its_code():
    quantizer, z = make(beta=0.25), noise(2, 4, 3, 3).requires_grad_()
    codes = quantizer(z)
    codes.loss.backward()
    expected = 2 * 0.25 * (z - quantizer.vectors(codes.indices)).detach() / z.numel()
    torch.testing.assert_close(z.grad, expected)


def test_commitment_moves_only_the_encoder():
    quantizer = make()
    assert list(quantizer.parameters()) == []
    assert not any(buffer.requires_grad for buffer in quantizer.buffers())


# --- the moving averages -------------------------------------------------------------------------


def test_rounding_changes_no_codebook():
    quantizer = make((7, 5)).train()
    before = state(quantizer)
    quantizer(noise(2, 8, 3, 3))
    assert unchanged(quantizer, before)


def test_an_update_changes_the_codebook_and_not_the_latents():
    quantizer, z = make(), noise(2, 4, 3, 3)
    before, kept = state(quantizer), z.clone()
    quantizer.update(z, generator())
    assert not torch.equal(quantizer.codebooks[0].codes, before["codebooks.0.codes"])
    assert torch.equal(z, kept)


def test_at_decay_0_a_code_is_the_mean_of_its_cluster():
    book = Codebook(2, 1, decay=0.0)
    book.codes.copy_(torch.tensor([[0.0], [10.0]]))
    book.update(torch.tensor([[1.0], [2.0], [9.0], [12.0], [15.0]]), generator())
    assert book.codes.flatten().tolist() == pytest.approx([1.5, 12.0])


def test_averages_follow_the_papers_equations():
    book, z, gamma = Codebook(3, 2, decay=0.9), noise(60, 2), 0.9
    book.codes.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    N, m = np.array([5.0, 6.0, 7.0]), noise(3, 2, seed=3).double().numpy()
    book.counts.copy_(torch.from_numpy(N))
    book.sums.copy_(torch.from_numpy(m))
    k = nearest(z, book.codes)[0].numpy()
    for code in range(3):
        N[code] = gamma * N[code] + (1 - gamma) * (k == code).sum()
        m[code] = gamma * m[code] + (1 - gamma) * z.double().numpy()[k == code].sum(0)
    assert int(book.update(z, generator())) == 0
    np.testing.assert_allclose(book.codes.numpy(), m / N[:, None], atol=1e-5)


def test_an_update_is_a_function_of_the_batch_and_the_seed():
    z = noise(4, 8, 3, 3)
    single, sharded = make((7, 5)), make((7, 5))
    single.update(z, generator(3))
    torch.rand(5)  # what others draw does not matter
    sharded.update(torch.cat([z[:1], z[1:]]), generator(3))
    assert unchanged(sharded, state(single))


def test_each_group_of_channels_has_its_own_codebook():
    both, first, second = make((7, 5)), make((7,)), make((5,))
    second.codebooks[0].codes.copy_(both.codebooks[1].codes)
    z = noise(2, 8, 3, 3)
    parts = both.factors(both(z).indices)
    assert torch.equal(parts[0], first(z[:, :4]).indices)
    assert torch.equal(parts[1], second(z[:, 4:]).indices)


# --- start and revival ---------------------------------------------------------------------------


def test_dead_codes_move_onto_data():
    book, z = Codebook(8, 4, decay=0.99), noise(40, 4)
    book.codes.copy_(1000 + noise(8, 4, seed=1))  # one of them is nearest to everything
    assert int(book.update(z, generator())) == 7
    places = torch.cat([z, z.mean(0, keepdim=True)])
    assert (nearest(book.codes, places)[1] < 1e-6).all()


def test_a_revived_code_does_not_die_at_once():
    book, z = Codebook(8, 4, decay=0.99), noise(400, 4)
    book.codes.copy_(1000 + noise(8, 4, seed=1))
    book.update(z, generator())
    assert int(book.update(z, generator(1))) == 0


def test_a_used_code_is_not_revived():
    book, z = Codebook(4, 4, decay=0.99), noise(400, 4)
    book.start(z, generator())
    assert int(book.update(z, generator())) == 0


def test_far_positions_are_drawn_in_proportion_to_their_distance():
    drawn = draw_far(torch.tensor([0.0, 1.0, 3.0]), 4000, generator())
    share = torch.bincount(drawn, minlength=3) / 4000
    assert share.tolist() == pytest.approx([0, 0.25, 0.75], abs=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_a_start_puts_a_code_into_each_well_separated_cluster(seed):
    centres = [[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0]]
    book = Codebook(8, 2, decay=0.99)
    book.start(clusters(50, centres, seed=seed), generator(seed))
    assert (nearest(torch.tensor(centres), book.codes)[1] < 0.05).all()


def test_a_start_finds_the_two_means_of_two_clusters():
    book = Codebook(2, 2, decay=0.99)
    z = clusters(50, [[0.0, 0.0], [8.0, 0.0]])
    book.start(z, generator())
    found = sorted(book.codes.tolist())
    expected = [z[z[:, 0] < 4].mean(0).tolist(), z[z[:, 0] > 4].mean(0).tolist()]
    assert np.allclose(found, expected, atol=1e-5)


def test_a_start_with_fewer_points_than_codes_is_possible():
    book = Codebook(16, 2, decay=0.99)
    book.start(noise(5, 2), generator())
    assert torch.isfinite(book.codes).all()


def test_a_start_depends_on_its_generator_alone():
    books = [Codebook(8, 4, decay=0.99) for _ in range(2)]
    for book in books:
        book.start(noise(100, 4), generator(2))
        torch.rand(7)
    assert torch.equal(books[0].codes, books[1].codes)


# --- numbers of codes ----------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data())
def test_combined_and_factors_are_inverse(sizes, data):
    quantizer = Quantizer(tuple(sizes), 1)
    codes = data.draw(st.lists(st.integers(0, quantizer.size - 1), min_size=1, max_size=8))
    indices = torch.tensor(codes)
    parts = quantizer.factors(indices)
    assert torch.equal(quantizer.combined(parts), indices)
    assert all(
        0 <= part.min() and part.max() < size for part, size in zip(parts, sizes, strict=True)
    )


def test_the_last_factor_changes_fastest():
    quantizer = Quantizer((3, 5), 1)
    assert quantizer.combined([torch.tensor([2]), torch.tensor([4])]).item() == 14
    assert quantizer.size == 15
