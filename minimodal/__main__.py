"""All commands: `python -m minimodal --help`."""

import sys

from minimodal.cli.start import main

if __name__ == "__main__":
    sys.exit(main())
