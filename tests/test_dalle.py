"""DALL·E: who sees what in the stream, its loss, and that every way of drawing agrees.

The decoding matrix: with and without a cache, at each guidance, for one codebook and for two,
alone and in a batch.
"""

import math

import pytest
import torch
from helpers.decoding import TEXT, Numbered, ask, decode
from helpers.tiny import (
    WORDS,
    full_logits,
    generator,
    integers,
    make_dalle,
    make_painter,
    make_vqgan,
    noise,
)

from minimodal.blocks.pixels import to_uint8
from minimodal.blocks.sampling import guide
from minimodal.blocks.sparse import schedule
from minimodal.dalle import DALLE
from minimodal.data.tokenizer import Tokenizer
from minimodal.data.words import KnownWords
from minimodal.errors import UserError
from minimodal.training.captions import Words
from minimodal.training.contract import Recipe, TrainConfig
from minimodal.training.tasks.codes import Encoded
from minimodal.training.tasks.common import seeded
from minimodal.training.tasks.dalle import DALLETask, DALLETraining

ONE, TWO = (11,), (5, 4)
both = pytest.mark.parametrize("codes", [ONE, TWO], ids=["one codebook", "two codebooks"])


def codes_for(model, batch: int = 3) -> torch.Tensor:
    return integers(math.prod(model.config.codes), batch, 3, 3, seed=5)


def influence(model, text, codes, pick) -> torch.Tensor:
    """How strongly each vector that the Transformer reads moves some logits: (1 + T + N - 1,)."""
    read = []

    def keep(module, inputs):
        read.append(inputs[0].requires_grad_())
        inputs[0].retain_grad()

    hook = model.transformer.register_forward_pre_hook(keep)
    picked = pick(model(text, codes))
    hook.remove()
    (picked * noise(*picked.shape, seed=8)).sum().backward()
    return read[0].grad.abs().amax(dim=(0, 2))


# --- the stream ----------------------------------------------------------------------------------


def test_every_caption_position_has_its_own_padding_token():
    padded = make_dalle().with_padding(TEXT)
    assert padded.tolist() == [[3, 7, 9, 23, 24], [4, 5, 6, 8, 24], [12, 21, 22, 23, 24]]


@both
def test_sizes_of_the_predictions(codes):
    model = make_dalle(codes=codes)
    out = model(TEXT, codes_for(model))
    assert out.text.shape == (3, 5, 25)
    assert [part.shape for part in out.image] == [(3, 9, size) for size in codes]


@pytest.mark.parametrize("position", range(5))
def test_a_caption_token_is_predicted_from_those_before_it(position):
    model = make_dalle()
    felt = influence(model, TEXT, codes_for(model), lambda out: out.text[:, position])
    assert (felt[: position + 1] > 0).all()  # the start vector and the tokens before
    assert (felt[position + 1 :] == 0).all()  # itself, what follows, the picture


@both
@pytest.mark.parametrize("place", [0, 4, 8])
def test_a_code_is_predicted_from_the_caption_and_the_codes_before_it(codes, place):
    model = make_dalle(codes=codes)
    felt = influence(model, TEXT, codes_for(model), lambda out: out.image[-1][:, place])
    assert (felt[: 6 + place] > 0).all()
    assert (felt[6 + place :] == 0).all()


def test_the_second_factor_knows_the_first_and_not_the_other_way_round():
    model = make_dalle(codes=TWO)
    first, second = torch.zeros(1, 3, 3, dtype=torch.int64), torch.zeros(1, 3, 3, dtype=torch.int64)
    second[0, 2, 2] = 3 * 4  # another first factor at the last place, which nothing reads
    a, b = model(TEXT[:1], first), model(TEXT[:1], second)
    assert torch.equal(a.image[0], b.image[0])
    assert torch.equal(a.image[1][:, :8], b.image[1][:, :8])
    assert (a.image[1][:, 8] - b.image[1][:, 8]).abs().max() > 1e-3


