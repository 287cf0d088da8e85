"""The Shapes world: its scenes, pictures, captions and the parser."""

import hashlib
import re
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimodal.data.tokenizer import split
from minimodal.errors import UserError
from minimodal.shapes.language import DRAWS, LONGEST, LOOSE_DRAWS, captions, parse
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.world import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    LATTICE,
    OPPOSITE,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scenes,
    draw_contrast,
    draw_scenes,
    has_held_out,
    render,
    swap,
    without_relation,
)

MANY = np.arange(5000)
# What loose captions have and strict ones do not.
TRAITS = {
    "no article": r"(?<!two )(?<!a )\b(?:small|little|tiny|large|big) ",
    "and": r" and ",
    "comma": r", ",
    "next to": r" next to ",
    "beside": r" beside ",
    "with": r" with (?!.* (?:it|its \w+)\b)(?!a \w+ background)",
    "background": r" background\b",
    "there is": r"\bthere is ",
    "there are": r"\bthere are two ",
    "picture of": r"^(?:a )?picture of ",
}


def equal(a: Scenes, b: Scenes) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


def objects(scenes: Scenes, row: int) -> list[tuple[str, str, str]]:
    return [
        (
            SHAPES[scenes.shape[row, k]],
            tuple(COLORS)[scenes.color[row, k]],
            SIZES[scenes.size[row, k]],
        )
        for k in range(scenes.count[row])
    ]


def statement(scenes: Scenes, row: int) -> str:
    """All that can be said of a scene, the same whichever object is named first."""
    have, relation = objects(scenes, row), RELATIONS[scenes.relation[row]]
    orders = [(have, relation), (have[::-1], OPPOSITE[relation])][: len(have)]
    return f"{min(orders)} {scenes.background[row]}"


def agrees(said, have) -> bool:
    return all(s is None or s == h for s, h in zip(said, have, strict=True))


def satisfies(spec, scenes: Scenes, row: int) -> bool:
    """Whether scene `row` is what the caption says, under either order of its objects."""
    have = objects(scenes, row)
    ground = tuple(BACKGROUNDS)[scenes.background[row]]
    if spec.count != len(have) or spec.background not in (None, ground):
        return False
    if len(have) == 1:
        return spec.relation is None and agrees(spec.objects[0], have[0])
    relation = RELATIONS[scenes.relation[row]]
    return any(
        spec.relation in (None, r) and all(map(agrees, spec.objects, order))
        for order, r in ((have, relation), (have[::-1], OPPOSITE[relation]))
    )


_THING = r"an? (?:(?:small|little|tiny|large|big) )?(?:(?!two)\w+ )?\w+"
_PLACE = r"(?:(?:to the )?(?:left|right) of|above|over|below|under|beneath)"
_ITS = r"(?:to its (?:left|right)|above it|below it)"
_THINGS = rf"(?:{_THING}|{_THING} {_PLACE} {_THING}|{_THING} with {_THING} {_ITS}|two [\w ]+s)"
_ON = r"(?:on|against) (?:white|black|gray|grey)"
_STRICT = re.compile(rf"(?:{_ON} )?{_THINGS}(?: {_ON})?")


def strict_form(text: str) -> bool:
    return _STRICT.fullmatch(text) is not None and "background" not in text


# --- scenes -----------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**63), index=st.integers(0, 2**40))
@settings(max_examples=30, deadline=None)
def test_a_scene_alone_is_the_scene_in_a_batch(seed, index):
    batch = draw_scenes(seed, np.arange(index, index + 20))
    assert equal(batch[7], draw_scenes(seed, np.array([index + 7])))
    group = draw_contrast(seed, np.arange(index, index + 20), stream=1)
    assert equal(group[7], draw_contrast(seed, np.array([index + 7]), stream=1))


def test_seeds_splits_and_contrast_give_different_scenes():
    sources = [
        ShapesSource(0),
        ShapesSource(1),
        ShapesSource(0, split="val"),
        ShapesSource(0, contrast=True),
    ]
    scenes = [s.scenes(np.arange(200)) for s in sources]
    for i in range(4):
        for j in range(i):
            same = (scenes[i].x[:, 0] == scenes[j].x[:, 0]) & (
                scenes[i].color[:, 0] == scenes[j].color[:, 0]
            )
            assert same.mean() < 0.3


