"""ADMIN_PORT: probes, metrics and documents on a port of their own, with each HTTP that the service speaks."""

import contextlib
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.integration.test_base import ACTOR, deposit
from tests.integration.test_hostile import connect, few_files
from tests.process import Role, wait_until

HIVEIO = str(Path(sys.executable).parent / "hiveio")


def admin(role: Role) -> str:
    port: int = wait_until(lambda: next((line["admin_port"] for line in role.logs("listening")), None), 30)
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("version", ["1", "2"])
def test_each_port_has_its_own(version: str) -> None:
    role = Role("base", {"ADMIN_PORT": "0", "HTTP_VERSION": version, "CLUSTER_SIZE": "2"}, actor=ACTOR, wait=False)
    with role:
        own = admin(role)
        with httpx.Client(http1=version == "1", http2=version == "2", timeout=10) as client:
            wait_until(lambda: client.get(f"{own}/readyz").status_code == 200, 30, "ready")
            assert client.post(f"{role.url}/accounts/1", json=deposit(5)).status_code == 200
            for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
                assert client.get(role.url + path).status_code == 404
                assert client.get(own + path).status_code == 200
            assert client.get(f"{role.url}/ping").text == "pong"
            assert client.get(f"{own}/accounts/1").status_code == 404
            shown = client.get(f"{own}/metrics").text
            assert "process_resident_memory_bytes " in shown
            assert "hiveio_build_info{" in shown
        environ = {**role.environ, "PORT": str(role.port), "ADMIN_PORT": own.rpartition(":")[2]}
        assert subprocess.run([HIVEIO, "health", "--ready"], env=environ, timeout=30, check=False).returncode == 0
        assert role.complaints() == []
        assert role.stop() == 0


def test_the_two_ports_differ() -> None:
    with Role("base", {"PORT": "3000", "ADMIN_PORT": "3000"}, actor=ACTOR, wait=False) as role:
        assert role.ended() == 2
    assert role.errors == ["ADMIN_PORT=3000 is wrong: it is PORT too; it takes another port"]


@pytest.mark.parametrize("version", ["1", "2"])
def test_probes_are_answered_though_clients_have_all_connections(version: str) -> None:
    with contextlib.ExitStack() as stack:
        with few_files(256):
            environ = {"ADMIN_PORT": "0", "HTTP_VERSION": version}
            role = stack.enter_context(Role("base", environ, actor=ACTOR, wait=False))
        own = admin(role)
        wait_until(lambda: role.logs("worker serves"))
        for _ in range(130):
            stack.enter_context(connect(role))
        wait_until(lambda: httpx.get(f"{role.url}/ping").status_code == 503)
        for path in ("/livez", "/readyz", "/metrics"):
            assert httpx.get(own + path).status_code == 200
        kept = [stack.enter_context(httpx.Client(base_url=own)) for _ in range(33)]
        assert [client.get("/livez").status_code for client in kept] == [200] * 32 + [503]
