"""Writes the table of settings into the README: ``make docs``. A test compares the two."""

import re
from pathlib import Path

from hiveio.config import settings_table

README = Path(__file__).parents[1] / "README.md"
_TABLE = re.compile(r"(?<=<!-- settings: made by `make docs` -->\n).*?(?=<!-- /settings -->)", re.DOTALL)


def with_table(text: str) -> str:
    """The README with the table of today's settings. Raises ValueError where its place is missing."""
    made, count = _TABLE.subn(lambda found: settings_table() + "\n", text)
    if count != 1:
        raise ValueError("README.md has no place for the table of settings")
    return made


if __name__ == "__main__":
    README.write_text(with_table(README.read_text("utf-8")), "utf-8")
