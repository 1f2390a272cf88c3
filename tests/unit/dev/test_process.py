"""Children, and the groups of processes that they are."""

import os
import signal
import sys

import pytest

from hiveio.dev.process import signal_group, spawn


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError], ids=["Linux", "macOS"])
def test_a_group_that_has_ended_takes_any_signal(error: type[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    child = spawn([sys.executable, "-c", "pass"], None)
    child.communicate(timeout=20)

    def ended(leader: int, number: int) -> None:
        raise error

    monkeypatch.setattr(os, "killpg", ended)
    signal_group(child.pid, signal.SIGKILL)
