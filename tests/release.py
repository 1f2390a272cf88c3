"""The notes of a release: `python -m tests.release v0.2.0` prints the section of CHANGELOG.md for that version.

It ends with a line that says what is wrong if the tag does not fit the version of the code, or the changelog has no
such section, or still has entries that belong to no version. It needs nothing but Python.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTION = re.compile(r"^## (\S+)(?: - (\S+))?$", re.MULTILINE)


class Wrong(Exception):
    """What has to be put right before the tag."""


def version() -> str:
    """That of the code, which is not imported."""
    tree = ast.parse((ROOT / "runtime/hiveio/__init__.py").read_text("utf-8"))
    return next(
        str(ast.literal_eval(node.value))
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    )


def sections(changelog: str) -> dict[str, tuple[str, str]]:
    """The date and the text by the version, newest first; what is not released is `Unreleased`, without a date."""
    parts = SECTION.split(changelog)[1:]
    return {
        name: (date or "", text.strip()) for name, date, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    }


def notes(tag: str, changelog: str, code: str) -> str:
    """Raises Wrong."""
    if tag != f"v{code}":
        raise Wrong(f"the tag {tag} does not fit the version {code} of runtime/hiveio/__init__.py: tag it v{code}")
    found = sections(changelog)
    if found.get("Unreleased", ("", ""))[1]:
        raise Wrong(f"CHANGELOG.md has entries under Unreleased: put them under ## {code} - YYYY-MM-DD")
    date, text = found.get(code, ("", ""))
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        raise Wrong(f"CHANGELOG.md has no heading ## {code} - YYYY-MM-DD")
    if not text:
        raise Wrong(f"CHANGELOG.md says nothing about {code}")
    return text


if __name__ == "__main__":
    try:
        print(notes(sys.argv[1], (ROOT / "CHANGELOG.md").read_text("utf-8"), version()))
    except Wrong as error:
        sys.exit(f"{error}")
