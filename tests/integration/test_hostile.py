"""HTTP/1.1 from a hostile or clumsy client: it gets 4xx or is cut off, and no other client notices."""

import contextlib
import gc
import re
import resource
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.integration.test_base import ACTOR, deposit
from tests.process import Role, wait_until

BODY = b'{"type":"Deposit","payload":{"amount":1}}'
HEAD = b"POST /accounts/1 HTTP/1.1\r\nHost: a\r\n"
POST = HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
GET = b"GET /accounts/%d HTTP/1.1\r\nHost: a\r\n\r\n"
SLOW = b'{"type":"Slow","payload":{"seconds":0.5}}'
TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def base() -> Iterator[Role]:
    environ = {"REQUEST_TIMEOUT": str(int(TIMEOUT_S * 1000))}
    with Role("base", environ, actor=ACTOR) as role:
        yield role
    assert role.process.returncode == 0, role.text()
    assert not role.errors
    assert not role.complaints()


@pytest.fixture(autouse=True)
def well(base: Role) -> Iterator[None]:
    """Whatever a test does, the service answers afterwards, the same process still."""
    before = [worker.pid for worker in base.workers()]
    yield
    assert httpx.post(f"{base.url}/accounts/1", json=deposit(1), timeout=20).status_code == 200
    assert [worker.pid for worker in base.workers()] == before


def connect(role: Role) -> socket.socket:
    return socket.create_connection(("127.0.0.1", role.port or 0), timeout=20)


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def read(connection: socket.socket, answers: int) -> bytes:
    """What comes until so many answers are there in full, or the end."""
    received = b""
    while len(re.findall(rb"\r\n\r\n[^\r]*[}\n]", received)) < answers:
        try:
            part = connection.recv(65_536)
        except ConnectionError:
            break
        if not part:
            break
        received += part
    return received


def closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        pass
    return True


def test_requests_sent_before_the_answer_are_answered_in_order(base: Role) -> None:
    with connect(base) as connection:
        connection.sendall(GET % 1 + POST + GET % 2 + POST + GET % 3)
        received = read(connection, 5)
        assert statuses(received) == [200] * 5
        assert re.findall(rb'{"id":"(\d)"}', received) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("cut", [1, 20, 40, 60, len(POST) - 1])
def test_the_rest_of_an_early_request_is_not_taken_for_another(base: Role, cut: int) -> None:
    with connect(base) as connection:
        connection.sendall(POST + POST[:cut])
        received = read(connection, 1)
        connection.sendall(POST[cut:] + GET % 7)
        assert statuses(received + read(connection, 2)) == [200] * 3


def test_a_request_that_comes_while_another_runs(base: Role) -> None:
    with connect(base) as connection:
        before = len(base.logs("slow begins"))
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(SLOW), SLOW))
        wait_until(lambda: len(base.logs("slow begins")) > before)
        connection.sendall(GET % 5)
        received = b""
        while b'{"id":"5"}' not in received:
            received += connection.recv(65_536)
        assert statuses(received) == [200, 200]


def test_head_and_then_a_request(base: Role) -> None:
    with connect(base) as connection:
        connection.sendall((GET % 1).replace(b"GET", b"HEAD") + GET % 2)
        received = b""
        while b'{"id":"2"}' not in received:
            received += connection.recv(65_536)
        assert statuses(received) == [200, 200]


