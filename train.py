"""Train a system, or all of them on the Shapes world: `python train.py --help`."""

import os
import sys

# OpenMP's threads wait without spinning: on a busy machine spinning ones slow training by far.
# It has to be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from minimodal.cli.train import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
