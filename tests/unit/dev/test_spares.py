"""Processes that wait to become a service."""

import os
import signal
from pathlib import Path

from hiveio.dev.spares import COUNT, Spares
from tests.process import wait_until


def waiting() -> list[int]:
    """Children of ours that are spare, by their ids."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            parent = (each / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"hiveio.dev.spares" in (each / "cmdline").read_bytes():
                found.append(int(each.name))
        except OSError:
            pass  # it has ended
    return sorted(found)


def test_a_spare_becomes_a_service_with_its_environment_and_none_is_left(tmp_path: Path) -> None:
    spares = Spares()
    try:
        spares.fill()
        before = wait_until(lambda: len(found := waiting()) == COUNT and found, 5)
        environ = {"PATH": os.environ["PATH"], "ACTOR_PATH": str(tmp_path), "ACTOR_MODULE": "nowhere"}
        service = spares.start("base", environ)
        said, _ = service.communicate(timeout=30)
        assert b"nowhere" in said
        assert service.returncode not in (0, None)
        assert service.pid in before
        spares.fill()
        killed = wait_until(lambda: len(found := waiting()) == COUNT and found, 5)
        for each in killed:
            os.kill(each, signal.SIGKILL)
            os.waitid(os.P_PID, each, os.WEXITED | os.WNOWAIT)
        service = spares.start("base", environ)
        assert b"nowhere" in service.communicate(timeout=30)[0]
        assert service.pid not in killed
    finally:
        spares.close()
    assert waiting() == []
