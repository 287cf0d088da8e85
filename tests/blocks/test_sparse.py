"""Sparse patterns: who sees whom, by definition, by gradient, and at what cost."""

import pytest
import torch
from helpers.tiny import noise
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minimodal.blocks.attention import attend
from minimodal.blocks.sparse import KINDS, SparsePattern, schedule
from minimodal.blocks.transformer import Transformer
from minimodal.errors import UserError
from minimodal.training.tasks.common import seeded

CPU = torch.device("cpu")
SPARSE = ("row", "column", "conv")
SHAPES = [(3, 4, 3), (1, 5, 3), (4, 3, 5), (2, 2, 7), (6, 8, 5)]  # ahead, grid, kernel

every_shape = pytest.mark.parametrize(("ahead", "grid", "kernel"), SHAPES)


def by_definition(kind: str, ahead: int, grid: int, kernel: int, q: int, k: int) -> bool:
    """The paper's words (appendix B.1): what the query at place q of the stream may see."""
    if k > q:
        return False
    if q < ahead or k < ahead or kind == "full":
        return True
    if kind == "row":
        return q - k <= grid
    if kind == "column":
        return (q - ahead) % grid == (k - ahead) % grid
    r = kernel // 2
    return any(q - up * grid - r <= k <= q - up * grid + r for up in range(r + 1))


def written_out(pattern: SparsePattern, length: int) -> torch.Tensor:
    """returns: (T, T) bool"""
    shape = (pattern.kind, pattern.ahead, pattern.grid, pattern.kernel)
    rows = [[by_definition(*shape, q, k) for k in range(length)] for q in range(length)]
    return torch.tensor(rows)


@pytest.mark.parametrize("kind", KINDS)
@every_shape
def test_the_mask_is_the_papers_definition(kind, ahead, grid, kernel):
    pattern, length = SparsePattern(kind, ahead, grid, kernel), ahead + grid**2 - 1
    expected = written_out(pattern, length)
    assert torch.equal(pattern.mask(length, length, CPU), expected)
    assert torch.equal(pattern.mask(3, length, CPU), expected[-3:])


@pytest.mark.parametrize("kind", KINDS)
@every_shape
def test_a_new_token_gathers_the_keys_of_its_row_of_the_mask(kind, ahead, grid, kernel):
    pattern, length = SparsePattern(kind, ahead, grid, kernel), ahead + grid**2
    for place, seen in enumerate(written_out(pattern, length)):
        visible = pattern.visible(place, CPU)
        expected = seen.nonzero().flatten()
        found = torch.arange(place + 1) if visible is None else visible
        assert torch.equal(found, expected), place


@pytest.mark.parametrize("kind", SPARSE)
@every_shape
@pytest.mark.parametrize("missing", [0, 1, "a row and one"])
def test_attention_in_blocks_equals_attention_with_the_mask(kind, ahead, grid, kernel, missing):
    pattern = SparsePattern(kind, ahead, grid, kernel)
    length = ahead + grid**2 - (grid + 1 if missing == "a row and one" else missing)
    mask = pattern.mask(length, length, CPU)
    found, plain = [], []
    for results, function in (
        (found, pattern.blocked),
        (plain, lambda q, k, v: attend(q, k, v, mask)),
    ):
        q, k, v = (noise(2, 2, length, 4, seed=s).double().requires_grad_() for s in range(3))
        y = function(q, k, v)
        (y * noise(*y.shape, seed=5)).sum().backward()
        results += [y.detach(), q.grad, k.grad, v.grad]
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_layers_receptive_field_is_the_pattern(kind):
    pattern = SparsePattern(kind, 3, 4, 3)
    model = seeded(lambda: Transformer(16, 1, 2, causal=True, patterns=[pattern]), 0)
    x = noise(1, 18, 16).requires_grad_()
    y = model(x)
    for place in range(18):
        (grad,) = torch.autograd.grad((y[0, place] * noise(16, seed=7)).sum(), x, retain_graph=True)
        felt = grad[0].abs().amax(dim=1) > 0
        assert torch.equal(felt, pattern.mask(18, 18, CPU)[place]), place


def test_a_row_layer_and_a_column_layer_together_see_all_rows_above():
    patterns = [SparsePattern("row", 1, 4), SparsePattern("column", 1, 4)]
    model = seeded(lambda: Transformer(16, 2, 2, causal=True, patterns=patterns), 0)
    x = noise(1, 17, 16).requires_grad_()
    (grad,) = torch.autograd.grad((model(x)[0, 16] * noise(16, seed=7)).sum(), x)
    assert (grad[0].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("kind", SPARSE)
def test_a_sparse_pattern_computes_at_most_three_fifths_of_the_causal_scores(kind):
    q = noise(1, 2, 16 + 256, 8)

    def flops(function) -> int:
        with FlopCounterMode(display=False) as counter:
            function(q, q, q)
        return counter.get_total_flops()

    full = flops(lambda q, k, v: torch.softmax(q @ k.transpose(-2, -1), -1) @ v)
    causal = full / 2  # the kernel leaves out the half above the diagonal
    assert flops(SparsePattern(kind, 16, 16, 5).blocked) < 0.6 * causal


def scores_of(model: Transformer, x: torch.Tensor, **settings) -> int:
    """Operations of attention alone: linear layers are counted as another kind."""
    # The fused kernel of the CPU is not counted, the plain one is.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, **settings)
    return counter.get_flop_counts()["Global"][torch.ops.aten.bmm]


def layers_of(kind: str) -> Transformer:
    """Two layers over 16 tokens and 16 x 16 codes."""
    patterns = [SparsePattern(kind, 16, 16, 5)] * 2
    return seeded(lambda: Transformer(32, 2, 2, causal=True, patterns=patterns), 0)


@pytest.mark.parametrize("kind", SPARSE)
def test_a_transformer_with_a_sparse_pattern_computes_fewer_scores(kind):
    T = 16 + 256 - 1
    full = 2 * 2 * (2 * T * T * 32)  # layers, q kᵀ and the weighted sum, multiply and add
    assert scores_of(layers_of("full"), noise(1, T, 32)) == full
    assert scores_of(layers_of(kind), noise(1, T, 32)) < 0.6 * full / 2


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_cached_step_computes_the_scores_of_the_keys_it_sees_alone(kind):
    place, model = 16 + 200, layers_of(kind)
    cache = model.new_cache(1, 16 + 256, device=CPU, dtype=torch.float32)
    model(noise(1, place, 32), cache=cache)
    seen = sum(by_definition(kind, 16, 16, 5, place, k) for k in range(place + 1))
    assert scores_of(model, noise(1, 1, 32), cache=cache) == 2 * 2 * (2 * seen * 32)


def test_the_papers_order_of_patterns():
    kinds = [p.kind for p in schedule("paper", 64, ahead=257, grid=32, kernel=11)]
    assert kinds[:8] == ["row", "column", "row", "row", "row", "column", "row", "row"]
    assert kinds.index("conv") == 63 and kinds.count("column") == 16


@pytest.mark.parametrize(("kind", "kernel"), [("diagonal", 5), ("conv", 4), ("conv", 0)])
def test_an_impossible_pattern_is_an_error(kind, kernel):
    with pytest.raises(UserError, match="attention"):
        schedule(kind, 2, ahead=3, grid=4, kernel=kernel)
