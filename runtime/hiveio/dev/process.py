"""A server as a child process: started, awaited, stopped, killed, paused; it never outlives us."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Self

HOST = "127.0.0.1"  # not "localhost": a client may try ::1 first, where no one listens
log = logging.getLogger(__name__)


class ServiceUnavailable(Exception):
    """The service cannot be had on this machine: a binary or a download is missing."""


class ServiceFailed(Exception):
    """The service is there and did not start, or stopped answering; the message ends with the tail of its log."""


# Runs between fork and exec of a service, in a process of its own: Python code in a forked child of a process with
# threads (librdkafka's, say) may deadlock. 1 is PR_SET_PDEATHSIG; the parent may have died before it was set.
_GUARD = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
_Spawn = tuple[Sequence[str], Path | None, Mapping[str, str] | None, int, Future[subprocess.Popen[bytes]]]
_spawns: queue.SimpleQueue[_Spawn] = queue.SimpleQueue()
_spawner_started = threading.Lock()


def _forked() -> None:
    # Threads do not survive a fork: the child starts its own.
    global _spawner_started
    _spawner_started = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def _spawner() -> None:
    # The kernel sends the death signal when the *thread* that forked ends, so one that lives as long as the process
    # (a daemon thread is never joined) forks for all.
    while True:
        command, console, environ, stdin, result = _spawns.get()
        guarded = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command]
        try:
            with contextlib.ExitStack() as stack:
                output = stack.enter_context(console.open("ab")) if console else subprocess.PIPE
                result.set_result(
                    subprocess.Popen(
                        guarded,
                        env=environ,
                        stdin=stdin,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        except OSError as error:
            result.set_exception(error)


def spawn(
    command: Sequence[str],
    console: Path | None,
    environ: Mapping[str, str] | None = None,
    *,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start `command` (an absolute path first) in its own process group.

    Its output is appended to `console`, or comes in a pipe. `environ` is its environment, by default ours. It dies with
    this process, also when this process gets SIGKILL (Linux).
    """
    if _spawner_started.acquire(blocking=False):  # never released: once a process
        threading.Thread(target=_spawner, name="service-spawner", daemon=True).start()
    result: Future[subprocess.Popen[bytes]] = Future()
    _spawns.put((command, console, environ, stdin, result))
    try:
        return result.result()
    except BaseException:  # a signal, say: nobody gets the process
        result.add_done_callback(_discard)
        raise


def _discard(result: Future[subprocess.Popen[bytes]]) -> None:
    """End a process that has started after all."""
    if result.exception() is None:
        kill_group(result.result())


def end_forks_with_us() -> None:
    """From now on each process that this one forks dies with it, also when this one gets SIGKILL (Linux).

    For a service that `spawn` has started: the kernel forgets at a fork what `spawn` asked of it. So the workers of a
    service would outlive it until they notice, and then drain, towards a Kafka that has died as well. To be called in
    the thread that forks, which has to live as long as the process. What its forks fork themselves is left alone.
    """
    if sys.platform != "linux":
        return
    prctl, parent, below = ctypes.CDLL(None).prctl, os.getpid(), False

    def forked() -> None:
        nonlocal below
        if below:
            return
        below = True
        prctl(1, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            os._exit(1)

    os.register_at_fork(after_in_child=forked)


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a child that `spawn` has started and to what it has started; the child is awaited."""
    signal_group(child.pid, signal.SIGKILL)
    child.wait()


def signal_group(leader: int, number: signal.Signals) -> None:
    """To all processes of the group of a child that `spawn` has started. That none of them is left is no error."""
    # macOS says EPERM where those that are left have ended and nobody has waited for them.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def free_port() -> int:
    """A TCP port that no one listens on, and that no other call has returned to a process that still runs.

    Below the ephemeral range, so that no outgoing connection takes it while a service is down between two starts. The
    UDP port of the same number claims it until this process ends: several processes run the tests side by side.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket(type=socket.SOCK_DGRAM) as claim, socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                claim.bind((HOST, port))
                probe.bind((HOST, port))
                claim.detach()  # it stays open
                return port


class Service:
    """A server as a child process on one port, with its data in one folder.

    `folder` is kept if given, else it is a temporary one, removed by `close()` or at exit. The port stays the same
    over all restarts. As a context manager it starts and closes.
    """

    name = "service"

    def __init__(self, port: int | None, folder: Path | str | None) -> None:
        self.port = port or free_port()
        self._temporary = folder is None
        self.folder = Path(folder or tempfile.mkdtemp(prefix=f"hiveio-{self.name}-")).resolve()
        self.data = self.folder / "data"
        self.process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process exists; a paused one does."""
        return self.process is not None and self.process.poll() is None

    def start(self, timeout_s: float = 60.0) -> None:
        """Start with the data of before, and return when it answers; raises what `launch` and `wait` raise."""
        self.launch()
        self.wait(timeout_s)

    def launch(self) -> None:
        """Start the process and do not wait; raises ServiceUnavailable."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        self.data.mkdir(parents=True, exist_ok=True)
        self.process = spawn(self._command(), self.folder / "console.log")

    def wait(self, timeout_s: float = 60.0) -> None:
        """Return when it answers; otherwise end it and raise ServiceFailed with the tail of its log."""
        deadline = time.monotonic() + timeout_s
        answers = self._probe()
        while not answers():
            if not self.running or time.monotonic() > deadline:
                problem = f"no answer in {timeout_s:g} s" if self.running else "the process ended"
                self.kill()
                raise ServiceFailed(f"{self.name} on port {self.port}: {problem}\n{self.log_tail()}")
            time.sleep(0.02)

    def stop(self, timeout_s: float = 20.0) -> None:
        """End in good order (SIGTERM), by SIGKILL after `timeout_s`; the data stay. Nothing to stop is no error."""
        if self.process is not None and self.running:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # a paused process takes no SIGTERM
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                log.warning("%s did not end within %g s and is killed", self.name, timeout_s)
        self.kill()

    def kill(self) -> None:
        """SIGKILL, and return when it is gone; the data stay."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """SIGSTOP, and return when it is stopped."""
        self._signal(signal.SIGSTOP)
        self._await_state(os.WSTOPPED)

    def resume(self) -> None:
        """SIGCONT, and return when it goes on."""
        self._signal(signal.SIGCONT)
        self._await_state(os.WCONTINUED)

    def restart(self, *, empty: bool = False) -> None:
        """Stop, if it runs, and start on the same port; with `empty` all data are gone."""
        self.stop()
        if empty:
            shutil.rmtree(self.data)
        self.start()

    def close(self) -> None:
        """Stop, and remove the folder if it is a temporary one. In a fork of its maker it does nothing."""
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.close)
        self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of all its logs."""
        return "\n".join(
            line for path in sorted(self.folder.glob("*.log")) for line in path.read_text().splitlines()[-lines:]
        )

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            signal_group(self.process.pid, number)

    def _await_state(self, state: int) -> None:
        if self.process is not None:
            # WNOWAIT: an exit is left for Popen to collect.
            os.waitid(os.P_PID, self.process.pid, state | os.WEXITED | os.WNOWAIT)

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _probe(self) -> Callable[[], bool]:
        raise NotImplementedError
