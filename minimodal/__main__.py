"""What to do with trained models: `python -m minimodal --help`."""

import sys

from minimodal.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
