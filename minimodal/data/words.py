"""The words that the captions of a training had: a prompt's others mean nothing to the model.

A word is a piece of the tokenizer (`tokenizer.split`) without the space before it. Both forms are
kept, since they are different tokens: where captions had " star" and never began with "star", a
prompt that begins with it is read with a space in front, and "ring,star" as "ring, star".

Captions in, words out; prompts in, prompts as the model can read them out. Kept as JSON beside the
tokenizer. Read `tokenizer.py` before.
"""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path

from minimodal.data.tokenizer import split
from minimodal.errors import UserError
from minimodal.files import read_json


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
        in front of its first word, before a punctuation mark and behind it where captions had them
        only so, or without where only so."""
        prompt = " ".join(prompt.split())
        if not self.words:
            return prompt
        if prompt[-1:] == "." and "." not in self.words:
            prompt = prompt.rstrip(". ") or prompt
        pieces, before = [], "."  # as behind a mark
        for piece in split(prompt):
            word = piece.strip()
            # Between letters and digits a space stays as it is: "12" is not "1 2".
            if not (word.isalnum() and before.isalnum()):
                forms = (form for form in (piece, word, f" {word}") if form.lower() in self.pieces)
                piece = next(forms, piece)
            pieces.append(piece)
            before = word
        return "".join(pieces)

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that no caption had; none where they were not recorded."""
        pieces = split(self.readable(prompt).lower()) if self.words else []
        return [word for piece in pieces if (word := piece.strip()) and word not in self.words]

    def check(self, prompts: Iterable[str]) -> None:
        """Refuse prompts with a word that no caption had."""
        for prompt in prompts:
            for word in self.unknown(prompt):
                near = difflib.get_close_matches(word, sorted(self.words), n=1, cutoff=0.7)
                hint = f"; did you mean '{near[0]}'? Else" if near else ";"
                raise UserError(
                    f"'{prompt[:60]}': no caption of the training had '{word}', so the model "
                    f"does not know it{hint} use other words, or --allow-unseen"
                )

    def save(self, path: Path) -> None:
        """Write them as a JSON list, a piece a line."""
        path.write_text(json.dumps(sorted(self.pieces), indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "KnownWords":
        """What `save` wrote; nothing where the file is missing."""
        if not path.exists():
            return cls()
        pieces = read_json(path)
        if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
            raise UserError(f"{path} is damaged: expected a JSON list of words")
        return cls(pieces)
