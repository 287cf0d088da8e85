"""COCO captions (Lin et al., 2014; Chen et al., 2015), as the official archives unpack.

    PATH/annotations/captions_train2017.json    PATH/train2017/*.jpg    or all of them
    PATH/annotations/captions_val2017.json      PATH/val2017/*.jpg      with 2014

The JSON lists `images` (id, file_name) and `annotations` (image_id, caption), about five captions
a picture; all are used, one drawn a step. Pictures without a caption and captions without their
picture are left out and counted. The split "train" is train2017 and "val" is val2017 (2014 where
there is no train2017). Where that is not there, a tenth of the training pictures takes its place
and is kept out of "train". Pictures uint8 (N, 3, S, S) come out. Read folder.py before.
"""

import os
from pathlib import Path

from minimodal.data.folder import open_folder
from minimodal.data.images import ImageSource
from minimodal.errors import UserError

PARTS = ("train2017", "val2017", "train2014", "val2014")


def _has_part(path: Path, part: str) -> bool:
    return (path / "annotations" / f"captions_{part}.json").is_file() and (path / part).is_dir()


def open_coco(
    path: str | os.PathLike,
    part: str | None = None,
    *,
    image_size: int = 256,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
) -> ImageSource:
    """COCO captions as a data source; `part` ("train2017" or "val2017", …) overrides the split."""
    path = Path(path)
    has = [part for part in PARTS if _has_part(path, part)]
    year = "2014" if "train2014" in has and "train2017" not in has else "2017"
    divide = part is None and f"val{year}" not in has
    wanted = part or (f"train{year}" if divide else f"{split}{year}")
    if wanted not in has:
        hint = f"; coco:{path}:{has[0]} uses the part that is there" if has else ""
        raise UserError(
            f"{path}: expected annotations/captions_{wanted}.json and a folder {wanted} with the"
            f" pictures: the COCO archives, unpacked in one place{hint}; folder:{path} reads"
            " captions in other forms, such as Karpathy's"
        )
    return open_folder(
        path / wanted,
        image_size=image_size,
        split=split if divide else "all",
        limit=limit,
        seed=seed,
        table=path / "annotations" / f"captions_{wanted}.json",
        name="coco",
    )
