"""Byte-level BPE: captions to token ids and back (Sennrich et al. 2016; Radford et al. 2019).

A text is cut into pieces (words with the space before them, single digits, punctuation), a piece
into its UTF-8 bytes, and frequent neighbours within a piece are merged into one token, again and
again. `Tokenizer.train` learns which; nothing is ever out of vocabulary, since the bytes are
tokens too.

Ids: 0 padding, 1 start, 2 end, then the 256 bytes, then the merges in the order they were
learned. Texts in; int64 (B, T) out. The CLIP paper (section 2.4) puts a caption between start and
end, which `tokenizer(texts, T)` does; for DALL·E ask for `start_and_end=False`.
"""

import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimodal.errors import UserError
from minimodal.files import read_json, write_atomically

SPECIALS = ("<|pad|>", "<|start|>", "<|end|>")
FIRST_MERGE = len(SPECIALS) + 256
KIND = "minimodal tokenizer"
CACHE_WORDS = 65_536

# Every character falls in one of the classes (letter, digit, other, space), so the pieces joined
# are the text. A piece ends after 32 characters: merging is quadratic in its length, and no real
# word suffers. The fourth line leaves the last space of a run to the word behind it.
PIECES = re.compile(
    r" ?[^\W\d_]{1,32}"
    r"| ?\d"
    r"| ?(?:[^\w\s]|_){1,32}"
    r"|\s{1,32}(?!\S)"
    r"|\s"
)

Pair = tuple[int, int]


def split(text: str) -> list[str]:
    """The pieces of a text; joined they are the text. No merge crosses their borders."""
    return PIECES.findall(text)


def to_ids(piece: str) -> list[int]:
    """The bytes of a piece as token ids. A lone surrogate, which UTF-8 cannot hold, becomes '?'."""
    return [len(SPECIALS) + byte for byte in piece.encode("utf-8", errors="replace")]