def test_more_requests_ahead_than_are_kept(base: Role) -> None:
    """The connection ends after an answer; none of the answers is to half a request."""
    with connect(base) as connection:
        try:
            connection.sendall(POST * 5_000)
        except ConnectionError:
            pass
        found = statuses(read(connection, 5_000))
        assert found
        assert set(found) == {200}


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        b"Connection: Upgrade\r\nUpgrade: nonsense\r\n",
    ],
)
def test_an_upgrade_is_not_taken_up(base: Role, upgrade: bytes) -> None:
    with connect(base) as connection:
        connection.sendall(b"GET /accounts/9 HTTP/1.1\r\nHost: a\r\n" + upgrade + b"\r\n")
        assert statuses(read(connection, 1)) == [200]


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (431, b"GET /ping HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 101 + b"\r\n"),
        (431, b"GET /ping HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9_000 + b"\r\n\r\n"),
        (414, b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /ping HTTP/1.1\nHost: a\n\n"),
        (400, b"GET /ping HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
        (400, b"GET /ping HTTP/1.1\r\nHost : a\r\n\r\n"),
        (400, b"GET /ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, b"GET /ping HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"),
        (400, b"G\xffT /ping HTTP/1.1\r\nHost: a\r\n\r\n"),
        (505, b"GET /ping HTTP/9.9\r\nHost: a\r\n\r\n"),
        (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (400, HEAD + b"Content-Length: -1\r\n\r\n"),
        (400, HEAD + b"Content-Length: +2\r\n\r\n{}"),
        (400, HEAD + b"Content-Length: 2, 2\r\n\r\n{}"),
        (400, HEAD + b"Content-Length: 99999999999999999999\r\n\r\n"),
        (413, HEAD + b"Content-Length: 9999999999\r\n\r\n"),
        (400, HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (501, HEAD + b"Transfer-Encoding: xchunked\r\n\r\n"),
        (400, HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        (400, CHUNKED + b"-1\r\n"),
        (400, CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n"),
        (400, CHUNKED + b"ffffffffffffffffff\r\n"),
        (400, CHUNKED + b"2\r\n{}XX0\r\n\r\n"),
        (400, CHUNKED + b"2;" + b"x" * 100_000),
        (431, CHUNKED + b"0\r\n" + b"A: b\r\n" * 10_000),
        (400, HEAD + b"Idempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)),
        (412, HEAD + b'If-Match: "1"\r\nIf-Match: "2"\r\nContent-Length: %d\r\n\r\n%s' % (len(BODY), BODY)),
        (400, b"GET /accounts/\xff HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /accounts/%C0%80 HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /accounts/1?a=\xff HTTP/1.1\r\nHost: a\r\n\r\n"),
        (404, b"GET /livez/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ],
    ids=lambda value: None if isinstance(value, int) else value[:60].decode("latin-1"),
)  # fmt: skip
def test_what_is_wrong_is_a_problem(base: Role, status: int, sent: bytes) -> None:
    with connect(base) as connection:
        connection.sendall(sent)
        received = read(connection, 1)
        assert statuses(received) == [status]
        assert b"application/problem+json" in received


def test_heads_without_an_end_are_cut_off(base: Role) -> None:
    for sent in (b"GET /" + b"x" * 10_000_000, b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000_000):
        with connect(base) as connection:
            try:
                connection.sendall(sent)
            except ConnectionError:
                continue
            assert closed(connection)


def test_who_sends_slowly_has_a_bound(base: Role) -> None:
    """Silence, half a head, a head byte by byte, half a body, a body byte by byte."""
    began = time.monotonic()
    half = HEAD + b"Content-Length: 1000\r\n\r\n{"
    connections = [connect(base) for _ in range(5)]
    for connection, sent in zip(
        connections, [b"", b"GET /ping HT", b"GET /ping HTTP/1.1\r\n", half, half], strict=True
    ):
        connection.sendall(sent)
    for _ in range(50):
        for connection, sent in zip(connections[2::2], [b"X: a\r\n", b" "], strict=True):
            try:
                connection.sendall(sent)
            except ConnectionError:
                pass
        time.sleep(0.1)  # a slow client's pace
    answers = [read(connection, 2) for connection in connections]
    assert time.monotonic() - began < 30
    assert [statuses(answer) for answer in answers] == [[], [], [], [408], [408]]
    for connection in connections:
        connection.close()


def test_who_does_not_fetch_answers_is_cut_off(base: Role) -> None:
    with connect(base) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        port = connection.getsockname()[1]  # not the address: the worker may have it as ::ffff:127.0.0.1
        (worker,) = base.workers()

        def is_open() -> bool:
            return any(c.raddr and c.raddr.port == port and c.status == "ESTABLISHED" for c in worker.net_connections())

        # Paced, so that the answers pile up and not the requests, of which a connection keeps 64 KiB only.
        for _ in range(100):
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 15)
            time.sleep(0.01)
        assert is_open()
        wait_until(lambda: not is_open(), 60, "the end of the connection")


@contextlib.contextmanager
def few_files(most: int) -> Iterator[None]:
    """For processes that are started inside."""
    gc.collect()  # Kafka clients of other tests, which would take the few that this process may have too
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("version", ["1", "2"])
def test_too_many_connections(version: str, base: Role) -> None:
    """Those beyond the limit get an answer that says so, open ones work, and when they are gone there is room again."""
    with contextlib.ExitStack() as stack:
        with few_files(256):
            role = stack.enter_context(Role("base", {"HTTP_VERSION": version}, actor=ACTOR))
        (worker,) = role.workers()
        # That on which it was asked whether it is ready counts until its end is seen.
        wait_until(lambda: all(each.status == "LISTEN" for each in worker.net_connections()))
        connections = [stack.enter_context(connect(role)) for _ in range(300)]
        surplus = [read(connection, 1) for connection in connections[128:]]
        assert {tuple(statuses(answer)) for answer in surplus} == {(503,)}
        assert all(b"Retry-After: " in answer and b"problem+json" in answer for answer in surplus)
        for connection in connections[:128]:
            connection.sendall(POST)
            assert statuses(read(connection, 1)) == [200]
            connection.close()
        wait_until(lambda: httpx.post(f"{role.url}/accounts/1", json=deposit(1)).status_code == 200)
        assert not role.complaints()
