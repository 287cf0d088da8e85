"""The decoding matrix: every way of drawing a picture gives the same logits and the same tokens.

{full, row, column, conv, paper} x {cache, none} x {guidance, none} x {primed, not}, and with
rotary positions and normalised queries; seeds, streams of rows, completion.
"""

import pytest
import torch
from helpers.decoding import TEXT, ask, decode
from helpers.tiny import generator, integers, make_dalle, make_painter, noise
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from minimodal.blocks import packed
from minimodal.blocks.packed import can_pack, packed_linears
from minimodal.blocks.sampling import SamplingConfig, guide
from minimodal.blocks.transformer import KVCache
from minimodal.errors import UserError

PATTERNS = ("full", "row", "column", "conv", "paper")
GRID = 4
KNOWN = integers(20, 3, GRID, GRID, seed=4)
TOP = torch.tensor([[True] * GRID] * 2 + [[False] * GRID] * 2)
BOX = torch.tensor([[True] * 4, [True, False, False, True], [True, False, False, True], [True] * 4])

KINDS = {
    "full": {},
    **{name: {"attention": name, "kernel": 3} for name in PATTERNS[1:]},
    "rotary": {"rotary": True},
    "rotary-paper": {"rotary": True, "attention": "paper", "kernel": 3},
    "wide": {"width": 128, "depth": 2},  # wide enough for packed weights
}


@pytest.fixture(autouse=True)
def small_weights_are_packed(monkeypatch):
    """What holds for packed weights holds for small ones, which are quicker to test."""
    monkeypatch.setattr(packed, "SMALLEST", 2**14)


def make(kind: str):
    return make_dalle(**{"grid": GRID, "codes": (5, 4), "depth": 4, **KINDS[kind]})


def draw_all(model, monkeypatch, *, scale: float, keep=None, **settings):
    """Codes and logits of the captions, primed with the known codes where some are kept."""
    known = None if keep is None else KNOWN
    return decode(model, TEXT, monkeypatch, seed=3, guidance=scale, known=known, keep=keep,
                  **settings)  # fmt: skip


