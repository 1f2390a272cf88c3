"""Where tests are: those of a module are found by its name."""

import pytest

from tests.process import ROOT

UNIT = ROOT / "tests" / "unit"
PACKAGE = ROOT / "runtime" / "hiveio"
OF_THE_REPOSITORY = {"ahead", "deploy", "documents", "imports", "layout", "locks", "readme"}
FILES = sorted(path.relative_to(UNIT).as_posix() for path in UNIT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_unit_tests_is_named_after_a_module_or_package(file: str) -> None:
    """``test_<module>.py``, or ``test_<module>_<aspect>.py``, in the folder of its package."""
    folder, name = (UNIT / file).parent.relative_to(UNIT), (UNIT / file).stem.removeprefix("test_")
    if folder.name == "" and name in OF_THE_REPOSITORY:
        return
    package = PACKAGE / folder
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    words = name.split("_")
    beginnings = {"_".join(words[:count]) for count in range(1, len(words) + 1)}
    assert beginnings & (modules | {folder.name}), f"tests/unit/{file}: hiveio has no module of that name there"
