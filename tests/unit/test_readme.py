"""What the README shows is true."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
