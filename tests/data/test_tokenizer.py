"""The tokenizer loses nothing, learns the same from the same texts, and says what is wrong."""

import json
import pickle
import random
import sys
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minimodal.data import tokenizer as module
from minimodal.data.tokenizer import FIRST_MERGE, Tokenizer, learn_merges, split
from minimodal.errors import UserError

CAPTIONS = [
    "a large red circle above a small blue square",
    "two small stars on gray",
    "a big box with a little violet star above it",
    "Against black a plus below a tiny orange disc",
] * 3
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LEARNED = Tokenizer.train(CAPTIONS, 400, lower=True)
EXACT = Tokenizer.train(CAPTIONS, 400)


# --- pieces --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(ANY_TEXT)
def test_pieces_joined_are_the_text(text):
    assert "".join(split(text)) == text


def test_no_character_is_lost_by_splitting():
    every = "".join(map(chr, (i for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000)))
    assert "".join(split(every)) == every


def test_words_keep_their_space_and_digits_and_punctuation_stand_apart():
    assert split("two  red boxes, no. 42!?\n\nIt's_é") == [
        *("two", " ", " red", " boxes", ",", " no", ".", " 4", "2", "!?", "\n", "\n"),
        *("It", "'", "s", "_", "é"),
    ]


def test_a_piece_has_at_most_33_characters():
    text = " " + "x" * 1000 + "!" * 1000 + " " * 1000 + "7" * 100
    assert max(map(len, split(text))) == 33
    assert "".join(split(text)) == text


# --- round trip ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(ANY_TEXT)
def test_decoding_gives_the_text_back(text):
    assert EXACT.decode(EXACT.encode(text)) == text


@settings(deadline=None)
@given(ANY_TEXT)
def test_decoding_gives_the_text_in_small_letters(text):
    assert LEARNED.decode(LEARNED.encode(text)) == text.lower()


@settings(deadline=None)
@given(st.lists(st.sampled_from(" aArdeblu<|n>2é\n😀"), max_size=80).map("".join))
def test_decoding_gives_back_texts_full_of_merges(text):
    assert EXACT.decode(EXACT.encode(text)) == text


def test_control_characters_and_emoji_survive():
    text = "\x00\x1f\x7f\u2028 \u200d👩‍🚀\ufeff\r\n\t\U0010ffff"
    assert EXACT.decode(EXACT.encode(text)) == text


def test_a_lone_surrogate_becomes_a_question_mark():
    assert EXACT.decode(EXACT.encode("a\ud800b")) == "a?b"


def test_special_tokens_in_a_text_are_ordinary_characters():
    text = "a <|end|> of <|pad|><|start|>"
    ids = EXACT.encode(text)
    assert min(ids) >= 3
    assert EXACT.decode(ids) == text


def test_decoding_leaves_specials_out():
    ids = LEARNED.encode("red box")
    assert LEARNED.decode([1, *ids, 2, 0, 0]) == "red box"


def test_decoding_replaces_what_is_no_utf8():
    assert EXACT.decode([3 + 0xFF, 3 + ord("a")]) == "\ufffda"


def test_decoding_takes_a_row_of_tokens():
    assert LEARNED.decode(LEARNED("red box", 10)[0]) == "red box"


@pytest.mark.parametrize("bad", [-1, 400_000])
def test_an_id_outside_the_vocabulary_is_refused(bad):
    with pytest.raises(UserError, match=str(bad)):
        LEARNED.decode([bad])


def test_no_text_gives_no_ids():
    assert LEARNED.encode("") == []
    assert LEARNED.decode([]) == ""


def test_small_and_capital_letters_are_one_only_if_asked():
    assert LEARNED.encode("RED Box") == LEARNED.encode("red box")
    assert EXACT.encode("RED Box") != EXACT.encode("red box")


def test_the_cache_changes_nothing_and_stays_bounded(monkeypatch):
    monkeypatch.setattr(module, "CACHE_WORDS", 5)
    fresh, used = Tokenizer(LEARNED.merges), Tokenizer(LEARNED.merges)
    texts = [f"word{a}{b} red circles" for a in "abcd" for b in "efgh"]
    first = [used.encode(text) for text in texts]
    assert [used.encode(text) for text in texts] == first
    assert [Tokenizer(fresh.merges).encode(text) for text in texts] == first
    assert len(used._cache) <= 5


