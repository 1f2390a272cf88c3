"""Processes that wait to become a service."""

import os
import re
import signal
from pathlib import Path

import httpx

from hiveio import metrics
from hiveio.dev.process import free_port
from hiveio.dev.spares import COUNT, Spares
from tests.process import wait_until

ECHO = """
from hiveio import Actor, Command, Model

class Say(Command):
    text: str

class Said(Model):
    text: str

class EchoActor(Actor):
    path = "/echo"

    def perform(self, message: Say) -> Said:
        return Said(message.text)
"""


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


def answer(port: int, path: str) -> str | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}").text
    except httpx.TransportError:
        return None


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
        # One that serves has what it counts in a place of its own, whatever the environment says.
        (tmp_path / "echo.py").write_text(ECHO)
        port = free_port()
        serving = {"ACTOR_MODULE": "echo", "PORT": str(port), "CLUSTER_SIZE": "1", metrics.VARIABLE: metrics.folder}
        service = spares.start("base", environ | serving)
        wait_until(lambda: answer(port, "/readyz") is not None, 20, "an answer")
        wait_until(
            lambda: re.search(r"^hiveio_build_info\{.*\} 1.0$", str(answer(port, "/metrics")), re.M), 5, "metrics"
        )
        service.terminate()
        service.communicate(timeout=20)
        assert service.returncode == 0
    finally:
        spares.close()
    assert waiting() == []
