"""Draw pictures for prompts: `python generate.py "a large red circle"`."""

import sys

from minimodal.__main__ import main

if __name__ == "__main__":
    sys.exit(main(module="generate"))
