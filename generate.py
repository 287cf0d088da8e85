"""Draw pictures for prompts: `python generate.py "a large red circle"`."""

import os
import sys

# As in train.py: it has to be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from minimodal.cli.generate import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