@pytest.mark.parametrize("keep", [None, TOP, BOX], ids=["plain", "primed", "box"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_decoding_matrix(kind, scale, keep, monkeypatch):
    model, known = make(kind), KNOWN.clone()
    cached, logits = draw_all(model, monkeypatch, scale=scale, keep=keep)
    plain, expected = draw_all(model, monkeypatch, scale=scale, keep=keep, use_cache=False)
    assert torch.equal(cached, plain)
    drawn = torch.ones(GRID, GRID, dtype=torch.bool) if keep is None else ~keep
    assert len(logits) == len(expected) == 2 * int(drawn.sum())
    conditional, unconditional = (
        model(text, cached).image for text in (TEXT, torch.zeros_like(TEXT))
    )
    # Guidance by s multiplies a rounding error by up to 2 s - 1. The largest found: 6e-6 without,
    # 3e-6 with it, but 1.2e-5 and then 2.1e-5 where the model is wide and its logits reach 10.
    bound = 1.5e-5 * max(1, 2 * scale - 1) if kind == "wide" else 1e-5
    for number, (a, b) in enumerate(zip(logits, expected, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=bound)
        place = int(drawn.flatten().nonzero()[number // 2])
        parts = (conditional[number % 2][:, place], unconditional[number % 2][:, place])
        torch.testing.assert_close(a, guide(*parts, scale), rtol=0, atol=1e-4)
    if keep is not None:
        assert torch.equal(cached[:, keep], known[:, keep])
    assert torch.equal(TEXT[0], torch.tensor([3, 7, 9, 0, 0])) and torch.equal(KNOWN, known)


def test_packed_weights_give_the_same_product():
    layers, x = nn.ModuleList([nn.Linear(256, 128), nn.Linear(8, 4)]), noise(4, 1, 256)
    expected = layers[0](x)
    with packed_linears([layers], 4) as packed_layers:
        assert packed_layers == [layer for layer in layers if can_pack(layer.weight)]
        assert not can_pack(layers[1].weight)  # small ones are left out
        with torch.no_grad():
            torch.testing.assert_close(layers[0](x), expected, rtol=0, atol=1e-5)
            with packed_linears([layers], 4):  # one drawing within another
                pass
            assert torch.equal(layers[0](x), expected)
        assert layers[0](x).requires_grad  # packed weights would have none
    assert not any("forward" in vars(layer) for layer in layers)


def test_packing_follows_weights_that_have_changed():
    model = make("wide")
    here = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert can_pack(model.transformer.blocks[0].fc.weight) == here
    assert not can_pack(make("full").transformer.blocks[0].fc.weight)
    model.generate_codes(TEXT, generator=generator())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    now = model.generate_codes(TEXT, generator=generator())
    plain = model.generate_codes(TEXT, generator=generator(), use_cache=False)
    assert torch.equal(now, plain)


# --- what drawing promises of its loop -----------------------------------------------------------


class Watch(TorchDispatchMode):
    """Notes the name of every operation; picking by a mask is `nonzero`, which it begins with."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        picked = [i for i in args[1] if i is not None] if name == "index" else []
        self.seen.append("nonzero" if any(i.dtype == torch.bool for i in picked) else name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_is_read_from_the_first_code_to_the_last(kind, monkeypatch):
    """On a GPU the program would wait at each such read until all that it asked for is done."""
    model, seen, reads = make(kind), [], {"_local_scalar_dense", "nonzero", "tolist"}
    tolist = torch.Tensor.tolist  # on a CPU no operation
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: seen.append("tolist") or tolist(self))
    model.transformer.register_forward_pre_hook(lambda *_: seen.append("code"))
    sampling = SamplingConfig(0.7, top_k=3, top_p=0.9, guidance=2.5)
    with Watch(seen):
        model.generate_codes(TEXT, generator=generator(), sampling=sampling, known=KNOWN, keep=BOX)
    begin = seen.index("code")
    assert seen.count("code") == 4 and not reads & set(seen[begin:])
    assert reads & set(seen[:begin])  # which codes are drawn: read once, and noticed here


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_stay_in_the_memory_that_was_taken_at_the_start(kind, monkeypatch):
    model, places, extend = make(kind), set(), KVCache.extend

    def watched(cache, *given):
        k, v = extend(cache, *given)
        memory = (cache.keys, k, cache.values, v)
        places.add((id(cache), *(x.untyped_storage().data_ptr() for x in memory)))
        return k, v

    monkeypatch.setattr(KVCache, "extend", watched)
    draw_all(model, monkeypatch, scale=2.5)
    ((_, keys, k, values, v),) = places  # the same for every layer of every step
    assert k == keys and v == values


@pytest.mark.parametrize("use_cache", [True, False])
def test_drawing_computes_the_logits_of_the_next_code_alone(use_cache, monkeypatch):
    model, places = make("full"), []
    model.text_head = None  # calling it would fail
    for head in model.image_heads:
        head.register_forward_pre_hook(lambda _, given: places.append(given[0].shape[1]))
    draw_all(model, monkeypatch, scale=2.5, use_cache=use_cache)
    assert places == [1] * 2 * GRID**2


# --- seeds, rows, rectangles ---------------------------------------------------------------------


def test_a_picture_with_a_seed_of_its_own_is_the_same_in_every_batch():
    model = make_painter()
    four = ask(model, "a red circle", 4, seeds=[5, 6, 7, 8])
    assert torch.equal(ask(model, "a red circle", 1, seeds=[7])[0], four[2])
    split = ask(model, "a red circle", 4, seeds=[5, 6, 7, 8], batch_size=3)
    assert torch.equal(split, four)
    assert not torch.equal(four[0], four[1])


def test_completion_keeps_the_codes_outside_of_the_rectangle():
    model = make_painter(codes=(40,))
    picture = integers(256, 3, 6, 6).to(torch.uint8)
    theirs = model.painter.encode(picture[None])
    codes, painted = [], model.painter.decode
    model.painter.decode = lambda given: (codes.append(given), painted(given))[1]
    settings = {"generator": generator(), "complete": picture, "temperature": 2.0}
    ask(model, "a red circle", 3, redraw=(1, 2, 3, 4), **settings)
    keep = torch.ones(3, 3, dtype=torch.bool)
    keep[1, 0:2] = False  # pixels 1 and 2 across lie in the first two codes of 2 pixels
    assert torch.equal(codes[0][:, keep], theirs.expand(3, -1, -1)[:, keep])
    ask(model, "a red circle", 2, **settings)
    assert torch.equal(codes[1][:, 0], theirs[:, 0].expand(2, -1))  # half of three rows: one


@pytest.mark.parametrize("use_cache", [True, False])
def test_nothing_is_computed_after_the_last_code_that_is_drawn(use_cache):
    model, calls = make("full"), []
    model.transformer.register_forward_pre_hook(lambda _, given: calls.append(given[0].shape[1]))
    keep = torch.ones(GRID, GRID, dtype=torch.bool)
    keep[1, 1:3] = keep[2, 0] = False
    model.generate_codes(TEXT, generator=generator(), known=KNOWN, keep=keep, use_cache=use_cache)
    first = 1 + TEXT.shape[1] + 5  # start, caption, five kept codes
    assert calls == ([first, 1, 2] if use_cache else [first, first + 1, first + 3])


def test_progress_ends_at_the_end_however_little_is_drawn():
    model, shares = make_painter(), []
    picture = integers(256, 3, 6, 6).to(torch.uint8)
    ask(model, "a red circle", 3, generator=generator(), complete=picture, batch_size=2,
                   redraw=(0, 0, 6, 2), progress=shares.append)  # fmt: skip
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 8


def test_what_is_not_drawn_anew_keeps_the_pixels_that_were_given():
    model, picture = make_painter(), integers(256, 3, 6, 6, seed=5).to(torch.uint8)
    where = {"complete": picture, "redraw": (2, 2, 4, 4)}
    pictures = ask(model, "a red circle", 3, generator=generator(), **where)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[2:4, 2:4] = True  # one code
    assert torch.equal(pictures[:, :, ~inside], picture[:, ~inside].expand(3, -1, -1))
    assert not torch.equal(pictures[:, :, inside], picture[:, inside].expand(3, -1, -1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"complete": torch.zeros(3, 8, 8, dtype=torch.uint8)}, "8 x 8 pixels: expected 6 x 6"),
        ({"complete": torch.zeros(3, 6, 6, dtype=torch.uint8), "redraw": (0, 0, 7, 6)}, "inside"),
        ({"complete": torch.zeros(3, 6, 6, dtype=torch.uint8), "redraw": (4, 0, 4, 6)}, "inside"),
        ({"redraw": (0, 0, 2, 2)}, "needs a picture"),
        ({"seeds": [1]}, "either a generator or seeds"),
        ({"generator": None}, "either a generator or seeds"),
        ({"generator": None, "seeds": [1, 2]}, "2 seeds for 1 pictures"),
        ({"generator": None, "seeds": [2**63]}, "below 2"),
        ({"batch_size": 0}, "0 at a time: expected 1 or more"),
        ({"guidance": -1.0}, "guidance -1.0"),
        ({"guidance": 1e38}, "guidance 1e\\+38"),
        ({"temperature": 1e-40}, "temperature 1e-40"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_drawn(settings, words):
    model = make_painter()
    model.transformer = None  # drawing would fail in another way
    with pytest.raises(UserError, match=words):
        ask(model, "a red circle", **{"generator": generator(), **settings})