def test_every_value_is_drawn_about_equally_often():
    scenes = draw_scenes(0, np.arange(40_000), pairs="all")
    assert abs((scenes.count == 1).mean() - 0.4) < 0.01
    for values, n in (
        (scenes.shape[:, 0], 6),
        (scenes.color[:, 0], 8),
        (scenes.size[:, 0], 2),
        (scenes.background, 3),
        (scenes.relation[scenes.count == 2], 4),
        (scenes.x[scenes.count == 1, 0] // 4 - 2, 5),
    ):
        share = np.bincount(values, minlength=n) / len(values)
        assert len(share) == n and np.abs(share * n - 1).max() < 0.06


def test_held_out_pairs_cover_each_shape_once_and_no_color_twice():
    assert sorted(s for _, s in HELD_OUT) == sorted(SHAPES)
    assert len({c for c, _ in HELD_OUT}) == len(HELD_OUT)


@pytest.mark.parametrize("contrast", [False, True])
def test_training_never_shows_or_names_a_held_out_pair(contrast):
    source = ShapesSource(3, contrast=contrast)
    scenes = source.scenes(np.arange(20_000))
    assert not has_held_out(scenes).any()
    for caption in source.captions(MANY[:4000], np.random.default_rng(0)):
        assert not any((o.color, o.shape) in HELD_OUT for o in parse(caption).objects)


def test_held_out_scenes_all_have_a_held_out_pair_and_all_of_them_come():
    scenes = ShapesSource(3, pairs="held_out").scenes(MANY)
    assert has_held_out(scenes).all()
    seen = {(c, s) for row in range(500) for s, c, _ in objects(scenes, row)}
    assert set(HELD_OUT) <= seen


def test_objects_stay_on_the_lattice_inside_the_picture_and_apart():
    scenes = draw_scenes(1, MANY)
    radius = np.array(RADIUS)[scenes.size]
    for k in (0, 1):
        there = scenes.count > k
        for centre in (scenes.x[there, k], scenes.y[there, k]):
            assert np.isin(centre, LATTICE).all()
            assert (centre >= radius[there, k]).all() and (centre + radius[there, k] <= 32).all()
    two = scenes[scenes.count == 2]
    dx, dy = two.x[:, 0] - two.x[:, 1], two.y[:, 0] - two.y[:, 1]
    along, across = np.maximum(abs(dx), abs(dy)), np.minimum(abs(dx), abs(dy))
    assert (along - np.array(RADIUS)[two.size].sum(axis=1) >= 2).all() and (across <= 4).all()
    expected = np.where(abs(dx) > abs(dy), (dx > 0) * 1, 2 + (dy > 0))
    assert np.array_equal(expected, two.relation)


def test_absent_objects_hold_minus_one():
    scenes = draw_scenes(1, MANY)
    one = scenes[scenes.count == 1]
    for field in (one.shape, one.color, one.size, one.x, one.y):
        assert (field[:, 1] == -1).all() and (field[:, 0] >= 0).all()
    assert (one.relation == -1).all()


@pytest.mark.parametrize(
    "what, changed",
    [("color", {"color"}), ("shape", {"shape"}), ("relation", {"x", "y", "relation"})],
)
def test_a_swap_changes_what_it_says_and_twice_is_nothing(what, changed):
    scenes = draw_scenes(2, MANY)
    scenes = scenes[scenes.count == 2]
    swapped = swap(scenes, what)
    for field in fields(scenes):
        same = np.array_equal(getattr(scenes, field.name), getattr(swapped, field.name))
        assert same == (field.name not in changed)
    assert equal(swap(swapped, what), scenes)


def test_a_swap_of_one_object_is_refused():
    scenes = draw_scenes(2, np.arange(50))
    with pytest.raises(ValueError, match="two objects"):
        swap(scenes[scenes.count == 1], "color")


# --- contrast groups --------------------------------------------------------------------------


def related_groups(scenes):
    """The first members of the groups that are variants of one scene."""
    first, second = scenes[::4], scenes[1::4]
    two = np.flatnonzero((first.count == 2) & (second.count == 2))
    reversed_ = swap(first[two], "relation")
    return 4 * two[[equal(reversed_[[i]], second[two[[i]]]) for i in range(len(two))]]


def test_half_of_the_contrast_groups_are_one_scene_in_four_variants():
    scenes = ShapesSource(0, contrast=True).scenes(np.arange(4000))
    starts = related_groups(scenes)
    assert 0.45 < len(starts) / 1000 < 0.55
    seen = set()
    for start in starts:
        base, third, fourth = (scenes[[start + k]] for k in (0, 2, 3))
        fits = [what for what in ("color", "shape", "axis") if equal(swap(base, what), third)]
        if not fits:  # then one shape is another, and nothing else
            same = [
                f.name
                for f in fields(base)
                if (getattr(base, f.name) == getattr(third, f.name)).all()
            ]
            assert set(same) == {f.name for f in fields(base)} - {"shape"}
            assert (base.shape != third.shape).sum() == 1
            fits = ["replaced"]
        assert equal(swap(third, "relation"), fourth)
        seen.update(fits)
    assert seen == {"color", "shape", "axis", "replaced"}
    assert not has_held_out(scenes).any()


def test_a_quarter_of_the_related_groups_have_one_color_so_that_only_shapes_tell_objects_apart():
    scenes = ShapesSource(0, contrast=True).scenes(np.arange(8000))
    base = scenes[related_groups(scenes)]
    one_color = base.color[:, 0] == base.color[:, 1]
    assert 0.22 < one_color.mean() < 0.28
    assert (base.shape[one_color, 0] != base.shape[one_color, 1]).all()


def test_training_states_relations_last_twice_as_often_as_the_scores_do():
    source, rng = ShapesSource(0), np.random.default_rng(0)

    def share(texts: list[str]) -> float:
        two = [text for text in texts if parse(text).relation is not None]
        last = [re.search(r" with .* (?:its (?:left|right)|(?:above|below) it)", t) for t in two]
        return np.mean([found is not None for found in last])

    numbers = np.arange(4000)
    assert share(source.captions(numbers, rng)) > 2 * share(source.full_captions(numbers, rng)) > 0


def contrast_captions(n: int) -> tuple[Scenes, list[str]]:
    source, indices = ShapesSource(0, contrast=True), np.arange(n)
    return source.scenes(indices), source.captions(indices, np.random.default_rng(0))


def test_captions_of_related_scenes_share_their_template_and_fit_one_scene_only():
    scenes, texts = contrast_captions(2000)
    for start in related_groups(scenes):
        group = texts[start : start + 4]
        assert len({len(text.split()) for text in group[:2]}) == 1
        for k, text in enumerate(group):
            spec = parse(text)
            assert all(None not in o for o in spec.objects)
            fits = [satisfies(spec, scenes, start + j) for j in range(4)]
            assert fits == [j == k for j in range(4)]


def test_captions_of_a_group_differ_wherever_its_scenes_do():
    scenes, texts = contrast_captions(8000)
    for start in range(0, 8000, 4):
        said = {statement(scenes, row) for row in range(start, start + 4)}
        group = texts[start : start + 4]
        assert len(set(group)) >= len(said), group


def test_related_scenes_always_say_where_objects_are_and_a_quarter_of_the_others_do_not():
    scenes, texts = contrast_captions(8000)
    unsaid = np.array([s.count == 2 and s.relation is None for s in map(parse, texts)])
    unsaid = unsaid.reshape(-1, 4).any(axis=1)
    related = np.zeros(2000, bool)
    related[np.array(related_groups(scenes)) // 4] = True
    assert not unsaid[related].any() and 0.18 < unsaid[~related].mean() < 0.26


def test_groups_are_loose_in_form_and_state_every_size_and_color():
    scenes, texts = contrast_captions(4000)
    for row, text in enumerate(texts):
        spec = parse(text)
        assert satisfies(spec, scenes, row) and all(None not in o for o in spec.objects), text
    for name, trait in TRAITS.items():
        share = np.mean([re.search(trait, text) is not None for text in texts])
        assert share > 0.005 or name == "there are", (name, share)


def test_a_part_of_a_group_is_captioned_as_in_the_whole():
    source, whole = ShapesSource(0, contrast=True), np.arange(40)
    texts = source.captions(whole, np.random.default_rng(0))
    part = np.delete(whole, [3, 4, 18])
    assert source.captions(part, np.random.default_rng(0)) == [texts[i] for i in part]


def test_without_their_relation_scenes_say_the_same_in_either_order():
    scenes = draw_scenes(0, np.arange(20_000), pairs="all")
    said = without_relation(scenes).tolist()
    meant = [
        (sorted(objects(scenes, row)), scenes.background[row].item()) for row in range(len(said))
    ]
    names = dict(zip(said, meant, strict=True))
    assert [names[number] for number in said] == meant
    assert len(names) == len({str(m) for m in meant})


# --- captions ---------------------------------------------------------------------------------


def test_captions_parse_back_to_what_the_scene_is():
    for pairs in ("seen", "all"):
        source = ShapesSource(1, pairs=pairs)
        scenes = source.scenes(MANY)
        for row, text in enumerate(source.captions(MANY, np.random.default_rng(1))):
            assert satisfies(parse(text), scenes, row), text
            assert text == " ".join(text.split()) == text.lower()


@given(seed=st.integers(0, 2**63), full=st.booleans())
@settings(max_examples=50, deadline=None)
def test_loose_captions_are_true_and_full_ones_say_everything(seed, full):
    scenes = draw_scenes(seed, np.arange(100), pairs="all")
    draws = np.random.default_rng(seed).random((100, LOOSE_DRAWS))
    for row, text in enumerate(captions(scenes, draws, full=full, loose=1.0)):
        spec = parse(text)
        assert satisfies(spec, scenes, row), text
        if full:
            assert spec.background and all(None not in o for o in spec.objects)
            assert (spec.relation is not None) == (spec.count == 2)


@pytest.mark.parametrize("trait", TRAITS)
def test_each_loose_trait_is_in_one_training_caption_of_a_hundred_and_in_no_strict_one(trait):
    source, rng = ShapesSource(1), np.random.default_rng(1)
    texts = source.captions(np.arange(20_000), rng)
    share = np.mean([re.search(TRAITS[trait], text) is not None for text in texts])
    assert 0.01 < share < 0.3, share
    strict = captions(source.scenes(MANY), rng.random((len(MANY), DRAWS)))
    strict += source.full_captions(MANY, rng)
    assert not any(re.search(TRAITS[trait], text) for text in strict)


def test_four_in_ten_training_captions_are_strict():
    source, rng = ShapesSource(1), np.random.default_rng(1)
    strict = [strict_form(text) for text in source.captions(MANY, rng)]
    assert 0.36 < np.mean(strict) < 0.44
    assert all(map(strict_form, source.full_captions(MANY, rng)))


def test_every_loose_caption_is_one_that_strict_ones_never_are():
    for pairs in ("seen", "held_out"):
        texts = ShapesSource(1, pairs=pairs).loose_captions(MANY, np.random.default_rng(1))
        assert not any(map(strict_form, texts))


def test_loose_captions_have_no_word_that_training_has_not():
    def words(texts):
        return {piece.strip() for text in texts for piece in split(text)}

    rng = np.random.default_rng(1)
    training = words(ShapesSource(1).captions(np.arange(10_000), rng))
    assert words(ShapesSource(1, split="val").loose_captions(MANY, rng)) <= training
    assert words(ShapesSource(1, contrast=True).captions(np.arange(4000), rng)) <= training


def test_no_caption_has_more_tokens_than_it_may_and_a_tokenizer_meets_such_long_ones():
    source, rng = ShapesSource(1), np.random.default_rng(1)
    draws = rng.random((20_000, LOOSE_DRAWS))
    texts = captions(source.scenes(np.arange(20_000)), draws, full=True, loose=1.0)
    assert max(len(split(text)) for text in texts) == LONGEST
    met = [len(split(text)) for text in source.captions(MANY, rng)]
    assert max(met) == LONGEST


def test_full_captions_are_those_that_scores_were_measured_with():
    source = ShapesSource(0, split="val")
    texts = source.full_captions(np.arange(2000), np.random.default_rng(0))
    assert texts[:2] == [
        "a big blue circle right of a large yellow box on white",
        "a large green star against gray",
    ]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert digest == "3a8949624cabee97ac03561b84e29ec75a24e78d371ff7f2577a36faf9abe822"


def test_full_captions_state_everything():
    source = ShapesSource(1)
    for text in source.full_captions(MANY, np.random.default_rng(1)):
        spec = parse(text)
        assert spec.background and all(None not in o for o in spec.objects)
        assert (spec.relation is not None) == (spec.count == 2)


def test_every_word_of_the_grammar_is_used_and_articles_fit():
    texts = ShapesSource(1).captions(np.arange(20_000), np.random.default_rng(1))
    words = {word for text in texts for word in text.split()}
    expected = (
        "circle disc square box triangle star cross plus ring donut small little tiny large big "
        "red green blue yellow purple violet orange cyan turquoise pink white black gray grey left "
        "right above over below under beneath with its it two stars crosses boxes on against and "
        "next beside there is are picture background"
    )
    assert set(expected.split()) <= words
    assert not any(" a orange" in f" {text}" for text in texts)
    assert any("an orange" in text for text in texts)


@pytest.mark.parametrize("loose", [0.0, 0.5, 1.0])
def test_equal_draws_give_equal_captions(loose):
    scenes = draw_scenes(0, np.zeros(40, dtype=np.int64))
    draws = np.random.default_rng(0).random((20, LOOSE_DRAWS)).repeat(2, axis=0)
    texts = captions(scenes, draws, loose=loose)
    assert texts[::2] == texts[1::2] and len(set(texts)) > 10


@pytest.mark.parametrize(
    "text, count, first, relation, background",
    [
        ("red circle", 1, ("circle", "red", None), None, None),
        ("A red circle on a white background.", 1, ("circle", "red", None), None, "white"),
        ("  Two   small stars ", 2, ("star", None, "small"), None, None),
        ("a circle and a square", 2, ("circle", None, None), None, None),
        ("one red circle", 1, ("circle", "red", None), None, None),
        ("the red circle", 1, ("circle", "red", None), None, None),
        ("three red circles", 3, ("circle", "red", None), None, None),
        ("a red large box, on the left of a disc", 2, ("square", "red", "large"), "left", None),
        ("a big box with a tiny star to its left", 2, ("square", None, "large"), "right", None),
        ("a box with a star below it on grey", 2, ("square", None, None), "above", "gray"),
        ("a picture of a donut", 1, ("ring", None, None), None, None),
        ("on black, a plus beneath a star", 2, ("cross", None, None), "below", "black"),
        ("a red circle is above a blue square", 2, ("circle", "red", None), "above", None),
        ("a red shape", 1, (None, "red", None), None, None),
        ("purple star above green ring", 2, ("star", "purple", None), "above", None),
        ("a blue star and a red square", 2, ("star", "blue", None), None, None),
        ("blue circle, red square", 2, ("circle", "blue", None), None, None),
        ("Blue circle,red square , white background.", 2, ("circle", "blue", None), None, "white"),
        ("red circle, white background", 1, ("circle", "red", None), None, "white"),
        ("red circle with a white background", 1, ("circle", "red", None), None, "white"),
        ("white background with a red circle", 1, ("circle", "red", None), None, "white"),
        ("circle above square, black background", 2, ("circle", None, None), "above", "black"),
        ("there is a red circle and a blue square", 2, ("circle", "red", None), None, None),
        ("on gray there are two stars", 2, ("star", None, None), None, "gray"),
        ("a picture of two stars", 2, ("star", None, None), None, None),
        ("red star next to blue ring", 2, ("star", "red", None), None, None),
        ("a star beside a box on gray", 2, ("star", None, None), None, "gray"),
        ("a red circle left of a square", 2, ("circle", "red", None), "left", None),
        ("a large, red circle", 1, ("circle", "red", "large"), None, None),
        ("a star, the left of a box, a white background", 2, ("star", None, None), "left", "white"),
        ("a box with a star, above it, on white", 2, ("square", None, None), "below", "white"),
        ("a red circle, a blue box, and a star", 3, ("circle", "red", None), None, None),
    ],
)
def test_the_parser_reads_what_people_type(text, count, first, relation, background):
    spec = parse(text)
    assert (spec.count, len(spec.objects)) == (count, count)
    assert tuple(spec.objects[0]) == first
    assert (spec.relation, spec.background) == (relation, background)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a red circel", "no word 'circel'; did you mean 'circle'"),
        ("a zzz qqq", "no word 'zzz'"),
        ("a white circle", "expected a colour of shapes"),
        ("red circles", "how many there are"),
        ("two red circle", "expected 'circles'"),
        ("a red blue circle", "one size and one colour"),
        ("a red circle on a square", "expected a background"),
        ("a circle left of", "the caption ends"),
        ("a circle above it", "found 'its above'"),
        ("two stars above a circle", "two single shapes"),
        (" . ", "empty"),
        (",", "empty"),
        ("cirlce", "no word 'cirlce'; did you mean 'circle'"),
        ("two circles, one red and one blue", "after 'two circles, one red' expected a shape"),
        ("a circle, red", "after 'a circle, red' expected a shape"),
        ("red circle, white", "expected a colour of shapes"),
        ("a circle above a white background", "expected a colour of shapes"),
        ("a star, white background, on black", "the end, but found 'on'"),
        ("white background", "the caption ends"),
        ("a star there is", "found 'there is'"),
    ],
)
def test_the_parser_says_what_is_wrong(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


@given(
    st.lists(
        st.sampled_from(
            "a two red large circle stars left of on white with its it , background there is "
            "above and next to".split()
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_the_parser_reads_or_raises_a_user_error(words):
    try:
        spec = parse(" ".join(words))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert spec.count == len(spec.objects) >= 1


# --- pictures ---------------------------------------------------------------------------------


def test_pictures_have_the_exact_colors_of_their_scene():
    scenes = draw_scenes(0, np.arange(300), pairs="all")
    pictures = render(scenes)
    assert pictures.shape == (300, 3, 32, 32) and pictures.dtype == np.uint8
    grounds, palette = np.array(list(BACKGROUNDS.values())), np.array(list(COLORS.values()))
    for row in range(300):
        pixels = {tuple(p) for p in pictures[row].reshape(3, -1).T.tolist()}
        assert tuple(grounds[scenes.background[row]]) in pixels
        assert tuple(pictures[row, :, 0, 0]) == tuple(grounds[scenes.background[row]])
        for k in range(scenes.count[row]):
            assert tuple(palette[scenes.color[row, k]]) in pixels


def test_a_small_square_is_four_whole_patches():
    one = np.array([1])
    scene = Scenes(
        one,
        *(np.array([[v, -1]]) for v in (SHAPES.index("square"), 0, 0, 8, 12)),
        background=np.array([1]),
        relation=np.array([-1]),
    )
    picture = render(scene)[0]
    square = (picture == np.array(COLORS["red"])[:, None, None]).all(axis=0)
    expected = np.zeros((32, 32), dtype=bool)
    expected[8:16, 4:12] = True
    assert np.array_equal(square, expected)
    assert (picture[:, ~expected] == 0).all()


def test_a_large_picture_averages_to_the_small_one():
    scenes = draw_scenes(0, np.arange(100))
    small, large = render(scenes).astype(int), render(scenes, 128).astype(int)
    averaged = large.reshape(100, 3, 32, 4, 32, 4).mean(axis=(3, 5))
    assert np.abs(averaged - small).max() < 20 and np.abs(averaged - small).mean() < 0.2


@pytest.mark.parametrize("size", [16, 30, 100])
def test_any_size_renders(size):
    pictures = render(draw_scenes(0, np.arange(20)), size)
    assert pictures.shape == (20, 3, size, size)


def test_a_pictures_pixels_do_not_depend_on_its_batch():
    source = ShapesSource(0)
    batch = source.images(np.arange(300))
    assert np.array_equal(batch[250], source.images(np.array([250]))[0])


# --- the source -------------------------------------------------------------------------------


def test_all_captions_are_true_and_repeatable():
    source = ShapesSource(0, split="val", length=100)
    scenes = source.scenes(np.array([7]))
    texts = source.all_captions(7)
    assert len(texts) == 5 and texts == source.all_captions(7)
    assert all(satisfies(parse(text), scenes, 0) for text in texts)


def test_fingerprints_tell_sources_apart():
    variants = [
        ShapesSource(0),
        ShapesSource(1),
        ShapesSource(0, split="val"),
        ShapesSource(0, image_size=64),
        ShapesSource(0, pairs="all"),
        ShapesSource(0, contrast=True),
    ]
    assert len({s.fingerprint() for s in variants}) == len(variants)
    assert ShapesSource(0).fingerprint() == ShapesSource(0).fingerprint()


def test_bad_options_are_user_errors():
    for options in (
        {"split": "test"},
        {"pairs": "none"},
        {"contrast": True, "pairs": "held_out"},
        {"contrast": True, "length": 10},
        {"image_size": 2},
    ):
        with pytest.raises(UserError):
            ShapesSource(0, **options)
    with pytest.raises(IndexError):
        ShapesSource(0, length=10).images(np.array([10]))