@both
def test_a_code_has_the_vectors_of_its_factors_its_row_and_its_column(codes):
    model = make_dalle(codes=codes)
    number = math.prod(codes) - 2
    nine = torch.full((1, 9), number)
    parts = model.image_heads.factors(nine)
    token = sum(table(part[0, 0]) for table, part in zip(model.image_tokens, parts, strict=True))
    for place, vector in enumerate(model.embed_codes(nine)[0]):
        expected = token + model.rows[place // 3] + model.columns[place % 3]
        torch.testing.assert_close(vector, expected)


def test_embedding_a_part_of_the_codes_needs_their_first_place():
    model = make_dalle()
    codes = codes_for(model).flatten(1)
    whole = model.embed_codes(codes)
    assert torch.equal(model.embed_codes(codes[:, 4:6], first=4), whole[:, 4:6])


# --- what the configuration asks for -------------------------------------------------------------


def same_weights(**changes) -> tuple[DALLE, DALLE]:
    """A model without the changes and one with them, the weights that both have being equal."""
    plain, changed = make_dalle(), make_dalle(**changes)
    changed.load_state_dict(plain.state_dict(), strict=False)
    return plain, changed


def test_rotary_positions_change_every_prediction_but_the_first():
    plain, rotary = same_weights(rotary=True)
    a, b = (model(TEXT, codes_for(plain)) for model in (plain, rotary))
    torch.testing.assert_close(a.text[:, 0], b.text[:, 0])  # it attends to itself alone
    assert ((a.text - b.text)[:, 1:].abs().amax(-1) > 1e-3).all()
    assert ((a.image[0] - b.image[0]).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("kind", ["conv", "paper"])
def test_the_layers_have_the_patterns_that_the_configuration_names(kind, kernel):
    model = make_dalle(attention=kind, kernel=kernel, depth=4)
    expected = schedule(kind, 4, ahead=1 + 5, grid=3, kernel=kernel)  # the start and the caption
    assert model.transformer.patterns == expected


# --- the loss ------------------------------------------------------------------------------------


@both
def test_the_loss_is_one_eighth_text_and_seven_eighths_picture(codes):
    model = make_dalle(codes=codes)
    loss, parts = model.loss(TEXT, codes_for(model))
    expected = parts["text_loss"] / 8 + 7 / 8 * parts["image_loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_is_the_cross_entropy_over_the_joint_vocabulary():
    model, codes = make_dalle(), codes_for(make_dalle())
    log_p = full_logits(model, TEXT, codes).log_softmax(-1)
    labels = torch.cat([model.with_padding(TEXT), codes.flatten(1) + 25], dim=1)
    nll = -log_p.gather(-1, labels[..., None])[..., 0]
    expected = nll[:, :5].mean() / 8 + 7 / 8 * nll[:, 5:].mean()
    torch.testing.assert_close(model.loss(TEXT, codes)[0], expected)


def test_the_picture_loss_of_two_codebooks_is_that_of_the_joint_code():
    model = make_dalle(codes=TWO)
    codes = codes_for(model)
    _, parts = model.loss(TEXT, codes)
    a, b = (logits.log_softmax(-1) for logits in model(TEXT, codes).image)
    first, second = codes.flatten(1) // 4, codes.flatten(1) % 4
    joint = a.gather(-1, first[..., None]) + b.gather(-1, second[..., None])
    assert parts["image_loss"].item() == pytest.approx(-joint.mean().item(), rel=1e-5)


def test_every_table_and_layer_learns():
    model = make_dalle(codes=TWO)
    model.loss(TEXT, codes_for(model))[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def make_task(**training) -> DALLETask:
    """A task on numbered pictures with random codes."""
    source = Numbered()
    tokenizer = Tokenizer.train(source.captions(range(400), None), 300)
    config = make_dalle(vocab_size=tokenizer.vocab_size, text_length=12).config
    codes = integers(11, 800 if training.get("flip") else 400, 3, 3).int()
    return DALLETask(
        Recipe(config, DALLETraining(**training), TrainConfig(batch_size=1500)),
        Encoded(source, source, make_vqgan(), None, "", codes, pictures=400),
        Words(tokenizer, 12, KnownWords()),
    )


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"caption_dropout": 0.0, "guidance": 2.0}, "guidance 2.0 needs empty captions"),
        ({"max_text_length": -1}, "max_text_length -1: expected 1 or more"),
    ],
)
def test_a_training_that_cannot_be_is_refused(training, words):
    with pytest.raises(UserError, match=words):
        DALLETraining(**training)


@pytest.mark.parametrize(
    "changes", [{"depth": 0}, {"depth": 0, "attention": "paper"}, {"width": 0}, {"heads": 0},
                {"rotary": True, "width": 12}, {"rotary": True, "heads": 0}]
)  # fmt: skip
def test_a_shape_that_cannot_be_is_one_clear_error(changes):
    with pytest.raises(UserError):
        make_dalle(**changes)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_caption_dropout_leaves_that_share_of_captions_empty(share):
    text = make_task(caption_dropout=share).batch(3, slice(0, 1500))["text"]
    assert (text == 0).all(dim=1).float().mean().item() == pytest.approx(share, abs=0.04)


