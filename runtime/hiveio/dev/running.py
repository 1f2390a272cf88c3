"""A service as a child process, started again whenever its files change."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from hiveio.dev.actors import Found
from hiveio.dev.calls import calls
from hiveio.dev.changes import files_of
from hiveio.dev.output import Output
from hiveio.dev.process import HOST, kill_group, spawn
from hiveio.dev.services import console
from hiveio.dev.spares import Spares

STOPPED_S = 8.0  # the longest drain; then it is killed
LOOK_S = 0.03
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy of the user does not know our services


class Running:
    """What `hiveio serve ROLE` runs, on `port`; what it says goes to `output`."""

    ready = "/readyz"  # is 200 once it is ready

    def __init__(
        self, found: Found, port: int, environ: Mapping[str, str], folder: Path, output: Output, spares: Spares
    ) -> None:
        self.found, self.port, self.environ = found, port, environ
        self._folder, self._output, self.spares = folder, output, spares
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.files: set[Path] = set()
        self.said_ended = False  # by who watches it, since its last start

    @property
    def name(self) -> str:
        return self.found.short

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def ended(self) -> int | None:
        """The exit code, where it has ended without `stop`."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Does not wait."""
        self.said_ended = False
        self.files = files_of(self._folder, self.found.name.partition(":")[0])
        self._process = process = self._spawn()
        self._reader = threading.Thread(target=self._read, args=(process,), name=f"output of {self.name}", daemon=True)
        self._reader.start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        return self.spares.start(self.found.role, self.environ)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._output.said(self.name, line.decode("utf-8", "backslashreplace").rstrip("\n"))

    def stop(self) -> None:
        """It drains, and is killed if it does not end. Nothing of it is left."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPPED_S)
        kill_group(process)  # its workers too
        if self._reader is not None:
            self._reader.join(1)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has become ready; False at once if it ends, or is stopped."""
        until, process = time.monotonic() + timeout_s, self._process
        while time.monotonic() < until and process is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                if self._ask(self.ready).status == 200:
                    return True
            time.sleep(LOOK_S)
        return False

    def waits_for(self) -> str:
        """What /readyz says, of a service that is not ready."""
        try:
            self._ask("/readyz?verbose").close()
        except urllib.error.HTTPError as error:
            return error.read().decode("utf-8", "backslashreplace")
        except OSError as error:
            return str(error)
        return ""

    def introduce(self) -> None:
        """Say where it is, and what can be sent there."""
        console.print(f"\n[bold]{escape(self.name)}[/]  {self.found.role}  {self.url}")
        with contextlib.suppress(OSError), self._ask("/openapi.json") as answer:
            for line in calls(json.load(answer), self.url.removeprefix("http://")):
                console.print(f"  {escape(line)}")

    def _ask(self, path: str) -> Any:
        return _direct.open(f"http://{HOST}:{self.port}{path}", timeout=5)


class RunningConsole(Running):
    """`hiveio console` of a stream processor, started again with it: it folds states with the same actor. ``others``
    are the URLs of services that do not announce themselves."""

    ready = "/console.css"

    def __init__(self, of: Running, port: int, others: Sequence[str], folder: Path, output: Output) -> None:
        topics = {"EVENT_STORE_CONSUMER_TOPIC": ""}  # the one that the stream processor writes
        super().__init__(of.found, port, {**of.environ, **topics}, folder, output, of.spares)
        self.others = list(others)

    @property
    def name(self) -> str:
        return f"{self.found.short} console"

    def introduce(self) -> None:
        if self.ended is None:
            console.print(f"\n[bold]{escape(self.name)}[/]  {self.url}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        return spawn([sys.executable, "-P", "-m", "hiveio.cli.child", *self.words], None, self.environ)

    @property
    def words(self) -> list[str]:
        """The command of hiveio that it is."""
        return [
            "console",
            "--port",
            str(self.port),
            "--write",
            *(word for url in self.others for word in ("--instance", url)),
        ]
