"""CLIP's tokenizer gives the original's ids: on 200 strings of its own, and rule by rule."""

import gzip
import json
import pickle
import re
import sys
import types
import unicodedata
import warnings

import pytest
import torch
from helpers import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st

from minimodal.data.mending import clean, mend
from minimodal.errors import UserError
from minimodal.pretrained import clip_tokenizer as module
from minimodal.pretrained.clip_tokenizer import load_clip_tokenizer, split

TINY_FILE = FIXTURES / "tiny_merges.txt"
TINY = load_clip_tokenizer(TINY_FILE)
MERGES = [tuple(line.split(" ")) for line in TINY_FILE.read_text(encoding="utf-8").splitlines()[1:]]
START, END = "<|startoftext|>", "<|endoftext|>"
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def words(text):
    """What is left of a text before merging."""
    return [piece for word in clean(text).split() for piece in split(word)]


# --- against the original ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openai(shared):
    """The tokenizer from OpenAI's merges file, and strings with the ids of OpenAI's package."""
    folder = shared / "parity" / "tokenizer_openai"
    if not folder.is_dir():
        pytest.skip("needs shared/parity/tokenizer_openai")
    stored = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    return load_clip_tokenizer(folder / module.MERGES_FILE), stored


def test_ids_are_the_originals(openai):
    tokenizer, stored = openai
    assert len(stored["entries"]) == 200
    for entry in stored["entries"]:
        assert tokenizer.encode(entry["text"]) == entry["ids"], entry["text"]


def test_decoding_is_the_originals(openai):
    tokenizer, stored = openai
    for entry in stored["entries"]:
        assert tokenizer.decode(entry["ids"]) == entry["decoded"]


@pytest.mark.parametrize("length", [77, 16])
def test_truncated_rows_are_the_originals(openai, length):
    tokenizer, stored = openai
    rows = tokenizer([entry["text"] for entry in stored["entries"]], length, truncate=True)
    for entry, row in zip(stored["entries"], rows.tolist(), strict=True):
        expected = entry[f"clip_tokenize_{length}_truncate"]
        assert row == expected + [0] * (length - len(expected))


def test_what_the_original_finds_too_long_is_too_long(openai):
    tokenizer, stored = openai
    for entry in stored["entries"]:
        if entry["too_long_for_77"]:
            with pytest.raises(UserError, match="too long"):
                tokenizer(entry["text"])
        else:
            tokenizer(entry["text"])


def test_the_originals_vocabulary_has_49408_ids(openai):
    tokenizer, stored = openai
    assert tokenizer.vocab_size == stored["vocab_size"] == 49408
    assert (tokenizer.start_id, tokenizer.end_id) == (stored["sot_id"], stored["eot_id"])


# --- merging -------------------------------------------------------------------------------------


def slow_ids(piece):
    """BPE as the file states it: on strings, each merge in turn over the whole piece."""
    if piece in module.SPECIALS:
        return [TINY.vocab_size - 2 + module.SPECIALS.index(piece)]
    symbol = dict(zip(module.BYTES, module.SYMBOLS, strict=True))
    vocabulary = [*module.SYMBOLS, *(s + "</w>" for s in module.SYMBOLS), *map("".join, MERGES)]
    parts = [symbol[byte] for byte in piece.encode("utf-8")]
    parts[-1] += "</w>"
    while True:
        for left, right in MERGES:
            if (left, right) in zip(parts, parts[1:], strict=False):
                break
        else:
            return [vocabulary.index(part) for part in parts]
        joined, rest = [], parts
        while rest:
            size = 2 if rest[:2] == [left, right] else 1
            joined.append("".join(rest[:size]))
            rest = rest[size:]
        parts = joined


@pytest.mark.filterwarnings("ignore:.*character set")
@settings(deadline=None)
@given(st.lists(st.sampled_from("aArdebluetsqcfhé' 2.\n"), max_size=40).map("".join) | ANY_TEXT)
def test_merging_is_what_a_slow_reading_of_the_file_gives(text):
    assert TINY.encode(text) == [id_ for piece in words(text) for id_ in slow_ids(piece)]


def test_the_first_merge_goes_first_wherever_it_stands():
    # "a b" stands in the file before "c a".
    assert [TINY.decode([id_]) for id_ in TINY.encode("cable")] == ["c", "able "]


def test_all_bytes_have_two_ids_in_the_order_of_the_file():
    assert sorted(module.BYTES) == list(range(256))
    assert TINY.encode("!") == [256]
    assert TINY.encode("!!") == [0, 256]
    assert [TINY.decode([id_]) for id_ in (0, 93, 256)] == ["!", "~", "! "]


def test_a_word_encodes_the_same_with_and_without_the_cache(monkeypatch):
    monkeypatch.setattr(module, "CACHE_WORDS", 5)
    texts = [f"word{a}. red {START} x{b}!" for a in "abcd" for b in "efgh"]
    used = load_clip_tokenizer(TINY_FILE)
    first = [used.encode(text) for text in texts]
    assert [used.encode(text) for text in texts] == first == [TINY.encode(t) for t in texts]
    assert len(used._cache) <= 6