def test_a_pictures_codes_go_with_its_caption():
    task = make_task(caption_dropout=0.0)
    batch = task.batch(0, slice(0, 1500))
    numbers = [int(task.tokenizer.decode(row).split()[1]) for row in batch["text"].tolist()]
    assert torch.equal(task.codes[numbers].long(), batch["codes"])
    assert set(numbers) == set(range(400))


def test_a_mirrored_pictures_codes_go_with_the_same_caption():
    task = make_task(caption_dropout=0.0, flip=True)  # codes 400 to 799 are of mirror images
    batch = task.batch(0, slice(0, 1500))
    numbers = torch.tensor(
        [int(task.tokenizer.decode(row).split()[1]) for row in batch["text"].tolist()]
    )
    plain = (task.codes[numbers] == batch["codes"]).flatten(1).all(1)
    mirrored = (task.codes[numbers + 400] == batch["codes"]).flatten(1).all(1)
    assert (plain ^ mirrored).all() and 600 < mirrored.sum() < 900


# --- drawing: the decoding matrix ----------------------------------------------------------------


SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 3},
    {"top_p": 0.8},
    {"guidance": 0.0},
    {"guidance": 3.0},
    {"guidance": 2.0, "temperature": 0.5, "top_k": 4, "top_p": 0.9},
]


