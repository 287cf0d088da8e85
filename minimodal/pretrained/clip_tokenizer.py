"""CLIP's own tokenizer, id for id as in openai/CLIP (Radford et al. 2021, section 2.4).

A caption is cleaned (broken text mended, HTML entities resolved, blanks joined, capitals made
small) and cut into words, single digits and runs of punctuation. The UTF-8 bytes of a piece, the
last one marked as the end of a word ("</w>"), are merged by the merges of a file. In: a path to
that file (or an installed package that has it), then texts; out: int64 (B, T).

Ids: the 256 bytes, the same 256 at the end of a word, the merges, start, end; 49408 in the
original. Padding is 0, the id of "!" too: CLIP looks at the end token and never behind it. Read
data/tokenizer.py and data/mending.py, which mends text as the original's package ftfy, first.
"""

import gzip
import importlib.util
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from minimodal.data.mending import clean
from minimodal.data.tokenizer import CACHE_WORDS, Pair, apply_merges, spell, to_rows
from minimodal.errors import UserError
from minimodal.files import asking
from minimodal.pretrained.files import check_file, read_json
from minimodal.pretrained.stated import Stated

SPECIALS = ("<|startoftext|>", "<|endoftext|>")
END_OF_WORD = "</w>"
MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
PACKAGES = ("open_clip", "clip")  # pip install open_clip_torch; pip install openai-clip
MOST_MERGES = 49152 - 256 - 2  # the file has more; CLIP was trained with these

# The bytes in the order of their ids: those that Latin-1 prints come first, under their own name;
# the others are written in the merges file as the characters from U+0100 on.
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTES = (*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE))
SYMBOLS = [*map(chr, PRINTABLE), *map(chr, range(0x100, 0x200 - len(PRINTABLE)))]

ASCII_PIECES = re.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'(?:[stmd]|re|ve|ll)|[a-z]+|[0-9]|[^\sa-z0-9]+"
)


@cache
def unicode_pieces() -> re.Pattern[str]:
    r"""The same for all scripts. `re` has no \p{L}: a letter is \w, but no number and no "_"."""
    numbers = "".join(
        char
        for char in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(char) in ("No", "Nl")  # "²", "Ⅷ"; the third kind, Nd, is \d
    )
    # The original ignores case. It matters after lower() in two places: "ſ" is another small s,
    # and U+0345, a mark whose capital is a letter, belongs to no class and is dropped.
    return re.compile(
        r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'(?:[sſtmd]|re|ve|ll)"
        rf"|[^\W\d_{numbers}]+|[\d{numbers}]|(?:[^\w\s\u0345]|_)+"
    )


def split(word: str) -> list[str]:
    """The pieces of a word of a cleaned text; no merge crosses their borders."""
    return (ASCII_PIECES if word.isascii() else unicode_pieces()).findall(word)


