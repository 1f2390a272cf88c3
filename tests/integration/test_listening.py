"""Where a role listens: on IPv6 and IPv4, on one address, on machines that have one family only."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hiveio.server.worker import BACKLOG
from tests.conftest import require
from tests.integration.test_base import ACTOR, deposit
from tests.integration.test_tls import Authority
from tests.process import Role, wait_until

pytestmark = pytest.mark.usefixtures("ipv6")
HIVEIO = str(Path(sys.executable).parent / "hiveio")


class Machine(Role):
    """hiveio/base on a machine of its own, which has what `setup` leaves of a network."""

    def __init__(self, setup: str) -> None:
        super().__init__("base", {"PORT": "3000"}, actor=ACTOR, wait=False)
        self.setup = setup

    def command(self) -> list[str]:
        script = f'set -e; ip link set lo up; {self.setup}; exec "$@"'
        return ["unshare", "--net", "sh", "-c", script, "sh", *super().command()]

    def reaches(self, host: str) -> bool:
        connect = f"import socket; socket.create_connection(({host!r}, 3000), 10)"
        return self.inside(sys.executable, "-c", connect).returncode == 0

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        within = ["nsenter", f"--target={self.process.pid}", "--net", *command]
        return subprocess.run(within, env=self.environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def networks() -> None:
    """The right and the tools to make networks."""
    if missing := [name for name in ("unshare", "nsenter", "ip") if not shutil.which(name)]:
        require("networks", f"no {missing[0]} in PATH")
    script = "ip link set lo up && echo 1 > /proc/sys/net/ipv6/bindv6only"
    answer = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        require("networks", answer.stderr.strip())


@pytest.fixture(scope="module")
def everywhere() -> Iterator[Role]:
    with Role("base", {"HTTP_VERSION": "2", "CLUSTER_SIZE": "2"}, actor=ACTOR) as role:
        yield role
    assert not role.complaints()


def health(role: Role, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [HIVEIO, "health", "--ready"]
    environ = {**role.environ, "PORT": str(role.port), **environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_it_answers_on_both_families(everywhere: Role, host: str, version: int) -> None:
    with httpx.Client(http1=version == 1, http2=version == 2, timeout=20) as client:
        answer = client.post(f"http://{host}:{everywhere.port}/accounts/1", json=deposit(1))
    assert (answer.status_code, answer.http_version) == (200, "HTTP/2" if version == 2 else "HTTP/1.1")


def test_it_says_where_it_listens(everywhere: Role) -> None:
    ((address, port),) = [(line["address"], line["port"]) for line in everywhere.logs("listening")]
    assert (address, port) == ("::", everywhere.port)


def test_connections_wait_in_a_queue_that_holds_a_thousand_clients(everywhere: Role) -> None:
    if not shutil.which("ss"):
        require("networks", "no ss in PATH")
    command = ["ss", "--listening", "--tcp", "--numeric", "--no-header", f"sport = :{everywhere.port}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert {int(line.split()[2]) for line in shown.splitlines()} == {min(BACKLOG, most)}
    assert BACKLOG >= 2_048


def test_it_listens_on_one_address_alone() -> None:
    with Role("base", {"BIND": "127.0.0.1"}, actor=ACTOR) as role:
        assert role.logs("listening")[0]["address"] == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("::1", role.port or 0), 10)
        assert health(role).returncode == 0
        asked = health(role, BIND="::1")
        assert (asked.returncode, asked.stderr) == (1, "no answer: [Errno 111] Connection refused\n")


def test_it_listens_on_an_ipv6_address_with_tls_and_http2(tmp_path: Path) -> None:
    secure = Authority(tmp_path).renew().environ
    with Role("base", {"BIND": "::1", "HTTP_VERSION": "2", **secure}, actor=ACTOR, wait=False) as role:
        wait_until(lambda: role.port and health(role).returncode == 0, 30, "hiveio health")
        for version, name in ((1, "HTTP/1.1"), (2, "HTTP/2")):
            with httpx.Client(http1=version == 1, http2=version == 2, verify=False, timeout=20) as client:
                answer = client.post(f"https://[::1]:{role.port}/accounts/1", json=deposit(1))
            assert (answer.status_code, answer.http_version) == (200, name)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", role.port or 0), 10)


@pytest.mark.parametrize(
    ("bind", "line"),
    [
        ("localhost", "BIND='localhost' is wrong: it takes an IPv4 or IPv6 address"),
        ("192.0.2.1", "BIND=192.0.2.1 cannot be bound: Cannot assign requested address"),
        ("::1", "PORT={port} cannot be bound: Address already in use"),
    ],
)
def test_where_it_cannot_listen_it_ends_with_one_line(everywhere: Role, bind: str, line: str) -> None:
    with Role("base", {"BIND": bind, "PORT": str(everywhere.port)}, actor=ACTOR, wait=False) as role:
        assert role.ended() == 2
    (error,) = role.errors
    assert error.startswith(line.format(port=everywhere.port))


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize(
    ("setup", "reached"),
    [
        ("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6", {"127.0.0.1"}),
        ("echo 1 > /proc/sys/net/ipv6/bindv6only", {"127.0.0.1", "::1"}),
        ("ip addr del 127.0.0.1/8 dev lo", {"::1"}),
    ],
    ids=["IPv6 is off", "IPv6 sockets are for IPv6 by default", "IPv4 is off"],
)
def test_it_starts_with_what_the_machine_has(setup: str, reached: set[str]) -> None:
    with Machine(setup) as role:
        wait_until(lambda: role.inside(HIVEIO, "health", "--ready").returncode == 0, 30, "hiveio health")
        assert {host for host in ("127.0.0.1", "::1") if role.reaches(host)} == reached
    assert not role.complaints()