def test_a_caller_may_change_the_list_that_encode_gave():
    ids = TINY.encode("red")
    ids.append(7)
    assert TINY.encode("red") == ids[:-1]


def test_pickling_leaves_the_cache_behind():
    used = load_clip_tokenizer(TINY_FILE)
    used.encode("red circle")
    copy = pickle.loads(pickle.dumps(used))
    assert len(copy._cache) == 2
    assert copy.encode(f"red circle {END}") == used.encode(f"red circle {END}")


# --- pieces --------------------------------------------------------------------------------------


def test_special_tokens_in_a_text_are_the_special_ids():
    assert TINY.encode(f"a {START} b{END}.") == [
        *TINY.encode("a"), TINY.start_id, *TINY.encode("b"), TINY.end_id, *TINY.encode(".")
    ]  # fmt: skip
    assert TINY.encode(END.upper()) == [TINY.end_id]


def test_contractions_stand_apart():
    assert words("It's DON'T they'RE we'll 'tis") == [
        *("it", "'s", "don", "'t", "they", "'re", "we", "'ll", "'t", "is")
    ]


def test_letters_go_together_digits_alone_and_the_rest_in_runs():
    assert words("ab_c12 (x)!? ²Ⅷ日本語") == [
        *("ab", "_", "c", "1", "2", "(", "x", ")!?", "²", "ⅷ", "日本語")
    ]


def test_a_combining_mark_is_no_letter():
    assert words("कि") == ["क", "ि"]


def test_ignoring_case_finds_the_long_s_and_loses_the_subscript_iota():
    assert words("it'ſ") == ["it", "'ſ"]
    assert words("x\u0345y\u0345") == ["x", "y"]


def test_every_character_falls_in_the_class_of_its_category():
    kinds = {"letters": [], "numbers": [], "blanks": [], "others": []}
    for char in (chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000):
        kind = {"L": "letters", "N": "numbers"}.get(unicodedata.category(char)[0], "others")
        if char != "\u0345":
            kinds["blanks" if char.isspace() else kind].append(char)
    find = module.unicode_pieces().findall
    assert find("".join(kinds["letters"])) == ["".join(kinds["letters"])]
    assert find("".join(kinds["numbers"])) == kinds["numbers"]
    assert find("".join(kinds["others"])) == ["".join(kinds["others"])]
    assert find("".join(kinds["blanks"])) == []


@given(st.text(st.characters(max_codepoint=127)))
def test_the_fast_pattern_for_ascii_is_the_general_one(text):
    text = re.sub("[\x1c-\x1f]", " ", text.lower())  # none is there after cleaning
    assert split(text) == module.unicode_pieces().findall(text)


# --- cleaning ------------------------------------------------------------------------------------


def test_blanks_of_all_kinds_only_separate():
    assert words(" a\t\tb\r\nc\u3000d\u2028e\xa0f ") == list("abcdef")


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("“it’s”", '"it\'s"'),
        ("ﬁsh ŉ Ǆ", "fish 'n DŽ"),
        ("ﬅ", "ſt"),
        ("ＦＵＬＬ ｶﾞ", "FULL ガ"),
        ("e\u0301", "é"),
        ("\ufeffa\x00b\x0bc\x7f\ufffcd", "abcd"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\ud83d\ude00 \ud83d", "😀 \ufffd"),
        ("wait\x85 \x93so\x94", 'wait… "so"'),
        ("&eacute; &EACUTE; &#233; &#xe9;", "é É é é"),
        ("&eacute &nope; &#x3b;", "&eacute &nope; &#x3b;"),
        ("&amp;lt;", "<"),
        ("&lt;\n<b>&lt;\n&lt;", "<\n<b>&lt;\n&lt;"),
    ],
)
def test_text_is_mended_as_ftfy_does(broken, mended):
    assert mend(broken) == mended


def test_entities_are_resolved_twice_even_in_html():
    assert clean("<b>&amp;amp;lt; &eacute") == "<b>&lt; é"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_text_decoded_wrongly_is_read_again(encoding):
    assert mend("café crème 5€".encode().decode(encoding, "ignore")) == "café crème 5€"


def test_text_decoded_wrongly_twice_is_read_again_twice():
    once = "élève".encode().decode("cp1252")
    assert mend(once.encode().decode("cp1252")) == "élève"


