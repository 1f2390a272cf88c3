"""docs/faults.md and the tests name the same faults."""

import re

from tests.process import ROOT


def test_each_fault_of_the_table_has_a_test_and_each_test_a_row() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    rows = set(re.findall(r"^\| (\d+) \|.*`(test_\w+\.py)` test_\d+ \|$", text, re.M))
    marked: set[tuple[str, str]] = set()
    for path in (ROOT / "tests" / "faults").glob("test_*.py"):
        for number, name in re.findall(
            r"@pytest\.mark\.fault\((\d+)\)(?:\n@.*)*\n(?:async )?def test_(?:fault_)?(\d+)_", path.read_text()
        ):
            assert int(number) == int(name), f"{path.name}: test_{name} is marked as {number}"
            marked.add((number, path.name))
    assert rows == marked
