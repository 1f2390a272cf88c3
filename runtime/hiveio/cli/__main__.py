"""``python -m hiveio.cli …``: the command-line tool on this Python, wherever its script is."""

import sys

from hiveio.cli import main

if __name__ == "__main__":
    sys.exit(main())
