"""A real nginx as a child process, for tests."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import require
from tests.process import wait_until

AROUND = """
%(user)s
daemon off;
pid %(folder)s/pid;
error_log stderr error;
events {}
http {
    access_log off;
    client_body_temp_path %(folder)s/body;
    proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi;
    scgi_temp_path %(folder)s/scgi;
    %(http)s
}
"""


@contextmanager
def nginx(folder: Path, port: int, http: str) -> Iterator[None]:
    """nginx with ``http`` in its block of this name, until the end of the block; it listens on ``port`` by then."""
    command = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not command:
        require("nginx", "no nginx in PATH")
    config = folder / "nginx.conf"
    config.write_text(AROUND % {"user": "user root;" if os.getuid() == 0 else "", "folder": folder, "http": http})
    arguments = [command, "-p", str(folder), "-c", str(config), "-e", "stderr"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: _listens(process, port), what="nginx")
            yield
        finally:
            process.terminate()


def _listens(process: "subprocess.Popen[str]", port: int) -> bool:
    assert process.poll() is None, process.stderr and process.stderr.read()
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
