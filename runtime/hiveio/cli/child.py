"""``python -m hiveio.cli.child …``: a command of hiveio as a child of ``hiveio dev``, with which all of it ends."""

import sys

from hiveio.cli import main
from hiveio.dev.process import end_forks_with_us

if __name__ == "__main__":
    end_forks_with_us()
    sys.exit(main())
