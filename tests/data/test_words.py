"""Known words: what counts as known, how prompts are read, and the file."""

import time

import pytest
from helpers.tiny import make_painter

from minimodal.data.images import ImageSource
from minimodal.data.tokenizer import Tokenizer, split
from minimodal.data.words import KnownWords
from minimodal.errors import UserError
from minimodal.shapes.language import parse
from minimodal.shapes.source import ShapesSource
from minimodal.training.captions import captions_of

CAPTIONS = ["a red circle", "Two small stars", "don't  stop\tnow", "5 cats, 12 dogs"]
KNOWN = KnownWords.of(CAPTIONS)


def test_words_are_the_pieces_of_every_caption():
    pieces = {piece for caption in CAPTIONS for piece in split(caption.lower()) if piece.strip()}
    assert KNOWN.pieces == pieces
    assert {"red", "stars", "don", "'", "t", "now", "1", "2", ","} < KNOWN.words


@pytest.mark.parametrize(
    "prompt", ["red circle", "circle", "a  red   circle ", "A RED circle.", "stars", "two circle"]
)
def test_words_that_training_had_are_known_wherever_they_stand(prompt):
    KNOWN.check([prompt])


@pytest.mark.parametrize(("prompt", "word"), [("a zebra", "zebra"), ("red! circle", "!"),
                                              (". a", "."), ("🎉 red", "🎉")])  # fmt: skip
def test_other_words_are_named(prompt, word):
    with pytest.raises(UserError, match=f"had '[{word}]+'"):
        KNOWN.check([prompt])


def test_nothing_is_refused_where_no_words_were_recorded():
    KnownWords().check(["a zebra"])
    assert KnownWords().readable(" star. ") == "star."


def test_a_first_word_that_only_stood_within_captions_is_read_as_it_stood_there():
    tokenizer = Tokenizer.train(CAPTIONS * 3, 400, lower=True)
    whole = tokenizer.encode("a red circle")
    assert tokenizer.encode(KNOWN.readable("red  circle.")) == whole[1:]
    assert KNOWN.readable("a red circle") == "a red circle" and KNOWN.readable("zebra") == "zebra"


def test_a_painter_reads_prompts_so():
    model = make_painter()
    model.words = KnownWords.of(["a red circle"])
    plain = model.tokenize(["a red circle"])[0]
    assert model.tokenize(["red circle"])[0][: len(plain) - 1].equal(plain[1:])


def test_words_of_rare_captions_count_and_pools_are_read_fast():
    lists = [["a cat", "a big cat on a mat in the sun"]] * 29_999 + [["a cat", "a zebra"]]
    source = ImageSource(name="x", pixels=None, caption_lists=lists)
    began = time.process_time()
    known = KnownWords.of(captions_of(source, 30_000))
    assert "zebra" in known.words and time.process_time() - began < 5


def test_a_world_without_end_has_all_its_words():
    source = ShapesSource(0)
    known = KnownWords.of(captions_of(source, 5000))
    assert KnownWords.of(source.all_captions(i)[0] for i in range(300)).words <= known.words
    known.check(["two crosses against grey", "violet donut", "a plus beneath a turquoise disc"])


PROMPTS = [
    "a purple star above a green ring", "purple star above green ring", "blue circle, red square",
    "a blue star and a red square", "a red circle on a white background", "two small stars",
    "red circle, white background", "there is a red circle and a blue square",
    "a picture of two stars", "Picture of a blue star.", "red star next to blue ring",
    "a star beside a box on gray", "a red circle left of a square", "There are two red stars",
    "circle above square, black background", "Blue circle,red square , on WHITE", "star, ring",
]  # fmt: skip


def test_prompts_that_people_type_are_known_and_read():
    known = KnownWords.of(captions_of(ShapesSource(0), 10_000))
    for prompt in PROMPTS:
        known.check([prompt])
        assert parse(prompt).count in (1, 2)
        # Each token is one that captions had, not a word without its space.
        assert set(split(known.readable(prompt).lower())) <= known.pieces, prompt


def test_marks_are_read_with_the_spaces_that_captions_had():
    assert KNOWN.readable("5 cats,dogs") == KNOWN.readable("5 cats , dogs") == "5 cats, dogs"
    assert KNOWN.readable("12 dogs") == " 12 dogs"  # not " 1 2"
    assert KNOWN.readable("don 't stop") == "don't stop"


@pytest.mark.parametrize(("typed", "meant"), [("cirlce", "circle"), ("dgos", "dogs")])
def test_a_typo_is_told_the_word_that_was_meant(typed, meant):
    with pytest.raises(UserError, match=f"had '{typed}', .*; did you mean '{meant}'"):
        KNOWN.check([f"a red {typed}"])
    with pytest.raises(UserError) as caught:
        KNOWN.check(["a zebra"])
    assert "did you mean" not in str(caught.value)


def test_the_file_holds_them(tmp_path):
    strange = KnownWords.of([*CAPTIONS, "日本 \ud800 é"])
    strange.save(tmp_path / "words.json")
    assert KnownWords.load(tmp_path / "words.json").pieces == strange.pieces
    assert not KnownWords.load(tmp_path / "none.json").words
    (tmp_path / "words.json").write_text("{}")
    with pytest.raises(UserError, match="words.json is damaged"):
        KnownWords.load(tmp_path / "words.json")
