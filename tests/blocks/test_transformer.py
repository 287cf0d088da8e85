"""Who may attend to whom, the cache, and attention written out."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import make_transformer, noise, shake

from minimodal.blocks.attention import attend, causal_mask
from minimodal.blocks.transformer import Attention, Transformer, quick_gelu
from minimodal.errors import UserError
from minimodal.training.tasks.common import seeded


def influence(model, x: torch.Tensor, position: int) -> torch.Tensor:
    """How strongly each token moves the output at a position, by gradient."""
    x = x.clone().requires_grad_()
    (model(x)[:, position] * noise(x.shape[-1], seed=9)).sum().backward()
    return x.grad.abs().amax(dim=(0, 2))  # (T,)


def cached(model, x: torch.Tensor, pieces: tuple[int, ...]) -> torch.Tensor:
    cache = model.new_cache(len(x), x.shape[1], device=x.device, dtype=x.dtype)
    return torch.cat([model(piece, cache=cache) for piece in x.split(pieces, dim=1)], dim=1)


@pytest.mark.parametrize("position", [0, 3, 7])
def test_causal_output_depends_on_no_later_token(position):
    felt = influence(make_transformer(causal=True), noise(2, 8, 16), position)
    assert (felt[: position + 1] > 0).all()
    assert (felt[position + 1 :] == 0).all()


def test_bidirectional_output_depends_on_every_token():
    assert (influence(make_transformer(causal=False), noise(2, 8, 16), 3) > 0).all()


def test_without_positions_bidirectional_attention_does_not_know_the_order():
    model, x, order = make_transformer(causal=False), noise(2, 8, 16), [3, 0, 7, 1, 6, 2, 5, 4]
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pieces", [(8,), (1,) * 8, (3, 5), (5, 1, 2), (1, 7), (6, 1, 1)])
def test_cached_equals_uncached(pieces):
    model, x = make_transformer(causal=True), noise(2, 8, 16)
    torch.testing.assert_close(cached(model, x, pieces), model(x), rtol=0, atol=1e-5)


def test_a_cache_counts_what_it_holds():
    model, x = make_transformer(causal=True), noise(2, 8, 16)
    cache = model.new_cache(2, 8, device=x.device, dtype=x.dtype)
    model(x[:, :3], cache=cache)
    assert (cache.length, cache.capacity) == (3, 8)


def test_more_tokens_than_the_cache_holds_are_an_error():
    model, x = make_transformer(causal=True), noise(2, 8, 16)
    with pytest.raises(ValueError, match="holds 7 tokens, 8 were given"):
        cache = model.new_cache(2, 7, device=x.device, dtype=x.dtype)
        for token in x.split(1, dim=1):
            model(token, cache=cache)


def test_no_module_keeps_the_cache():
    model, x = make_transformer(causal=True), noise(2, 8, 16)
    before = model(x)
    cached(model, noise(2, 8, 16, seed=1), (3, 5))
    assert torch.equal(model(x), before)


def test_the_mask_lets_the_last_queries_see_all_earlier_keys():
    seen = [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert torch.equal(causal_mask(2, 4, torch.device("cpu")), torch.tensor(seen).bool())


def test_attention_is_softmax_of_scaled_products_times_values():
    q, k, v = (noise(1, 1, 3, 4, seed=seed).double() for seed in range(3))
    mask = torch.tensor([[True, True, False]] * 3)
    a, b, c = (x[0, 0].numpy() for x in (q, k, v))
    weights = torch.from_numpy(a @ b.T / 2).exp().numpy()[:, :2]
    expected = weights / weights.sum(1, keepdims=True) @ c[:2]
    torch.testing.assert_close(attend(q, k, v, mask)[0, 0], torch.from_numpy(expected))


@pytest.mark.parametrize("keys", [5, 256, 257])
@pytest.mark.parametrize("masked", [True, False])
def test_bfloat16_on_a_cpu_equals_the_fused_kernel(keys, masked):
    q = noise(2, 3, 4, 8)
    k, v = noise(2, 3, keys, 8, seed=1), noise(2, 3, keys, 8, seed=2)
    mask = causal_mask(4, keys, q.device) if masked else None
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    found = attend(q, k, v, mask)
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.03)
    torch.testing.assert_close(found.float(), fused.float(), rtol=0, atol=0.03)


def test_quick_gelu_is_x_times_sigmoid_of_1_702_x():
    x = torch.tensor([-1.0, 0.0, 2.0])
    expected = [-1 / (1 + 2.718281828**1.702), 0.0, 2 / (1 + 2.718281828**-3.404)]
    assert quick_gelu(x).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_width_that_the_heads_do_not_divide_is_an_error():
    with pytest.raises(ValueError, match="width 10 is not divisible by 4 heads"):
        Attention(10, 4)


@pytest.mark.parametrize(("width", "depth"), [(0, 2), (16, 0), (-8, 1)])
def test_no_layers_or_no_width_is_an_error(width, depth):
    with pytest.raises(UserError, match="expected 1 or more"):
        Transformer(width, depth, 2, causal=True)


def test_queries_and_keys_turn_by_the_angles_of_their_places_and_values_do_not():
    """By hand: channels i and i + d/2 are a complex number, which is multiplied by e^(i angle)."""
    x, angles = noise(2, 8, 16), noise(8, 4, seed=1)
    layer, seen = shake(seeded(lambda: Attention(16, 2), 0)), {}
    found = layer(x, angles=angles, attention=lambda *qkv: seen.update(qkv=qkv) or attend(*qkv))
    q, k, v = layer.qkv(x).view(2, 8, 3, 2, 8).permute(2, 0, 3, 1, 4)  # (2, 2, 8, 8) each

    def turned(value):
        numbers = torch.complex(value[..., :4], value[..., 4:])
        numbers = numbers * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([numbers.real, numbers.imag], dim=-1)

    for got, expected in zip(seen["qkv"], (turned(q), turned(k), v), strict=True):
        torch.testing.assert_close(got, expected)
    gathered = attend(turned(q), turned(k), v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, layer.proj(gathered))


def test_what_writes_to_the_stream_starts_smaller_than_what_reads_it():
    model = make_transformer(causal=True)
    block = model.blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(16**-0.5, rel=0.1)
    assert block.out.weight.std().item() == pytest.approx((16 * 2 * 2) ** -0.5, rel=0.1)
    assert not block.fc.bias.any()


def test_the_callers_tensor_is_not_changed():
    x = noise(2, 8, 16)
    kept = x.clone()
    make_transformer(causal=True)(x)
    cached(make_transformer(causal=True), x, (3, 5))
    assert torch.equal(x, kept)
