"""The workflows of .github, read by actionlint. No runner is needed, and none has run them here."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.process import ROOT
from tests.services import jars

MODULE = Path(__file__).parents[1] / "actionlint"
BUILT_S = 200


def actionlint() -> Path:
    """The command, built at the first call from the sources that go.sum names."""
    go = shutil.which("go")
    if go is None:
        require("go", "no go in PATH")
    binary = jars.cache() / "actionlint"
    command = [go, "build", "-o", str(binary), "github.com/rhysd/actionlint/cmd/actionlint"]
    built = subprocess.run(command, cwd=MODULE, capture_output=True, text=True, timeout=BUILT_S, check=False)
    if built.returncode != 0:
        require("go", built.stderr)
    return binary


@pytest.mark.timeout(BUILT_S + 60)
def test_actionlint_finds_nothing() -> None:
    found = subprocess.run([actionlint()], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
