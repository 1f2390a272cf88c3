"""A role's entrypoint as a real process, for tests.

with Role("base", {"REQUEST_TIMEOUT": "500"}, actor=ACTOR) as role:
    httpx.post(role.url + "/accounts/1", json=...)
    assert role.stop() == 0
"""

import json
import os
import select
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx
import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
NOWHERE = "http://127.0.0.1:9"  # as a proxy: whoever asks it for what is on this machine gets nothing
STARTED_S = 30.0


def wait_until(condition: Callable[[], Any], within_s: float = 10.0, what: str = "the condition") -> Any:
    """The first true value of ``condition``; AssertionError after ``within_s``."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come true within {within_s} s")


def settled(ask: Callable[[], httpx.Response], within_s: float = 30.0) -> httpx.Response:
    """The first answer of ``ask`` that is none of 409, 503 and 504, after which a client asks again.

    For a read, or a command with a key, that comes first where REQUEST_TIMEOUT is small. After a start, a read waits
    half of it for a scope that opens. A broker that has just started has no id for the first producer that asks: the
    producer asks again half a second later.
    """

    def answer() -> httpx.Response | None:
        return given if (given := ask()).status_code not in (409, 503, 504) else None

    found: httpx.Response = wait_until(answer, within_s, "an answer that is none of 409, 503 and 504")
    return found


class Output:
    """The lines that a process writes to a pipe. A thread takes them as they come, so that the pipe is never full."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        os.set_blocking(pipe.fileno(), False)
        self._lines: list[str] = []
        self._begun = b""  # of a line whose end has not come
        self._ended = False
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def lines(self) -> list[str]:
        """All lines that were written before the call, also those that the thread has not had the time to take."""
        self._take()
        return list(self._lines)

    def close(self, within_s: float = 10.0) -> None:
        """Wait until nobody can write any more, and close the pipe."""
        self._reader.join(within_s)
        with self._lock:
            self._ended = True
            self._pipe.close()

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while not self._ended:
            poll.poll(1000)
            self._take()

    def _take(self) -> None:
        with self._lock:
            while not self._ended:
                try:
                    chunk = os.read(self._pipe.fileno(), 65536)
                except BlockingIOError:
                    return
                self._ended = not chunk
                *whole, self._begun = (self._begun + (chunk or b"\n" * bool(self._begun))).split(b"\n")
                self._lines += [line.decode() for line in whole]


class Role:
    """``images/<name>/entrypoint.py`` as a subprocess, on a free port.

    ``environ`` are its settings; nothing else is inherited but PATH and HOME. ``actor`` is the source of the module, or
    the module is found in ``actor_path``. As a context manager it waits until /readyz is 200, and at the end drains it,
    or kills it after an error; ``wait=False`` does not wait.
    """

    def __init__(
        self,
        name: str,
        environ: Mapping[str, str] | None = None,
        *,
        actor: str = "",
        actor_path: str | os.PathLike[str] = "/actor",
        module: str = "",
        wait: bool = True,
    ) -> None:
        self.name = name
        self.python = Path(sys.executable)
        self.entrypoint = ROOT / "images" / name / "entrypoint.py"
        self.wait = wait
        if actor:
            actor_path, module = tempfile.mkdtemp(prefix="hiveio-actor-"), module or "actor"
            weakref.finalize(self, shutil.rmtree, actor_path)
            Path(actor_path, module.partition(":")[0] + ".py").write_text(actor)
        self.environ = {
            **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "default",
            "ACTOR_PATH": str(actor_path),
            "ACTOR_MODULE": module,
            "CLUSTER_SIZE": "1",
            "PORT": "0",
            **(environ or {}),
        }
        self.secure = self.environ.get("SECURE") == "true"
        self.trust: ssl.SSLContext | bool = True  # what a client of ours checks the certificate against

    # -- life

    def command(self) -> list[str]:
        return [str(self.python), str(self.entrypoint)]

    def start(self) -> Self:
        self.process = subprocess.Popen(
            self.command(),
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._stdout, self._stderr = Output(self.process.stdout), Output(self.process.stderr)
        return self

    def __enter__(self) -> Self:
        self.start()
        try:
            return self.ready() if self.wait else self
        except BaseException:
            self.kill()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.resume()
            self.kill() if kind else self.stop()
        self._join()

    def ready(self, within_s: float = STARTED_S) -> Self:
        """Wait until /readyz is 200."""
        wait_until(self._is_ready, within_s, f"{self.name} ready; it said: {self.text()}")
        return self

    def rebuilt(self, losses: int) -> None:
        """Wait until it has noticed that it lost its cache, so many times so far, and is ready again."""

        def noticed() -> bool:
            return sum("fell back" in line["message"] for line in self.complaints()) >= losses

        wait_until(noticed, what=f"loss {losses} of the cache is noticed")
        self.ready()

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}: {self.text()}"
        if not self.port:
            return False
        try:
            return httpx.get(self.url + "/readyz", timeout=5, verify=self.trust).status_code == 200
        except httpx.TransportError:
            return False

    def terminate(self, sent: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(sent)

    def stop(self, within_s: float = 30.0) -> int:
        """SIGTERM, and the exit code."""
        self.terminate()
        return self.ended(within_s)

    def ended(self, within_s: float = 30.0) -> int:
        """Wait for the end: the exit code."""
        code = self.process.wait(within_s)
        self._join()
        return code

    def kill(self) -> None:
        """SIGKILL to the process and its workers; first to the one that would start others in their place."""
        workers = self.workers()
        for process in (self.process, *workers):
            try:
                process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                pass
        self.process.wait(10)
        self._join()

    def pause(self) -> None:
        """SIGSTOP to all its processes: it hangs, and keeps its connections."""
        for process in (psutil.Process(self.process.pid), *self.workers()):
            process.suspend()

    def resume(self) -> None:
        for process in (psutil.Process(self.process.pid), *self.workers()):
            process.resume()

    def _join(self) -> None:
        self._stdout.close()
        self._stderr.close()

    # -- what it shows

    @property
    def lines(self) -> list[str]:
        """Of stdout: all that was written before the call, so those that it logged before it gave an answer."""
        return self._stdout.lines()

    @property
    def errors(self) -> list[str]:
        """The lines of stderr."""
        return self._stderr.lines()

    def workers(self) -> list[Any]:
        try:
            return list(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    @property
    def port(self) -> int | None:
        return next((line["port"] for line in self.logs("listening")), None)

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://127.0.0.1:{self.port}"

    def logs(self, message: str | None = None) -> list[dict[str, Any]]:
        """The log lines so far, decoded; only those with this message. Raises if one is not JSON."""
        found = [json.loads(line) for line in self.lines]
        return [line for line in found if message is None or line["message"] == message]

    def complaints(self) -> list[dict[str, Any]]:
        """Log lines above info."""
        return [line for line in self.logs() if line["level"] not in ("info", "debug")]

    def text(self) -> str:
        return "\n".join(["", *self.lines, *self.errors])
