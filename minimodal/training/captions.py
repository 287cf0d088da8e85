"""What the captions of a data source teach: a tokenizer, a length, the words that are known.

Captions in, a tokenizer and words out. Read `data/tokenizer.py` before.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from minimodal.data.images import ImageSource
from minimodal.data.sources import DataSource
from minimodal.data.tokenizer import Tokenizer
from minimodal.data.words import KnownWords

TOKENIZER_PICTURES = 5_000  # whose captions a tokenizer learns from


class Words(NamedTuple):
    """What captions teach: a tokenizer, the length of the longest caption, the words in them."""

    tokenizer: Tokenizer
    longest: int
    known: KnownWords


def learn_words(source: DataSource, vocab: int, longest: int, *, read: Iterable[str]) -> Words:
    """Learn a tokenizer of captions; those of more than `longest` tokens will be cut, and are
    counted here.

    read: the captions that the training reads, whose words are known
    """
    numbers = range(min(TOKENIZER_PICTURES, len(source)))
    captions = [caption for i in numbers for caption in source.all_captions(i)]
    tokenizer = Tokenizer.train(captions, vocab, lower=True)
    lengths = [len(tokenizer.encode(caption)) for caption in captions]
    cut = sum(length > longest for length in lengths)
    if cut:
        print(f"{cut} of {len(captions)} captions are cut to {longest} tokens", file=sys.stderr)
    return Words(tokenizer, min(max(lengths), longest), KnownWords.of(read))


def captions_of(source: DataSource, n: int) -> Iterator[str]:
    """All captions of the first n pictures; of the endless Shapes worlds one per picture, whose
    vocabulary is covered long before."""
    if isinstance(source, ImageSource):
        yield from (caption for i in range(n) for caption in source.all_captions(i))
        return
    rng = np.random.default_rng(0)
    for start in range(0, n, 4096):  # worlds write many captions at once much faster
        yield from source.captions(np.arange(start, min(start + 4096, n)), rng)
    yield from (caption for i in range(min(n, 100)) for caption in source.all_captions(i))
