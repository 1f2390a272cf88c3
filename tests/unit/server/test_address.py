"""Where a service listens, on machines with one family of addresses only, and which address a client has there."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from hiveio.errors import ConfigError
from hiveio.server.address import connected, host_and_port, listening
from hiveio.server.http2 import Http2Connection

pytestmark = pytest.mark.usefixtures("ipv6")


@pytest.fixture
def without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that was started with ipv6.disable=1."""

    class Socket(socket.socket):
        def __init__(self, family: int = -1, *rest: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *rest, **named)

    monkeypatch.setattr(socket, "socket", Socket)


@pytest.fixture
def used_port() -> Iterator[int]:
    """A port in use, under IPv6 alone."""
    with socket.create_server(("::", 0), family=socket.AF_INET6) as server:
        yield server.getsockname()[1]


def test_all_addresses_are_those_of_both_families() -> None:
    with listening("::", 0) as listener:
        listener.listen()
        assert listener.getsockname()[0] == "::"
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listener.getsockname()[1]), 10).close()


@pytest.mark.usefixtures("without_ipv6")
def test_without_ipv6_all_addresses_are_those_of_ipv4() -> None:
    with listening("::", 0) as listener:
        listener.listen()
        assert listener.getsockname()[0] == "0.0.0.0"
        connected("::", listener.getsockname()[1], 10).close()
    with pytest.raises(ConfigError, match=r"^BIND=::1 cannot be bound: Address family not supported"):
        listening("::1", 0)


def test_an_address_of_another_machine_is_one_sentence_with_the_remedy() -> None:
    with pytest.raises(ConfigError) as caught:
        listening("192.0.2.1", 0)
    assert str(caught.value) == (
        "BIND=192.0.2.1 cannot be bound: Cannot assign requested address. "
        "It takes an address of this machine, or :: for all"
    )
    with pytest.raises(ConfigError, match=r"^BIND=fe80::1%nowhere cannot be bound: "):
        listening("fe80::1%nowhere", 0)


def test_a_port_that_is_taken_under_ipv6_is_not_listened_on_under_ipv4_alone(used_port: int) -> None:
    with pytest.raises(ConfigError, match=rf"^PORT={used_port} cannot be bound: Address already in use$"):
        listening("::", used_port)


@pytest.mark.parametrize(
    ("host", "reached"),
    [("::", ["127.0.0.1", "::1"]), ("0.0.0.0", ["127.0.0.1"]), ("::1", ["::1"]), ("192.0.2.1", ["192.0.2.1"])],
)
def test_a_service_is_looked_for_where_it_listens(
    monkeypatch: pytest.MonkeyPatch, host: str, reached: list[str]
) -> None:
    tried = []

    def refused(where: tuple[str, int], within_s: float) -> None:
        tried.append(where[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refused)
    with pytest.raises(ConnectionRefusedError):
        connected(host, 3000, 1)
    assert tried == reached


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (("192.0.2.1", 80), ("192.0.2.1", 80)),
        (("::ffff:192.0.2.1", 80, 0, 0), ("192.0.2.1", 80)),
        (("2001:db8::1", 80, 0, 0), ("2001:db8::1", 80)),
        (("::1", 80, 0, 0), ("::1", 80)),
        (("::ffff:0:192.0.2.1", 80, 0, 0), ("::ffff:0:192.0.2.1", 80)),
        (("::ffff:0:c000:201", 80, 0, 0), ("::ffff:0:c000:201", 80)),
        ("/run/socket", None),
        (None, None),
    ],
)
def test_a_name_is_a_host_and_a_port(name: Any, shown: Any) -> None:
    assert host_and_port(name) == shown


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_http2_tells_who_has_called(host: str) -> None:
    """As ASGI has it: two items, and IPv4 as IPv4. test_http1.py has the same for HTTP/1."""

    async def connection() -> Http2Connection:
        loop = asyncio.get_running_loop()
        worker: Any = SimpleNamespace(connections=set(), admit=lambda connection: True)
        connections: list[Http2Connection] = []

        def greet() -> Http2Connection:
            connections.append(Http2Connection(worker))
            return connections[0]

        with listening("::", 0) as listener:
            async with await loop.create_server(greet, sock=listener):
                _, writer = await asyncio.open_connection(host, listener.getsockname()[1])
                async with asyncio.timeout(10):
                    while not connections:
                        await asyncio.sleep(0)
                writer.close()
                port = listener.getsockname()[1]
        assert connections[0].server == (host, port)
        return connections[0]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        client = runner.run(connection()).client
    assert client is not None
    assert (len(client), client[0]) == (2, host)
