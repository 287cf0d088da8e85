"""The words that the captions of a training had: a prompt's others mean nothing to the model.

A word is a piece of the tokenizer (`tokenizer.split`) without the space before it. Both forms are
kept, since they are different tokens: where captions had " star" and never began with "star", a
prompt that begins with it is read with a space in front.

Captions in, words out; prompts in, prompts as the model can read them out. Kept as JSON beside the
tokenizer. Read `tokenizer.py` before.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from minimodal.data.tokenizer import split
from minimodal.errors import UserError


class KnownWords:
    """The pieces of a training's captions; none where they were not recorded."""

    def __init__(self, pieces: Iterable[str] = ()) -> None:
        self.pieces = frozenset(pieces)
        self.words = frozenset(piece.strip() for piece in self.pieces)

    @classmethod
    def of(cls, captions: Iterable[str]) -> "KnownWords":
        """All that captions have. Each word is taken apart once, however often it occurs."""
        first, later = set(), set()
        for caption in captions:
            begin, *rest = caption.lower().split(" ")
            first.add(begin)
            later.update(rest)
        texts = [*first, *(f" {word}" for word in later)]
        return cls({piece for text in texts for piece in split(text) if piece.strip()})

    def readable(self, prompt: str) -> str:
        """A prompt with single spaces, without a full stop that no caption had, and with a space
        in front where its first word is known only within captions."""
        prompt = " ".join(prompt.split())
        if not self.words:
            return prompt
        if prompt[-1:] == "." and "." not in self.words:
            prompt = prompt.rstrip(". ") or prompt
        first = "".join(split(prompt.lower())[:1])
        known = first in self.pieces or f" {first}" not in self.pieces
        return prompt if known else f" {prompt}"

    def check(self, prompts: Iterable[str]) -> None:
        """Refuse prompts with a word that no caption had."""
        for prompt in prompts if self.words else ():
            for piece in split(self.readable(prompt).lower()):
                word = piece.strip()
                if word and word not in self.words:
                    raise UserError(
                        f"'{prompt[:60]}': no caption of the training had '{word}', so the model "
                        "does not know it; use other words, or --allow-unseen"
                    )

    def save(self, path: Path) -> None:
        """Write them as a JSON list, a piece a line."""
        path.write_text(json.dumps(sorted(self.pieces), indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "KnownWords":
        """What `save` wrote; nothing where the file is missing (a run of an older minimodal)."""
        if not path.exists():
            return cls()
        try:
            pieces = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            pieces = None
        if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
            raise UserError(f"{path} is damaged: expected a JSON list of words")
        return cls(pieces)
