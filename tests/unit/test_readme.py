"""What the README shows is true."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hiveio.config import Settings
from hiveio.loader import load
from tests.readme import README, with_table

TEXT = README.read_text("utf-8")


def test_the_table_of_settings_is_of_today() -> None:
    assert with_table(TEXT) == TEXT, "make docs"


def test_the_actor_and_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor, test = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "accounts.py").write_text(actor)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "accounts", raising=False)
    (contract,) = load(Settings(actor_module="accounts", actor_path=str(tmp_path)))
    assert list(contract.commands) == ["Open", "Deposit"]
    module = ModuleType("shown")
    exec(f"from accounts import *\n{test}", vars(module))
    module.test_a_deposit()
    monkeypatch.delitem(sys.modules, "accounts")


def test_every_link_leads_somewhere() -> None:
    for page in (README, *README.parent.glob("docs/*.md"), README.parent / "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_track_record_names_tests_that_are_there() -> None:
    tests = {path: path.read_text("utf-8") for path in (README.parent / "tests").rglob("test_*.py")}
    names = re.findall(r"`(test\w+|tests/[\w/]+\.py)`", (README.parent / "docs" / "track-record.md").read_text("utf-8"))
    assert names
    for name in names:
        there = (README.parent / name).exists() if "/" in name else any(f"def {name}(" in t for t in tests.values())
        assert there, name
