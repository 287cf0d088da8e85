"""Zero-shot classification: captions of the labels are the classifier (section 3.1 of the paper).

    w_n = Σ_t T(t(n)) / |Σ_t T(t(n))|       mean of the unit text vectors of label n, templates t
    p_n = softmax_n( exp(τ) · u · w_n )     u: the picture's unit vector, τ: CLIP's log temperature

A label goes into each template ("a photo of a {}"), the captions' vectors are averaged (3.1.4),
and a picture belongs to the label whose vector is nearest. Nothing is trained. Pictures of Pillow
or (B, 3, H, W) normalised in, probabilities (B, N) out. Read `clip.py` before.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from string import Formatter

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minimodal.clip import CLIP
from minimodal.data.cifar import TEMPLATES, class_captions
from minimodal.errors import UserError
from minimodal.files import asking
from minimodal.shapes.language import COLOR_WORDS, SHAPE_WORDS, article
from minimodal.uses.embedding import embed_captions

BATCH = 64  # pictures that the encoder sees at once
ARTICLES = ("a ", "an ", "the ")
NOUNS = {word for words in (*COLOR_WORDS, *SHAPE_WORDS) for word in words}  # of the Shapes world


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank; none, or no text, is a `UserError`."""
    with asking("read", path):
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors put a mark in front
        except UnicodeDecodeError:
            raise UserError(f"{path} is no text in UTF-8; expected a text file") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty; expected a text file, one a line")
    return lines


def check_labels(labels: Sequence[str]) -> list[str]:
    """Labels with single spaces only; an empty or repeated one is a `UserError`.

    Capitals do not part them: the tokenizers of CLIP do not see them.
    """
    stripped = [" ".join(label.split()) for label in labels]
    if not stripped:
        raise UserError("no labels; give at least one")
    if "" in stripped:
        raise UserError(f"label {stripped.index('') + 1} of {len(stripped)} is empty")
    counts = Counter(map(str.lower, stripped))
    twice = [label for label in stripped if counts[label.lower()] > 1]
    if twice:
        raise UserError(f"the label '{twice[0]}' occurs twice")
    return stripped


def check_templates(templates: Sequence[str]) -> list[str]:
    """Templates that each have one place for the label, {}; anything else is a `UserError`."""
    for template in templates:
        try:
            parts = list(Formatter().parse(template))
        except ValueError:  # a single brace
            parts = []
        if [part[1:] for part in parts if part[1] is not None] != [("", "", None)]:
            raise UserError(f"the template '{template}' needs {{}} once, where the label goes")
    if not templates:
        raise UserError("no templates; give at least one, such as 'a photo of a {}'")
    return list(templates)


def data_of(clip: CLIP) -> str:
    """The kind of data that a run's CLIP was trained on: "shapes", "cifar10", …; else "None"."""
    return str(getattr(clip, "run", {}).get("data")).split(":")[0]


def begun_as_captions(clip: CLIP, texts: Sequence[str]) -> list[str]:
    """Texts for a CLIP of the Shapes world, whose captions never begin with a colour or a shape:
    "red circle" gets its article. For any other CLIP they stay as they are."""
    if data_of(clip) != "shapes":
        return list(texts)
    return [article(text) if text.split()[0].lower() in NOUNS else text for text in texts]


def default_prompts(clip: CLIP, labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names and templates that make captions such as the CLIP was trained with.

    A run on Shapes knows "a large red circle" and no photos, one on CIFAR the captions of
    `data/cifar.py`, with the article that fits. All others get the paper's "a photo of a {}", but
    for a run whose captions did not have these words.
    """
    data = data_of(clip)
    if data == "shapes":
        return begun_as_captions(clip, labels), ["{}"]
    if data in ("cifar10", "cifar100"):
        nouns = [n if n.startswith(ARTICLES) else class_captions(n)[0] for n in labels]
        return nouns, list(TEMPLATES)
    return list(labels), ["{}" if clip.words.unknown("a photo of a") else "a photo of a {}"]


def class_embeddings(clip: CLIP, names: list[str], templates: list[str]) -> Tensor:
    """One unit vector a class: captions from all templates, averaged (section 3.1.4).

    returns: (N, E)
    """
    captions = ([template.format(name) for template in templates] for name in names)
    means = [embed_captions(clip, texts).mean(dim=0) for texts in captions]
    return F.normalize(torch.stack(means), dim=-1)  # (N, E)


class ZeroShotClassifier:
    """Labels as unit vectors, computed once, and what pictures are most like."""

    def __init__(
        self, clip: CLIP, labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> None:
        """templates: with {} for the label; None: what fits the CLIP's training data."""
        self.clip, self.labels = clip, check_labels(labels)
        if templates is None:
            names, self.templates = default_prompts(clip, self.labels)
        else:
            names, self.templates = self.labels, check_templates(templates)
        for label, name in zip(self.labels, names, strict=True):
            try:  # class_embeddings cuts what is too long, and two labels could become one
                clip.tokenize([template.format(name) for template in self.templates])
            except UserError as error:
                raise UserError(f"label '{label[:60]}': {error}") from None
        self.weights = class_embeddings(clip, names, self.templates)  # (N, E)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """exp(τ) · u · w, as CLIP's own logits.

        images: (B, 3, H, W) normalised
        returns: (B, N)
        """
        found = self.clip.encode_image(images.to(self.weights.device))
        logits = self.clip.logit_scale.exp() * F.normalize(found, dim=-1) @ self.weights.T
        if self.clip.logit_bias is not None:
            logits = logits + self.clip.logit_bias
        return logits  # (B, N)

    def probabilities(self, pictures: Sequence[Image.Image]) -> Tensor:
        """How likely each label is for each picture, on the CPU.

        returns: (B, N), rows that sum to 1
        """
        parts = [torch.empty(0, len(self.labels))]
        for first in range(0, len(pictures), BATCH):
            images = [self.clip.preprocess(p) for p in pictures[first : first + BATCH]]
            parts.append(self.logits(torch.stack(images)).float().softmax(dim=-1).cpu())
        return torch.cat(parts)  # (B, N)
