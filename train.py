"""Train a system, or all of them on the Shapes world: `python train.py --help`."""

import sys

from minimodal.__main__ import main

if __name__ == "__main__":
    sys.exit(main(module="train"))