def merge(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """Replace each occurrence of a pair, from the left, by one token."""
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def apply_merges(ids: list[int], rank: dict[Pair, int]) -> list[int]:
    """Merge the neighbours of a piece until no pair is left to merge.

    rank: the token that a pair becomes; the smallest was learned first
    """
    while len(ids) > 1:
        # Merges apply in the order they were learned, whatever their place in the word.
        known = [(rank[pair], pair) for pair in pairwise(ids) if pair in rank]
        if not known:
            break
        new, pair = min(known)
        ids = merge(ids, pair, new)
    return ids


def token_bytes(merges: Iterable[Pair]) -> list[bytes]:
    """What each token stands for; specials stand for nothing."""
    table = [b""] * len(SPECIALS) + [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        table.append(table[left] + table[right])
    return table


def learn_merges(words: dict[str, int], count: int) -> list[Pair]:
    """The `count` merges of byte-pair encoding, fewer where no pair occurs twice.

    words: how often each piece occurs
    """
    texts, times = [to_ids(word) for word in words], list(words.values())
    table = token_bytes([])
    occurs: Counter[Pair] = Counter()  # how often each pair occurs
    holders: dict[Pair, set[int]] = {}  # the words it occurs in, or once did
    for number, ids in enumerate(texts):
        for pair in pairwise(ids):
            occurs[pair] += times[number]
            holders.setdefault(pair, set()).add(number)

    def entry(pair: Pair) -> tuple[int, bytes, bytes, Pair]:
        # A heap gives the smallest first: the most frequent, then the first in byte order.
        return -occurs[pair], table[pair[0]], table[pair[1]], pair

    # An entry may say too much, never too little: a count that falls is mended when the entry
    # comes up, one that rises gets a new entry.
    heap = [entry(pair) for pair in occurs]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < count:
        stated, _, _, best = heapq.heappop(heap)
        if occurs[best] < 2:
            continue
        if -stated != occurs[best]:
            heapq.heappush(heap, entry(best))
            continue
        new = len(table)
        table.append(table[best[0]] + table[best[1]])
        merges.append(best)
        change: Counter[Pair] = Counter()
        for number in holders.pop(best):
            before = texts[number]
            after = texts[number] = merge(before, best, new)
            for pair in pairwise(before):
                change[pair] -= times[number]
            for pair in pairwise(after):
                change[pair] += times[number]
                if new in pair:
                    holders.setdefault(pair, set()).add(number)
        for pair, difference in change.items():
            occurs[pair] += difference
            if difference > 0:
                heapq.heappush(heap, entry(pair))
    return merges


def readable(token: bytes) -> str:
    """A token for human eyes; bytes that are no UTF-8 as \\x…"""
    return token.decode("utf-8", errors="backslashreplace")


def read_merges(stored: Any) -> list[Pair]:
    """The merges that a file holds as [left, right, text]; a ValueError where they cannot be."""
    if not isinstance(stored, list):
        raise ValueError("it has no list of merges")
    merges, table = [], token_bytes([])
    for number, (left, right, text) in enumerate(stored):
        for id_ in (left, right):
            if type(id_) is not int or not len(SPECIALS) <= id_ < len(table):
                raise ValueError(f"merge {number} joins {id_!r}, which is no token before it")
        merges.append((left, right))
        table.append(table[left] + table[right])
        if readable(table[-1]) != text:
            raise ValueError(f"merge {number} does not make {text!r}")
    if len(set(merges)) != len(merges):
        raise ValueError("a pair is merged twice")
    return merges


def spell(ids: Iterable[int], table: Sequence[bytes]) -> str:
    """The text of ids, by what each of them stands for."""
    ids = [int(id_) for id_ in ids]
    if wrong := [id_ for id_ in ids if not 0 <= id_ < len(table)]:
        raise UserError(f"token {wrong[0]} is outside the vocabulary of {len(table)}")
    return b"".join(table[id_] for id_ in ids).decode("utf-8", errors="replace")


def to_rows(
    texts: str | list[str], encode: Callable[[str], list[int]], length: int,
    *, start: Sequence[int], end: Sequence[int], pad: int, truncate: bool,
) -> Tensor:  # fmt: skip
    """Texts as rows of ids: start, text, end, padding; of too many the first and the end, or none.

    returns: (B, T) int64, T = length
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if length < max(1, len(start) + len(end)):
        raise UserError(f"a context of {length} tokens has no room for a text")
    rows = np.full((len(texts), length), pad, dtype=np.int64)  # 15 times as fast as a tensor
    for row, text in zip(rows, texts, strict=True):
        ids = [*start, *encode(text), *end]
        if len(ids) > length and not truncate:
            raise UserError(
                f"'{first_words(text)}' is too long: {len(ids)} tokens, where {length} fit; "
                "shorten it or truncate"
            )
        ids = ids if len(ids) <= length else [*ids[: length - len(end)], *end]
        row[: len(ids)] = ids
    return torch.from_numpy(rows)


class Tokenizer:
    """Learned merges, and the way from text to ids and back."""

    pad_id, start_id, end_id = 0, 1, 2

    def __init__(self, merges: Sequence[Pair] = (), *, lower: bool = False) -> None:
        self.merges = [tuple(pair) for pair in merges]
        self.lower = lower
        self._rank = {pair: FIRST_MERGE + i for i, pair in enumerate(self.merges)}
        self._bytes = token_bytes(self.merges)
        self._cache: dict[str, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    @property
    def vocab_size(self) -> int:
        """V: specials, bytes and merges."""
        return len(self._bytes)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, lower: bool = False) -> "Tokenizer":
        """Learn at most vocab_size tokens from texts; their order does not matter.

        With `lower`, capitals are made small here and whenever a text is encoded.
        """
        if vocab_size < FIRST_MERGE:
            raise UserError(
                f"a vocabulary of {vocab_size} is too small: {len(SPECIALS)} special tokens and "
                f"256 bytes already make {FIRST_MERGE}"
            )
        if isinstance(texts, str):
            raise UserError("training takes a list of texts, not one string")
        words: Counter[str] = Counter()
        for text in texts:
            words.update(split(text.lower() if lower else text))
        return cls(learn_merges(words, vocab_size - FIRST_MERGE), lower=lower)

    # --- text to ids -----------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end. "<|end|>" in a text is seven characters."""
        ids: list[int] = []
        for piece in split(text.lower() if self.lower else text):
            known = self._cache.get(piece)
            if known is None:
                if len(self._cache) >= CACHE_WORDS:
                    self._cache.clear()
                known = self._cache[piece] = apply_merges(to_ids(piece), self._rank)
            ids += known
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: specials are left out, bytes that are no UTF-8 become U+FFFD."""
        return spell(ids, self._bytes)

    def __call__(
        self, texts: str | list[str], context_length: int, *, truncate: bool = False,
        start_and_end: bool = True,
    ) -> Tensor:  # fmt: skip
        """Texts as rows of equal length: start, text, end, padding; or text, padding.

        With `truncate` a text that is too long loses its tail (the end token stays the last);
        without, it is an error.

        returns: (B, T) int64, T = context_length
        """
        start, end = ([self.start_id], [self.end_id]) if start_and_end else ([], [])
        return to_rows(
            texts, self.encode, context_length, start=start, end=end, pad=self.pad_id,
            truncate=truncate,
        )  # fmt: skip

    # --- files -----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as JSON, a merge a line: the two ids, and what they spell."""
        head = {"kind": KIND, "version": 1, "lower": self.lower, "specials": list(SPECIALS)}
        body = ",\n".join(
            json.dumps([*pair, readable(token)], ensure_ascii=False)
            for pair, token in zip(self.merges, self._bytes[FIRST_MERGE:], strict=True)
        )
        content = json.dumps(head)[:-1] + ', "merges": [\n' + body + "\n]}\n"
        write_atomically(Path(path), lambda part: part.write_text(content, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote."""
        stored = read_json(Path(path))
        if not isinstance(stored, dict) or stored.get("kind") != KIND:
            raise UserError(f'{path} is no minimodal tokenizer: expected "kind": "{KIND}"')
        try:
            if stored.get("version") != 1 or stored.get("specials") != list(SPECIALS):
                raise ValueError("its version or special tokens are not those of this program")
            if not isinstance(stored.get("lower"), bool):
                raise ValueError('"lower" is neither true nor false')
            return cls(read_merges(stored.get("merges")), lower=stored["lower"])
        except (TypeError, ValueError) as error:  # a TypeError of a merge that is no list
            raise UserError(f"{path} is damaged: {error}") from None


def first_words(text: str) -> str:
    """The beginning of a text on one line, to name it in a message."""
    words = " ".join(text[:200].split()[:6])[:60]
    return words if words == text else words + "…"