@both
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_cached_equals_uncached(codes, settings, monkeypatch):
    model = make_dalle(codes=codes)
    fast, fast_logits = decode(model, TEXT, monkeypatch, **settings)
    slow, slow_logits = decode(model, TEXT, monkeypatch, use_cache=False, **settings)
    assert torch.equal(fast, slow) and fast.shape == (3, 3, 3)
    assert len(fast_logits) == 9 * len(codes)
    for a, b in zip(fast_logits, slow_logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_drawing_sees_the_logits_that_training_sees(codes, scale, monkeypatch):
    model = make_dalle(codes=codes)
    drawn, logits = decode(model, TEXT, monkeypatch, guidance=scale)
    conditional = model(TEXT, drawn).image
    unconditional = model(torch.zeros_like(TEXT), drawn).image
    for number, found in enumerate(logits):
        place, factor = divmod(number, len(codes))
        pair = (conditional[factor][:, place], unconditional[factor][:, place])
        torch.testing.assert_close(found, guide(*pair, scale), rtol=0, atol=1e-4)


@both
def test_guidance_0_ignores_the_caption(codes, monkeypatch):
    model = make_dalle(codes=codes)
    empty = torch.zeros_like(TEXT)
    with_caption, _ = decode(model, TEXT, monkeypatch, guidance=0.0)
    without, _ = decode(model, empty, monkeypatch, guidance=1.0)
    assert torch.equal(with_caption, without)


def test_the_caption_changes_what_is_drawn(monkeypatch):
    model = make_dalle()
    drawn, _ = decode(model, TEXT, monkeypatch, temperature=0.0)
    assert len(drawn.flatten(1).unique(dim=0)) == 3


def test_greedy_drawing_takes_the_likeliest_code(monkeypatch):
    model = make_dalle()
    drawn, logits = decode(model, TEXT, monkeypatch, temperature=0.0)
    assert torch.equal(drawn.flatten(1), torch.stack(logits, dim=1).argmax(-1))


@both
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_batch_of_captions_is_each_alone(codes, scale, monkeypatch):
    model = make_dalle(codes=codes)
    together, _ = decode(model, TEXT, monkeypatch, temperature=0.0, guidance=scale)
    for row, text in zip(together, TEXT, strict=True):
        alone, _ = decode(model, text[None], monkeypatch, temperature=0.0, guidance=scale)
        assert torch.equal(alone[0], row)


@both
def test_codes_are_below_the_vocabulary(codes, monkeypatch):
    model = make_dalle(codes=codes)
    drawn, _ = decode(model, TEXT.repeat(20, 1), monkeypatch, temperature=5.0)
    assert 0 <= drawn.min() and drawn.max() < math.prod(codes)
    assert len(drawn.unique()) > math.prod(codes) // 2


def test_drawing_changes_no_tensor_of_the_caller(monkeypatch):
    model, text = make_dalle(), TEXT.clone()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    decode(model, text, monkeypatch, guidance=2.0)
    assert torch.equal(text, TEXT)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


# --- from prompts to pictures --------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_whatever_else_was_drawn():
    model, before = make_painter(), torch.get_rng_state()
    first = model.generate(WORDS, 2, generator=generator(7), guidance=2.0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(13)
    second = model.generate(WORDS, 2, generator=generator(7), guidance=2.0)
    assert torch.equal(first, second)
    assert not torch.equal(first, model.generate(WORDS, 2, generator=generator(8), guidance=2.0))


def test_pictures_are_bytes_and_a_prompts_pictures_follow_one_another():
    pictures = make_painter().generate(WORDS, 3, generator=generator(), temperature=0.0)
    assert pictures.shape == (12, 3, 6, 6) and pictures.dtype == torch.uint8
    for of_one_prompt in pictures.split(3):
        assert (of_one_prompt == of_one_prompt[0]).all()
    assert len(pictures.flatten(1).unique(dim=0)) > 1


def test_a_prompts_pictures_differ():
    pictures = make_painter().generate(WORDS[0], 4, generator=generator(), temperature=2.0)
    assert len(pictures.flatten(1).unique(dim=0)) > 1


def test_one_prompt_needs_no_list():
    model = make_painter()
    single = model.generate(WORDS[0], generator=generator())
    assert torch.equal(single, model.generate([WORDS[0]], generator=generator()))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_greedy_pictures_do_not_depend_on_the_batch_size(batch_size):
    model, settings = make_painter(), {"temperature": 0.0, "guidance": 2.0}
    expected = torch.cat([model.generate(p, generator=generator(), **settings) for p in WORDS])
    found = ask(model, WORDS, generator=generator(), batch_size=batch_size, **settings)
    assert torch.equal(found, expected)


def test_progress_grows_code_by_code_and_paints_nothing():
    shares, model = [], make_painter()
    painted, original = [], model.painter.decode
    model.painter.decode = lambda codes: (painted.append(len(codes)), original(codes))[1]
    ask(model, WORDS, 2, generator=generator(), batch_size=3, progress=shares.append)
    done = [first + n * k / 9 for first, n in ((0, 3), (3, 3), (6, 2)) for k in range(1, 10)]
    assert sorted(set(shares)) == pytest.approx([pictures / 8 for pictures in done])
    assert shares == sorted(shares) and painted == [3, 3, 2]


def test_the_callers_prompts_are_not_changed():
    prompts = list(WORDS)
    make_painter().generate(prompts, 2, generator=generator())
    assert prompts == WORDS


def test_pictures_become_bytes_by_rounding():
    found = to_uint8(torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]))
    assert found.tolist() == [0, 0, 128, 191, 255, 255]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "0 pictures a prompt, 64 at a time: expected 1 or more"),
        ({"n": -1}, "-1 pictures a prompt"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"top_k": -2}, "top-k -2"),
        ({"top_p": 0.0}, "top-p 0.0"),
        ({"guidance": -0.5}, "guidance -0.5"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings, message):
    with pytest.raises(UserError, match=message):
        make_painter().generate(WORDS, generator=generator(), **settings)


def test_a_prompt_that_is_too_long_is_an_error_unless_it_may_be_cut():
    model, long = make_painter(), "a red circle " * 20
    with pytest.raises(UserError, match="too long"):
        model.generate(long, generator=generator())
    assert len(ask(model, long, generator=generator(), truncate=True)) == 1


def test_a_model_without_tokenizer_or_painter_says_how_to_get_one():
    model = make_painter()
    model.tokenizer = None
    with pytest.raises(UserError, match="no tokenizer: load it with minimodal.load"):
        model.generate(WORDS, generator=generator())
    with pytest.raises(UserError, match="no VQGAN to decode with"):
        make_dalle().generate(WORDS, generator=generator())


def test_an_empty_list_of_prompts_is_an_error():
    with pytest.raises(UserError, match="no prompts"):
        make_painter().generate([], generator=generator())


def test_a_new_model_finds_every_token_about_equally_likely():
    model = seeded(lambda: DALLE(make_dalle().config), 0)
    _, parts = model.loss(TEXT, codes_for(model))
    assert parts["text_loss"].item() == pytest.approx(math.log(25), rel=0.05)
    assert parts["image_loss"].item() == pytest.approx(math.log(11), rel=0.05)
