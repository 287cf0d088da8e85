"""Draw pictures for prompts: `python generate.py "a large red circle"`."""

import sys

from minimodal.cli.start import main

if __name__ == "__main__":
    sys.exit(main(module="generate"))
