"""What the README shows is true."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hiveio.cli import COMMANDS, main
from hiveio.config import Settings
from hiveio.loader import load
from tests.process import ROOT

TEXT = (ROOT / "README.md").read_text("utf-8")


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


def test_it_does_not_deny_what_there_is() -> None:
    assert "ProcessManager" in TEXT
    assert not re.search(r"no sagas|no timers|sagas today", TEXT)


def test_it_begins_with_a_project_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines are played in tests/integration: test_dist.py installs, test_dev.py runs what is written."""
    first = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)[0]
    (new,) = re.findall(r"^hiveio (new .*)$", first, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    assert main(new.split()) == 0
    (entered, command) = re.findall(r"^cd (\S+) && hiveio (\S+)$", first, re.MULTILINE)[0]
    assert (tmp_path / entered / "compose.yaml").exists()
    assert command in COMMANDS