def test_a_caller_may_change_the_list_that_encode_gave():
    ids = LEARNED.encode("red")
    ids.append(7)
    assert LEARNED.encode("red") == ids[:-1]


def test_pickling_leaves_the_cache_behind():
    used = Tokenizer(LEARNED.merges)
    used.encode("red circle")
    copy = pickle.loads(pickle.dumps(used))
    assert used._cache and not copy._cache
    assert copy.encode("red circle") == used.encode("red circle")


# --- training ------------------------------------------------------------------------------------


def naive_merges(words, count):
    """Byte-pair encoding as the paper's figure 1 has it: count all pairs anew for each merge."""
    texts = {word: module.to_ids(word) for word in words}
    merges = []
    for _ in range(count):
        pairs = Counter()
        for word, ids in texts.items():
            for pair in pairwise(ids):
                pairs[pair] += words[word]
        table = module.token_bytes(merges)
        pairs = {pair: n for pair, n in pairs.items() if n >= 2}
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], table[p[0]], table[p[1]], p))
        new = FIRST_MERGE + len(merges)
        merges.append(best)
        texts = {word: module.merge(ids, best, new) for word, ids in texts.items()}
    return merges


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=12), st.integers(1, 5), max_size=8),
    st.integers(0, 20),
)
def test_incremental_counts_learn_what_recounting_learns(words, count):
    assert learn_merges(words, count) == naive_merges(words, count)


def test_the_most_frequent_pair_comes_first_and_ties_go_by_the_alphabet():
    learned = Tokenizer.train(["zz", "zz", "bc", "bc", "xy", "xy", "xy"], 1000)
    spelled = [learned.decode([id_]) for id_ in range(FIRST_MERGE, learned.vocab_size)]
    assert spelled == ["xy", "bc", "zz"]


def test_merges_never_cross_a_word():
    learned = Tokenizer.train(["ab cd"] * 10, 1000)
    spelled = {learned.decode([id_]) for id_ in range(FIRST_MERGE, learned.vocab_size)}
    assert spelled == {"ab", " c", " cd"}


def test_the_order_of_the_texts_does_not_matter():
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert Tokenizer.train(shuffled, 400, lower=True).merges == LEARNED.merges


def test_training_takes_a_generator():
    assert Tokenizer.train((text for text in CAPTIONS), 400, lower=True).merges == LEARNED.merges


def test_training_stops_where_no_pair_occurs_twice():
    learned = Tokenizer.train(["abcdef"], 1000)
    assert learned.vocab_size == FIRST_MERGE
    assert Tokenizer.train([], 1000).vocab_size == FIRST_MERGE


def test_the_vocabulary_has_the_size_asked_for():
    assert Tokenizer.train(CAPTIONS, 300).vocab_size == 300


def test_frequent_words_become_single_tokens():
    learned = Tokenizer.train(CAPTIONS, 1000)
    assert len(learned.encode(" star above")) == 2


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(UserError, match="258.*259"):
        Tokenizer.train(CAPTIONS, 258)


def test_one_string_in_place_of_a_list_is_refused():
    with pytest.raises(UserError, match="list"):
        Tokenizer.train("a red circle", 300)


def test_fifty_thousand_words_fill_a_vocabulary():
    draw = random.Random(0)
    syllables = ["".join(draw.choices("bcdfghklmnprst", k=1)) + v for v in "aeiou" * 12]
    words = {"".join(draw.choices(syllables, k=draw.randint(2, 5))) for _ in range(60_000)}
    words = sorted(words)[:50_000]
    assert Tokenizer.train(words, 4096).vocab_size == 4096


# --- rows of tokens ------------------------------------------------------------------------------


def test_a_row_is_start_text_end_padding():
    ids = LEARNED.encode("red box")
    rows = LEARNED(["red box", ""], len(ids) + 4)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[1, *ids, 2, 0, 0], [1, 2] + [0] * (len(ids) + 2)]


def test_a_row_without_start_and_end_is_text_padding():
    ids = LEARNED.encode("red box")
    assert LEARNED("red box", len(ids) + 1, start_and_end=False).tolist() == [[*ids, 0]]


