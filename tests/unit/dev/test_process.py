"""Children, and the groups of processes that they are."""

import os
import signal
import subprocess
import sys
from concurrent.futures import Future

import pytest

from hiveio.dev import process
from hiveio.dev.process import signal_group, spawn
from tests.process import wait_until


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError], ids=["Linux", "macOS"])
def test_a_group_that_has_ended_takes_any_signal(error: type[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    child = spawn([sys.executable, "-c", "pass"], None)
    child.communicate(timeout=20)

    def ended(leader: int, number: int) -> None:
        raise error

    monkeypatch.setattr(os, "killpg", ended)
    signal_group(child.pid, signal.SIGKILL)


def test_what_starts_while_its_starter_is_interrupted_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Future[subprocess.Popen[bytes]]):
        """Ctrl-C comes while the child is waited for."""

        comes = True

        def result(self, timeout: float | None = None) -> subprocess.Popen[bytes]:
            if self.comes:
                self.comes = False
                made.append(self)
                raise KeyboardInterrupt
            return super().result(timeout)

    made: list[Interrupted] = []
    monkeypatch.setattr(process, "Future", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        spawn([sys.executable, "-c", "import time; time.sleep(60)"], None)
    child = made[0].result(20)
    wait_until(lambda: child.returncode == -signal.SIGKILL)
    assert child.stdout is not None
    child.stdout.close()