class CLIPTokenizer:
    """Given merges, and the way from text to ids and back."""

    pad_id = 0

    def __init__(self, merges: Sequence[Pair]) -> None:
        self.merges = [tuple(pair) for pair in merges]
        self._rank = {pair: 512 + i for i, pair in enumerate(self.merges)}
        self._id_of_byte = [BYTES.index(byte) for byte in range(256)]
        self._bytes = [bytes([byte]) for byte in BYTES]
        self._bytes += [byte + END_OF_WORD.encode() for byte in self._bytes]
        for left, right in self.merges:
            self._bytes.append(self._bytes[left] + self._bytes[right])
        self._bytes += [special.encode() for special in SPECIALS]
        self.start_id, self.end_id = self.vocab_size - 2, self.vocab_size - 1
        self._cache = self._empty_cache()

    def _empty_cache(self) -> dict[str, list[int]]:
        """Words and pieces with their ids; specials are known from the start."""
        return dict(zip(SPECIALS, ([self.start_id], [self.end_id]), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": self._empty_cache()}

    @property
    def vocab_size(self) -> int:
        """V: bytes twice, merges, start and end."""
        return len(self._bytes)

    def _encode_word(self, word: str) -> list[int]:
        known = self._cache.get(word)
        if known is None:
            if (pieces := split(word)) == [word]:
                ids = [self._id_of_byte[byte] for byte in word.encode("utf-8")]
                ids[-1] += 256  # the end of a word
                known = apply_merges(ids, self._rank)
            else:
                known = [id_ for piece in pieces for id_ in self._encode_word(piece)]
            if len(self._cache) >= CACHE_WORDS:
                self._cache = self._empty_cache()
            self._cache[word] = known
        return known

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end. "<|endoftext|>" in a text is the end token."""
        # No piece has a blank in it, so a caption's words can be looked up whole.
        return [id_ for word in clean(text).split() for id_ in self._encode_word(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, a blank after each piece; bytes that are no UTF-8 become U+FFFD."""
        return spell(ids, self._bytes).replace(END_OF_WORD, " ")

    def __call__(
        self, texts: str | list[str], context_length: int = 77, truncate: bool = False
    ) -> Tensor:
        """Texts as rows of equal length: start, text, end, padding.

        With `truncate` a text that is too long loses its tail (the end token stays the last);
        without, it is an error.

        returns: (B, T) int64, T = context_length
        """
        return to_rows(
            texts, self.encode, context_length, start=[self.start_id], end=[self.end_id],
            pad=self.pad_id, truncate=truncate,
        )  # fmt: skip


def find_merges() -> Path:
    """The merges file inside an installed package, which is not imported for it."""
    for package in PACKAGES:
        spec = None
        with suppress(ValueError):  # a module of that name that someone made by hand
            spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := Path(folder) / MERGES_FILE).is_file():
                return path
    raise UserError(
        f"no merges file for CLIP's tokenizer: give the path of {MERGES_FILE} (openai/CLIP has it "
        f"in its folder clip), or pip install open_clip_torch, which brings a copy"
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a merges file, with or without gzip, or of Hugging Face's tokenizer.json."""
    if path.suffix == ".json":
        model = Stated(read_json(path), source=str(path.parent), file=path.name).part("model")
        try:
            merges = [m if isinstance(m, str) else " ".join(m) for m in model.fields["merges"]]
        except (KeyError, TypeError):
            raise model.wrong("merges", 'a list such as ["a b", "ab c</w>"]') from None
        return ["#version", *merges]
    check_file(path)
    with asking("read", path):
        content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b" or path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8").rstrip("\n").split("\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"the merges file {path} is damaged or no gzip file: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged or no merges file: it is not UTF-8") from None


def parse_merges(lines: list[str]) -> list[Pair]:
    """Merges as pairs of ids: after a header, a line for each, two symbols known by then."""
    if "#version" not in lines[0]:
        raise ValueError('its first line does not say "#version"')
    known = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    known |= {symbol + END_OF_WORD: 256 + i for i, symbol in enumerate(SYMBOLS)}
    merges = []
    for number, line in enumerate(lines[1 : MOST_MERGES + 1], 2):
        left, _, right = line.rstrip("\r").partition(" ")
        if left not in known or right not in known:
            raise ValueError(f"line {number}, {line[:40]!r}, is not two symbols known before it")
        if left + right in known:
            raise ValueError(f"line {number}, {line[:40]!r}, makes what was there already")
        merges.append((known[left], known[right]))
        known[left + right] = 511 + len(merges)
    return merges


def load_clip_tokenizer(merges_path: str | Path | None = None) -> CLIPTokenizer:
    """CLIP's tokenizer from its merges file, or from an installed package that has a copy.

    A file with fewer merges gives a smaller vocabulary: 512 + merges + 2.
    """
    path = find_merges() if merges_path is None else Path(merges_path)
    try:
        return CLIPTokenizer(parse_merges(read_lines(path)))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is damaged or no merges file: {error}") from None
