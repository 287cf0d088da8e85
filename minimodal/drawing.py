"""Pictures for people: tiles in a grid with their captions and the oracle's verdicts.

uint8 pictures (N, 3, H, W) in, a Pillow picture out; models never see what is drawn here.
"""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minimodal.data.oracle import Verdict
from minimodal.errors import UserError

INK, RIGHT, WRONG, PAPER = (30, 30, 30), (20, 120, 50), (190, 40, 30), (250, 250, 248)
MARGIN, LINE = 8, 15  # pixels between tiles, and a line of text


def verdict_line(verdict: Verdict) -> tuple[str, tuple[int, int, int]]:
    """A verdict in words and its colour: "right", or what is wrong."""
    if verdict.exact:
        return "right", RIGHT
    wrong = [name for name, holds in verdict._asdict().items() if holds is False]
    return "wrong " + ", ".join(wrong), WRONG


def printable(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A text without what would break the drawing; letters that the font lacks become boxes."""
    text = " ".join(text.split())[:200]
    try:
        font.getlength(text)
    except (UnicodeEncodeError, ValueError):  # Pillow's oldest built-in font has Latin letters only
        text = text.encode("latin-1", "replace").decode("latin-1")
    return text


def grid(
    pictures: Tensor,
    captions: Sequence[str] | None = None,
    verdicts: Sequence[Verdict | None] | None = None,
    *,
    columns: int = 4,
    tile: int = 128,
) -> Image.Image:
    """Pictures as tiles, each with its caption and verdict below.

    pictures: (N, 3, H, W) uint8
    columns: tiles a row
    tile: least width of a tile in pixels; pictures are enlarged by whole factors
    """
    font = ImageFont.load_default(size=12)
    scale = max(1, -(-tile // pictures.shape[-1]))
    width, height = pictures.shape[-1] * scale, pictures.shape[-2] * scale
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    wrapped = [textwrap.wrap(printable(c, font), max(8, width // 7)) for c in captions or []]
    lines = max((len(w) for w in wrapped), default=0)
    text_height = lines * LINE + (LINE if verdicts else 0) + (MARGIN // 2 if wrapped else 0)
    step_x, step_y = width + MARGIN, height + text_height + MARGIN
    canvas = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), PAPER)
    pen = ImageDraw.Draw(canvas)
    for i, picture in enumerate(pictures.cpu().numpy()):
        x, y = MARGIN + i % columns * step_x, MARGIN + i // columns * step_y
        enlarged = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
        canvas.paste(enlarged.resize((width, height), Image.Resampling.NEAREST), (x, y))
        y += height + MARGIN // 2
        for line in wrapped[i] if wrapped else []:
            pen.text((x, y), line, fill=INK, font=font)
            y += LINE
        if verdicts and verdicts[i] is not None:
            words, colour = verdict_line(verdicts[i])
            pen.text((x, y), words, fill=colour, font=font)
    return canvas


def to_picture(pixels: Tensor) -> Image.Image:
    """One picture for Pillow.

    pixels: (3, H, W) uint8
    """
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy().transpose(1, 2, 0)))


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all; folders on the way are made."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(temporary, format="PNG")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
