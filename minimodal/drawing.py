"""Pictures for people: tiles in a grid with their captions and the oracle's verdicts.

uint8 pictures (N, 3, H, W) in, a Pillow picture out; models never see what is drawn here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from minimodal.data.listing import DRAWN
from minimodal.files import save_whole
from minimodal.shapes.worlds import AnyVerdict

INK, RIGHT, WRONG, PAPER = (30, 30, 30), (20, 120, 50), (190, 40, 30), (250, 250, 248)
PALE = (120, 120, 120)  # of notes
MARGIN, LINE = 8, 15  # pixels between tiles, and a line of text
MOST_LINES = 6  # of a caption; the rest of a longer one is left out

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def verdict_line(verdict: AnyVerdict) -> tuple[str, tuple[int, int, int]]:
    """A verdict in words and its colour: "right", or what is wrong."""
    if verdict.exact:
        return "right", RIGHT
    wrong = [name for name, holds in verdict._asdict().items() if holds is False]
    return "wrong: " + ", ".join(wrong), WRONG


def wrap(text: str, font: Font, width: int) -> list[str]:
    """A text as lines of at most `width` pixels; a word that is longer is cut."""
    lines = [""]
    for word in " ".join(text.split())[:200].split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], "…"]
    return lines if lines[0] else []


def to_picture(pixels: Tensor) -> Image.Image:
    """One picture for Pillow.

    pixels: (3, H, W) uint8
    """
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy().transpose(1, 2, 0)))


def grid(
    pictures: Tensor, captions: Sequence[str] | None = None,
    verdicts: Sequence[AnyVerdict | None] | None = None, *, notes: Sequence[str] | None = None,
    columns: int = 4, each: int | None = None, tile: int = 128,
) -> Image.Image:  # fmt: skip
    """Pictures as tiles, each with its caption, its note and its verdict below.

    pictures: (N, 3, H, W) uint8
    columns: tiles a row
    each: pictures that belong together and begin a new row; all of them by default
    tile: least width of a tile in pixels; pictures are enlarged by whole factors
    """
    font = ImageFont.load_default(size=12)
    scale = max(1, -(-tile // pictures.shape[-1]))
    width, height = pictures.shape[-1] * scale, pictures.shape[-2] * scale
    columns = max(1, min(columns, len(pictures)))
    each = each or len(pictures)
    rows_each = -(-each // columns)
    places = [(i // each * rows_each + i % each // columns, i % each % columns)
              for i in range(len(pictures))]  # fmt: skip
    below: list[list[tuple[str, tuple[int, int, int]]]] = [[] for _ in pictures]
    for lines, caption in zip(below, captions or [], strict=False):
        lines += [(line, INK) for line in wrap(caption, font, width)]
    for lines, note in zip(below, notes or [], strict=False):
        lines += [(line, PALE) for line in wrap(note, font, width)]
    for lines, verdict in zip(below, verdicts or [], strict=False):
        words, colour = verdict_line(verdict) if verdict is not None else ("", INK)
        lines += [(line, colour) for line in wrap(words, font, width)]
    most = max(map(len, below), default=0)
    text_height = most * LINE + (MARGIN // 2 if most else 0)
    step_x, step_y = width + MARGIN, height + text_height + MARGIN
    rows = places[-1][0] + 1
    canvas = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), PAPER)
    canvas.info[DRAWN] = True
    pen = ImageDraw.Draw(canvas)
    for i, picture in enumerate(pictures):
        x, y = MARGIN + places[i][1] * step_x, MARGIN + places[i][0] * step_y
        enlarged = to_picture(picture).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(enlarged, (x, y))
        y += height + MARGIN // 2
        for line, colour in below[i]:
            pen.text((x, y), line, fill=colour, font=font)
            y += LINE
    return canvas


def save_png(picture: Image.Image, path: Path, *, told: Mapping[str, str] | None = None) -> None:
    """Write a PNG; one that `grid` drew says so, and is then no picture among the data.

    told: text for the file, by keys such as "prompt"
    """
    mark = PngImagePlugin.PngInfo()
    if DRAWN in picture.info:  # first: readers look for it near the start
        mark.add_text("Software", DRAWN)
    for key, text in (told or {}).items():
        # What the shell passed on that is no text becomes question marks.
        mark.add_text(key, text.encode("utf-8", "replace").decode("utf-8"))
    save_whole(path, lambda file: picture.save(file, format="PNG", pnginfo=mark))


def save_gif(frames: Sequence[Image.Image], path: Path, *, seconds: float = 0.15) -> None:
    """Write a moving picture; its last frame stays for two seconds."""
    times = [round(1000 * seconds)] * (len(frames) - 1) + [2000]

    def save(file: Path) -> None:
        frames[0].save(
            file, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0,
            comment=DRAWN,
        )  # fmt: skip

    save_whole(path, save)
