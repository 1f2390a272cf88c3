"""PostgreSQL and its pooler from the distribution's packages (Debian: postgresql, pgbouncer)."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg

from hiveio.dev.process import HOST, Service, ServiceUnavailable


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
        user = _other_user(self.folder, self.data)
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

    def _probe(self) -> Callable[[], bool]:
        return lambda: _answers(self.url)

    def pause(self) -> None:
        """The sessions too, which are processes in groups of their own."""
        super().pause()
        self._signal_sessions(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_sessions(signal.SIGCONT)
        super().resume()

    def _signal_sessions(self, number: signal.Signals) -> None:
        if self.process is not None:
            pid = self.process.pid
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), number)


class Pgbouncer(Service):
    """A pooler in front of a server, in transaction mode: each transaction may have another session."""

    name = "pgbouncer"

    def __init__(self, server: Postgres, sessions: int = 2) -> None:
        self._server, self._sessions = server, sessions
        super().__init__(None, None)

    @property
    def url(self) -> str:
        return f"postgresql://hiveio@{HOST}:{self.port}/postgres"

    def _command(self) -> list[str]:
        found = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
        if found is None:
            raise ServiceUnavailable("pgbouncer is not in PATH: apt install pgbouncer")
        settings = self.folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\npostgres = host={HOST} port={self._server.port} user=hiveio\n"
            f"[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {self.port}\nauth_type = any\nunix_socket_dir =\n"
            f"pool_mode = transaction\ndefault_pool_size = {self._sessions}\n"
        )
        return [*_other_user(self.folder, self.data), found, str(settings)]

    def _probe(self) -> Callable[[], bool]:
        return lambda: _answers(self.url)


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=2):  # a server that still starts up takes a connection and refuses it
            return True
    except psycopg.Error:
        return False


def _other_user(*paths: Path) -> list[str]:
    """The beginning of a command that runs as another user than root, who is given the paths."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    other = names.get("postgres") or names.get("nobody")
    if setpriv is None or other is None:
        raise ServiceUnavailable("this server does not run as root, and there is no other user to run it as")
    for path in paths:
        os.chown(path, other.pw_uid, other.pw_gid)
    # A change of user forgets that it is to die with us.
    return [
        setpriv, "--reuid", str(other.pw_uid), "--regid", str(other.pw_gid), "--clear-groups",
        "--pdeathsig", "SIGKILL", "--",
    ]  # fmt: skip