@pytest.mark.parametrize("text", ["CAFÉ'S", "CLICHÉ…", "naïve", "ÀÉ", "5° ±2", "Ærø", "â"])
def test_text_that_is_right_is_left_alone(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mend(text) == text


def test_text_that_is_partly_wrong_is_named_in_a_warning():
    with pytest.warns(UserWarning, match="naïve cafÃ©.*character set"):
        assert mend("naïve cafÃ©") == "naïve cafÃ©"


# --- ids to text ---------------------------------------------------------------------------------


def test_decoding_puts_a_blank_behind_each_piece():
    assert TINY.decode(TINY.encode("It's  the Café!")) == "it 's the café ! "


def test_decoding_shows_start_and_end():
    assert TINY.decode(TINY("red", 3, truncate=True)[0]) == f"{START}red {END}"


def test_decoding_replaces_what_is_no_utf8():
    assert TINY.decode([module.BYTES.index(0xC3), 256]) == "\ufffd! "


@pytest.mark.parametrize("bad", [-1, 400_000])
def test_an_id_outside_the_vocabulary_is_refused(bad):
    with pytest.raises(UserError, match=str(bad)):
        TINY.decode([bad])


# --- rows of tokens ------------------------------------------------------------------------------


def test_a_row_is_start_text_end_zeros():
    ids, start, end = TINY.encode("red box"), TINY.start_id, TINY.end_id
    rows = TINY(["red box", ""])
    assert rows.dtype == torch.int64
    assert rows[0].tolist() == [start, *ids, end] + [0] * (75 - len(ids))
    assert rows[1].tolist() == [start, end] + [0] * 75


def test_one_string_is_one_row_and_none_is_no_row():
    fits = len(TINY.encode("red box")) + 2
    assert torch.equal(TINY("red box", fits), TINY(["red box"], context_length=fits))
    assert TINY([], 7).shape == (0, 7)


def test_a_truncated_row_ends_with_the_end_token():
    ids = TINY.encode("a large red circle")
    assert TINY("a large red circle", 4, truncate=True).tolist() == [
        [TINY.start_id, *ids[:2], TINY.end_id]
    ]


def test_a_text_too_long_is_named_with_its_length_and_the_limit():
    length = len(TINY.encode("a large red circle above it")) + 2
    with pytest.raises(UserError, match=f"'a large red circle above it'.* {length} .*{length - 1}"):
        TINY(["ok", "a large red circle above it"], length - 1)


def test_a_context_without_room_is_refused():
    with pytest.raises(UserError, match="no room"):
        TINY("red", 1, truncate=True)


# --- the merges file -----------------------------------------------------------------------------


def test_a_smaller_file_gives_a_smaller_vocabulary():
    assert TINY.vocab_size == 512 + len(MERGES) + 2
    assert (TINY.start_id, TINY.end_id, TINY.pad_id) == (512 + len(MERGES), 513 + len(MERGES), 0)


def test_only_the_merges_that_clip_was_trained_with_are_used(monkeypatch):
    monkeypatch.setattr(module, "MOST_MERGES", 10)
    assert load_clip_tokenizer(TINY_FILE).merges == TINY.merges[:10]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_gzip_and_plain_text_are_the_same(end, tmp_path):
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(TINY_FILE.read_bytes().rstrip() + end))
    assert load_clip_tokenizer(str(path)).merges == TINY.merges


def test_a_cut_gzip_file_is_noticed(tmp_path):
    whole = gzip.compress(TINY_FILE.read_bytes())
    path = tmp_path / "cut.txt.gz"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut.txt.gz"):
            load_clip_tokenizer(path)


HEADER = b"#version: 0.2\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b'{"a": 1}',
        bytes(range(256)),
        b"\x1f\x8b and no more gzip",
        HEADER + b"a",
        HEADER + b"a b c\n",
        HEADER + b"a b\n\nc d\n",
        HEADER + b"a bc\n",
        HEADER + b"a b\na b\n",
        HEADER + b"a b\nb c\nab c\na bc\n",
    ],
    ids=range(11),
)
def test_another_file_is_named_in_one_line(content, tmp_path):
    path = tmp_path / "other.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*other.txt[^\n]*$"):
        load_clip_tokenizer(path)


def test_plain_text_named_gz_is_named(tmp_path):
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(TINY_FILE.read_bytes())
    with pytest.raises(UserError, match="merges.txt.gz.*gzip"):
        load_clip_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "why"), [("nowhere.txt", "nowhere.txt: no such file"), ("", "no file but a folder")]
)
def test_a_missing_file_or_a_folder_is_named(name, why, tmp_path):
    with pytest.raises(UserError, match=why):
        load_clip_tokenizer(tmp_path / name)


@pytest.mark.parametrize("package", ["open_clip", "clip"])
def test_the_file_of_an_installed_package_is_found_without_importing_it(
    package, tmp_path, monkeypatch
):
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit")
    (folder / module.MERGES_FILE).write_bytes(gzip.compress(TINY_FILE.read_bytes()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "PACKAGES", (package,))
    assert load_clip_tokenizer().merges == TINY.merges


def test_without_file_and_package_the_error_says_what_to_give(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("no_such_package", "by_hand"))
    monkeypatch.setitem(sys.modules, "by_hand", types.ModuleType("by_hand"))
    with pytest.raises(UserError, match=f"{module.MERGES_FILE}.*open_clip_torch"):
        load_clip_tokenizer()
