"""The flags --clip, --merges, --activation and --device, and the CLIP that they mean."""

import argparse
from pathlib import Path

from minimodal.clip import CLIP
from minimodal.runs import find, load
from minimodal.training.distributed import pick_device

DEFAULT = Path("runs/demo/clip")


def add_merges_flag(parser: argparse.ArgumentParser) -> None:
    """--merges and --activation, of an original CLIP."""
    parser.add_argument("--merges", type=Path, metavar="PATH",
        help="bpe_simple_vocab_16e6.txt.gz or merges.txt, the tokenizer of an original CLIP "
             "(default: the one beside the checkpoint, or in an installed package)")  # fmt: skip
    parser.add_argument("--activation", choices=("gelu", "quick_gelu"),
        help="what an original CLIP computes with (default: what its file or those beside it "
             "say)")  # fmt: skip


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """--clip, --merges, --activation, --allow-unseen and --device."""
    parser.add_argument("--clip", type=Path, default=DEFAULT, metavar="RUN|CHECKPOINT",
        help=f"a clip run, a demo folder or an original CLIP (default: {DEFAULT})")  # fmt: skip
    add_merges_flag(parser)
    parser.add_argument("--allow-unseen", action="store_true",
        help="words, too, that no caption of the CLIP's training had")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def load_clip(arguments: argparse.Namespace) -> CLIP:
    """The CLIP of a command line, on its device."""
    device = pick_device(arguments.device)  # before the loading, which takes longer
    path = find(arguments.clip, "clip", flag="--clip")
    how = arguments.activation
    return load(path, kind="clip", merges=arguments.merges, activation=how).to(device)