def test_a_text_that_just_fits_is_whole():
    ids = LEARNED.encode("red box")
    assert LEARNED("red box", len(ids) + 2).tolist() == [[1, *ids, 2]]
    assert LEARNED("red box", len(ids), start_and_end=False).tolist() == [ids]


def test_a_text_too_long_is_named_with_its_length_and_the_limit():
    text = "a large red circle\nabove a small blue square"
    length = len(LEARNED.encode(text)) + 2
    with pytest.raises(UserError, match=f"'a large red circle above a…'.* {length} .*{length - 1}"):
        LEARNED(["ok", text], length - 1)


def test_a_truncated_row_ends_with_the_end_token():
    ids = LEARNED.encode("a large red circle")
    assert LEARNED("a large red circle", 4, truncate=True).tolist() == [[1, *ids[:2], 2]]


def test_a_truncated_row_without_start_and_end_is_the_texts_beginning():
    ids = LEARNED.encode("a large red circle")
    rows = LEARNED("a large red circle", 2, truncate=True, start_and_end=False)
    assert rows.tolist() == [ids[:2]]


def test_no_texts_give_no_rows():
    assert LEARNED([], 7).shape == (0, 7)


@pytest.mark.parametrize(("length", "start_and_end"), [(1, True), (0, False)])
def test_a_context_without_room_is_refused(length, start_and_end):
    with pytest.raises(UserError, match="no room"):
        LEARNED("red", length, truncate=True, start_and_end=start_and_end)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("original", [LEARNED, EXACT, Tokenizer()])
def test_a_loaded_tokenizer_is_the_saved_one(original, tmp_path):
    original.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.merges, loaded.lower) == (original.merges, original.lower)
    assert loaded.encode("Two RED é😀 stars") == original.encode("Two RED é😀 stars")


@settings(deadline=None, max_examples=50)
@given(st.lists(ANY_TEXT, max_size=5).map(lambda texts: texts * 2))
def test_whatever_was_learned_can_be_saved(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    original = Tokenizer.train(texts, 300, lower=False)
    original.save(path)
    assert Tokenizer.load(path).merges == original.merges


def test_saving_leaves_one_file_that_a_person_can_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer.train([" red red"], 300).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    assert '" red"]' in path.read_text(encoding="utf-8")


def damaged(change):
    """LEARNED as JSON with something changed."""
    stored = {
        "kind": module.KIND,
        "version": 1,
        "lower": True,
        "specials": list(module.SPECIALS),
        "merges": [[100, 104, "ae"], [105, 106, "fg"]],
    }
    change(stored)
    return json.dumps(stored)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not JSON",
        "[1, 2]",
        '{"model": {"type": "BPE"}}',
        "[" * 100_000,
        damaged(lambda s: s.update(kind="other")),
        damaged(lambda s: s.update(version=2)),
        damaged(lambda s: s.update(lower="yes")),
        damaged(lambda s: s.update(specials=["<s>"])),
        damaged(lambda s: s.pop("merges")),
        damaged(lambda s: s["merges"].append([100, 104, "ae"])),
        damaged(lambda s: s["merges"].append([100, 999, "a?"])),
        damaged(lambda s: s["merges"].append([261, 100, "?a"])),
        damaged(lambda s: s["merges"].append([1, 100, "a"])),
        damaged(lambda s: s["merges"].append([True, 100, "a"])),
        damaged(lambda s: s["merges"].append([100, 105])),
        damaged(lambda s: s["merges"].append([100, 105, 7])),
        damaged(lambda s: s["merges"].append([100, 105, "xx"])),
    ],
    ids=range(18),
)
def test_a_damaged_file_is_named(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match="tokenizer.json"):
        Tokenizer.load(path)


def test_the_example_that_the_damages_start_from_is_good(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(damaged(lambda s: None))
    assert Tokenizer.load(path).vocab_size == FIRST_MERGE + 2


def test_every_cut_of_a_file_is_noticed(tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer.train(CAPTIONS, 270).save(path)
    whole = path.read_bytes().rstrip()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            Tokenizer.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.json"):
        Tokenizer.load(tmp_path / "nowhere.json")


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="model.safetensors"):
        Tokenizer.load(path)
