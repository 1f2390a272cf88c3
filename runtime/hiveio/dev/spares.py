"""Processes that have imported what a service needs, and wait to become one: that is half of the time of a start."""

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping

import msgspec

from hiveio.dev.process import end_forks_with_us, spawn
from hiveio.roles import ROLES, build_of

COUNT = 2  # a change seldom concerns more services at once; each takes 60 MB
# Of an interpreter, which is started before anything else is known.
PYTHON = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # a folder that is watched is not written to
}


class Spares:
    """For one thread, but for ``start``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[subprocess.Popen[bytes]] = []

    def fill(self) -> None:
        """Start those that are missing; they use a core for half a second."""
        self._waiting += [self._spawn() for _ in range(COUNT - len(self._waiting))]

    def start(self, role: str, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """A service of this role and environment, by a spare process if there is one."""
        process = self._one()
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(msgspec.json.encode([role, environ]) + b"\n")
        process.stdin = None  # it hears nothing more
        return process

    def _one(self) -> subprocess.Popen[bytes]:
        with self._lock:
            while self._waiting:
                process = self._waiting.pop(0)
                if process.poll() is None:
                    return process
                process.communicate()  # somebody has ended it
        return self._spawn()

    def close(self) -> None:
        """End those that wait."""
        for process in self._waiting:
            process.kill()
        for process in self._waiting:
            process.communicate()  # which closes its pipes

    @staticmethod
    def _spawn() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", __name__]
        return spawn(command, None, {**os.environ, **PYTHON}, stdin=subprocess.PIPE)


# -- in the process itself


def main() -> None:
    from hiveio import metrics
    from hiveio.server.process import serve  # `hiveio dev` itself needs none of it

    for role in ROLES:
        build_of(role)
    line = sys.stdin.buffer.readline()
    if not line:
        return  # nobody needs it any more
    role, environ = msgspec.json.decode(line, type=tuple[str, dict[str, str]])
    os.environ.clear()
    # Of what is imported, the metrics alone have put something there, and `environ` has that of another process.
    os.environ.update({**environ, metrics.VARIABLE: metrics.folder})
    importlib.invalidate_caches()  # packages may have been installed while it waited
    end_forks_with_us()
    serve(build_of(role))


if __name__ == "__main__":
    main()
