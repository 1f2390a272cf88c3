"""PostgreSQL from the distribution's package (Debian: postgresql)."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.services.process import HOST, Service, ServiceUnavailable


class Postgres(Service):
    """One server with the database `postgres` and the user `hiveio`, who needs no password.

    It does not run as root: where we are root, it runs as the user `postgres`, or `nobody`.
    """

    name = "postgres"

    def __init__(self, port: int | None = None, folder: Path | str | None = None) -> None:
        super().__init__(port, folder)

    @property
    def url(self) -> str:
        return f"postgresql://hiveio@{HOST}:{self.port}/postgres"

    def _command(self) -> list[str]:
        found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
        server = next((str(folder / "postgres") for folder in found), None) or shutil.which("postgres")
        if server is None:
            raise ServiceUnavailable("postgres is neither in /usr/lib/postgresql nor in PATH: apt install postgresql")
        user = self._other_user()
        if not (self.data / "PG_VERSION").exists():
            initdb = [*user, str(Path(server).resolve().parent / "initdb"), "-D", str(self.data), "-U", "hiveio"]
            initdb += ["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
            made = subprocess.run(initdb, capture_output=True, text=True, check=False)
            if made.returncode != 0:
                raise ServiceUnavailable(f"initdb: {made.stderr}")
        # SIGKILL of the server loses nothing without fsync either: the kernel has it.
        options = {"port": self.port, "listen_addresses": HOST, "unix_socket_directories": "", "fsync": "off"}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [*user, server, "-D", str(self.data), *words]

    def _other_user(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        setpriv = shutil.which("setpriv")
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        other = names.get("postgres") or names.get("nobody")
        if setpriv is None or other is None:
            raise ServiceUnavailable("postgres does not run as root, and there is no other user to run it as")
        for path in (self.folder, self.data):
            os.chown(path, other.pw_uid, other.pw_gid)
        # A change of user forgets that it is to die with us.
        return [
            setpriv, "--reuid", str(other.pw_uid), "--regid", str(other.pw_gid), "--clear-groups",
            "--pdeathsig", "SIGKILL", "--",
        ]  # fmt: skip

    def _probe(self) -> Callable[[], bool]:
        def answers() -> bool:
            try:
                with socket.create_connection((HOST, self.port), timeout=1) as connection:
                    connection.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")  # SSLRequest: any ready server answers it
                    return connection.recv(1) in (b"N", b"S")
            except OSError:
                return False

        return answers
