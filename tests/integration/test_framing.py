"""RFC 9110 and 9112 on the raw socket: where a request ends, what is in it, which is the next on its connection.

Each case is followed by a GET on the same connection: it is answered, or the connection is closed. Never is anything
that was inside a request answered as if it were one.
"""

import contextlib
import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.integration.test_base import ACTOR
from tests.integration.test_hostile import BODY, CHUNKED, HEAD, TIMEOUT_S, connect, statuses
from tests.process import Role, wait_until

LENGTH = b"Content-Length: %d\r\n"
GET = b"GET /accounts/1 HTTP/1.1\r\nHost: a\r\n"
NEXT = b"GET /accounts/next HTTP/1.1\r\nHost: a\r\n\r\n"
SMUGGLED = b"POST /accounts/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 46\r\n\r\n" + BODY.replace(b"1}}", b"666666}}")
ONE_CHUNK = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def base() -> Iterator[Role]:
    with Role("base", {"REQUEST_TIMEOUT": str(int(TIMEOUT_S * 1000))}, actor=ACTOR) as role:
        yield role
    assert role.process.returncode == 0, role.text()
    assert not role.errors
    assert not role.complaints()
    assert not [line for line in role.logs("deposit") if line["amount"] == 666666], "a body was taken for a request"


def exchange(role: Role, *sent: bytes) -> tuple[list[int], bytes]:
    """The statuses of all answers, and what came: until the one to ``NEXT`` is there, or the connection is closed."""
    with connect(role) as connection:
        received = b""
        with contextlib.suppress(ConnectionError):
            for part in (*sent, NEXT):
                connection.sendall(part)
            while b'"id":"next"' not in received and (part := connection.recv(65_536)):
                received += part
    return statuses(received), received


ACCEPTED = {
    "a URL as the target": b"GET http://a/accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a URL whose host is another one": b"GET HTTPS://b:1/accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/1.0 that stays": b"GET /accounts/1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "HTTP/1.2": b"GET /accounts/1 HTTP/1.2\r\nHost: a\r\n\r\n",
    "an empty line before": b"\r\n" + GET + b"\r\n",
    "an empty line after": HEAD + LENGTH % len(BODY) + b"\r\n" + BODY + b"\r\n",
    "no host in Host": b"GET /accounts/1 HTTP/1.1\r\nHost:\r\n\r\n",
    "IPv6 in Host": b"GET /accounts/1 HTTP/1.1\r\nHost: [::1]:3000\r\n\r\n",
    "UTF-8 in the target": "GET /accounts/é HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
    "latin-1 in a field": GET + b"X: \xe9\r\n\r\n",
    "a body in chunks": CHUNKED + ONE_CHUNK + b"\r\n",
    "a chunk extension": CHUNKED + ONE_CHUNK.replace(b"\r\n", b';a="b";c\r\n', 1) + b"\r\n",
    "trailers": CHUNKED + ONE_CHUNK + b"X-Sum: 1\r\nY:\r\n\r\n",
    "a coding in capitals": HEAD + b"Transfer-Encoding: CHUNKED\r\n\r\n" + ONE_CHUNK + b"\r\n",
    "an expectation without a body": GET + b"Expect: 100-continue\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_allowed_is_answered(base: Role, name: str) -> None:
    found, received = exchange(base, ACCEPTED[name])
    assert found == [200, 200], received


REFUSED = {
    "no Host": (400, b"GET /accounts/1 HTTP/1.1\r\n\r\n"),
    "a Host with a space": (400, b"GET /accounts/1 HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "a Host with a path": (400, b"GET /accounts/1 HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "a Host with a user": (400, b"GET /accounts/1 HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    "a Host that was two": (400, b"GET /accounts/1 HTTP/1.1\r\nHost: a,b\r\n\r\n"),
    "half an address in Host": (400, b"GET /ping HTTP/1.1\r\nHost: [\r\n\r\n"),
    "no Host with a URL": (400, b"GET http://a/accounts/1 HTTP/1.1\r\n\r\n"),
    "a URL with a user": (400, b"GET http://u@a/accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a URL that is no HTTP": (400, b"GET ftp://a/accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a URL without a host": (400, b"GET http:///accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "an authority as the target": (400, b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a path without a slash": (400, b"GET accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a fragment": (400, b"GET /accounts/1#x HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a star that is no OPTIONS": (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "CONNECT": (501, b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n" + SMUGGLED),
    "two spaces": (400, b"GET  /accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two spaces before the version": (400, b"GET /accounts/1  HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two spaces behind an empty line": (400, b"\r\nGET /accounts/1  HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a space in the target": (400, b"GET /accounts/1 2 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a space before the method": (400, b" GET /accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a space behind the version": (400, b"GET /accounts/1 HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "tabs in the request line": (400, b"GET\t/accounts/1\tHTTP/1.1\r\nHost: a\r\n\r\n"),
    "a control byte in the target": (400, b"GET /accounts/\x7f HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a null in the target": (400, b"GET /accounts/\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /accounts/1\r\n\r\n"),
    "HTTP/2.0": (505, b"GET /accounts/1 HTTP/2.0\r\nHost: a\r\n\r\n"),
    "a method in small letters": (400, b"get /accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a space before the colon": (400, GET + b"X : y\r\n\r\n"),
    "a field without a colon": (400, GET + b"X\r\n\r\n"),
    "a field without a name": (400, GET + b": x\r\n\r\n"),
    "a folded field": (400, GET + b"X: a\r\n b\r\n\r\n"),
    "a first field that is folded": (400, b"GET /accounts/1 HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n"),
    "a bare CR": (400, GET + b"X: a\rb\r\n\r\n"),
    "a bare LF": (400, GET + b"X: a\nY: b\r\n\r\n"),
    "latin-1 in a field's name": (400, GET + b"X\xe9: a\r\n\r\n"),
    "two lengths that agree": (400, HEAD + (LENGTH % 2) * 2 + b"\r\n{}"),
    "a length with a sign": (400, HEAD + b"Content-Length: +2\r\n\r\n{}"),
    "a list of lengths": (400, HEAD + b"Content-Length: 2, 2\r\n\r\n{}"),
    "an empty length": (400, HEAD + b"Content-Length:\r\n\r\n"),
    "a coding and a length": (400, HEAD + LENGTH % 2 + b"Transfer-Encoding: chunked\r\n\r\n" + ONE_CHUNK + b"\r\n"),
    "a coding in HTTP/1.0": (400, HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "gzip in chunks": (501, HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + ONE_CHUNK + b"\r\n"),
    "gzip and chunked in two fields": (501, HEAD + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "gzip": (501, HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + SMUGGLED),
    "identity": (501, HEAD + b"Transfer-Encoding: identity\r\n\r\n" + SMUGGLED),
    "identity and a length": (501, HEAD + b"Transfer-Encoding: identity\r\n" + LENGTH % 2 + b"\r\n{}"),
    "identity, chunked": (501, HEAD + b"Transfer-Encoding: identity, chunked\r\n\r\n" + ONE_CHUNK + b"\r\n"),
    "an unknown coding": (501, HEAD + b"Transfer-Encoding: br, chunked\r\n\r\n"),
    "chunked twice": (400, HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + ONE_CHUNK + b"\r\n"),
    "chunked in two fields": (400, HEAD + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n" + ONE_CHUNK + b"\r\n"),
    "a size in another notation": (400, CHUNKED + b"0x" + ONE_CHUNK + b"\r\n"),
    "a size with a sign": (400, CHUNKED + b"+" + ONE_CHUNK + b"\r\n"),
    "a size with a space": (400, CHUNKED + ONE_CHUNK.replace(b"\r\n", b" \r\n", 1) + b"\r\n"),
    "a size of many digits": (400, CHUNKED + b"0" * 16 + ONE_CHUNK + b"\r\n"),
    "no size": (400, CHUNKED + b"\r\n" + ONE_CHUNK + b"\r\n"),
    "a size that ends in LF": (400, CHUNKED + ONE_CHUNK.replace(b"\r\n", b"\n", 1) + b"\r\n"),
    "a chunk longer than its size": (400, CHUNKED + b"1\r\n{}\r\n0\r\n\r\n"),
    "a control byte in an extension": (400, CHUNKED + ONE_CHUNK.replace(b"\r\n", b";\0\r\n", 1) + b"\r\n"),
    "a long extension": (400, CHUNKED + b"1;" + b"x" * 10_000 + b"\r\n{\r\n0\r\n\r\n"),
    "many extensions": (400, CHUNKED + (b"1;" + b"x" * 1_000 + b"\r\n \r\n") * 20 + b"0\r\n\r\n"),
    "a trailer without a colon": (400, CHUNKED + ONE_CHUNK + b"X\r\n\r\n"),
    "a trailer with a space": (400, CHUNKED + ONE_CHUNK + b"X : y\r\n\r\n"),
    "a folded trailer": (400, CHUNKED + ONE_CHUNK + b"X: y\r\n z\r\n\r\n"),
    "a control byte in a trailer": (400, CHUNKED + ONE_CHUNK + b"X: \1\r\n\r\n"),
    "a length in a trailer": (400, CHUNKED + ONE_CHUNK + b"content-length: 4\r\n\r\n"),
    "a trailer that ends in LF": (400, CHUNKED + ONE_CHUNK + b"X: y\n\r\n"),
    "many trailers": (431, CHUNKED + ONE_CHUNK + b"X: y\r\n" * 101 + b"\r\n"),
    "a long trailer": (431, CHUNKED + ONE_CHUNK + b"X: " + b"y" * 10_000 + b"\r\n\r\n"),
    "an unknown expectation": (417, HEAD + b"Expect: tea\r\n" + LENGTH % len(BODY) + b"\r\n" + BODY),
    "an unknown expectation before another": (417, HEAD + b"Expect: tea\r\nExpect: 100-continue\r\n\r\n"),
    "a long target": (414, b"GET /" + b"x" * 5_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "many fields": (431, GET + b"X: y\r\n" * 101 + b"\r\n"),
    "a long field": (431, GET + b"X: " + b"y" * 9_000 + b"\r\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("pace", ["at once", "in two parts"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_allowed_is_refused_and_nothing_after_it_is_mistaken(base: Role, name: str, pace: str) -> None:
    status, sent = REFUSED[name]
    found, received = exchange(base, sent) if pace == "at once" else exchange(base, sent[:12], sent[12:])
    assert found in ([status], [status, 200]), received
    assert b"application/problem+json" in received
    assert found[1:] == [200] or b"connection: close" in received.lower()


UNREAD = {
    "HEAD": (200, b"HEAD /accounts/1"),
    "GET": (200, b"GET /accounts/1"),
    "OPTIONS": (204, b"OPTIONS /accounts/1"),
    "OPTIONS *": (204, b"OPTIONS *"),
    "DELETE": (405, b"DELETE /accounts/1"),
    "PURGE": (405, b"PURGE /accounts/1"),
    "404": (404, b"POST /nowhere"),
    "a probe": (200, b"GET /ping"),
    "a probe's 405": (405, b"POST /livez"),
    "415": (415, b"POST /accounts/1"),
}  # fmt: skip


@pytest.mark.parametrize("pace", ["at once", "late"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("name", UNREAD)
def test_a_body_that_nobody_takes_is_no_request(base: Role, name: str, framing: str, pace: str) -> None:
    status, line = UNREAD[name]
    head = line + b" HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n"
    if framing == "length":
        head, body = head + LENGTH % len(SMUGGLED) + b"\r\n", SMUGGLED
    else:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    if pace == "at once":
        found, received = exchange(base, head + body)
    else:
        with connect(base) as connection:
            connection.sendall(head)
            received = connection.recv(65_536)
            connection.sendall(body + NEXT)
            while b'"id":"next"' not in received:
                received += connection.recv(65_536)
        found = statuses(received)
    assert found == [status, 200], received


def test_a_body_that_does_not_come_ends_its_connection(base: Role) -> None:
    with connect(base) as connection:
        began = time.monotonic()
        connection.sendall(b"HEAD /accounts/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
        received = b""
        while part := connection.recv(65_536):
            received += part
        assert statuses(received) == [200]
        assert time.monotonic() - began < 10


def test_a_refused_body_of_many_megabytes_leaves_the_answer_to_the_client(base: Role) -> None:
    for line in (b"POST /accounts/1", b"POST /nowhere", b"GET /accounts/1"):
        with connect(base) as connection:
            connection.sendall(line + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
            connection.sendall(b"x" * 10_000_000)
            assert statuses(connection.recv(65_536)) == [{b"/accounts/1": 413, b"/nowhere": 404}[line.split()[1]]
                                                         if line[:4] == b"POST" else 200]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "head"),
    [
        (413, HEAD + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"),
        (415, HEAD + b"Expect: 100-continue\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n"),
        (404, b"POST /nowhere HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"),
        (417, HEAD + b"Expect: 100-continue, tea\r\nContent-Length: 5\r\n\r\n"),
    ],
)
def test_who_asked_whether_to_go_on_is_refused_without_its_body(base: Role, status: int, head: bytes) -> None:
    """And the connection is closed: nobody knows whether what comes next is the body or a request."""
    with connect(base) as connection:
        connection.sendall(head)
        received = connection.recv(65_536)
        assert statuses(received) == [status]
        assert b"\r\nconnection: close\r\n" in received.lower()
        connection.sendall(NEXT)
        while part := connection.recv(65_536):
            received += part
        assert statuses(received) == [status]


def test_an_older_client_gets_no_100_continue(base: Role) -> None:
    sent = HEAD.replace(b"1.1", b"1.0") + b"Expect: 100-continue\r\n" + LENGTH % len(BODY) + b"\r\n" + BODY
    assert exchange(base, sent)[0] == [200]


@pytest.mark.parametrize(
    "fields",
    [
        b"Connection: close",
        b"Connection: keep-alive, close",
        b"Connection: Close, x",
        b"Connection: close\r\nConnection: keep-alive",
        b"Connection: x ,CLOSE\r\nConnection: keep-alive\r\nConnection: y",
        b"Connection: keep-alive\r\nX: y\r\nConnection: close",
    ],
)
def test_who_says_close_gets_one_answer_that_says_close(base: Role, fields: bytes) -> None:
    found, received = exchange(base, GET + fields + b"\r\n\r\n")
    assert found == [200]
    assert b"\r\nconnection: close\r\n" in received


def test_options_name_the_methods(base: Role) -> None:
    for target in (b"*", b"/accounts/1", b"http://a", b"/livez"):
        _, received = exchange(base, b"OPTIONS " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 204 ")
        allowed = re.search(rb"\r\nallow: (.*?)\r\n", received, re.IGNORECASE)
        assert b"GET" in (allowed[1] if allowed else b"")


def test_a_body_in_very_small_chunks_costs_little(base: Role) -> None:
    """They came at once: for each, all that was read had been moved."""
    body = BODY + b" " * 100_000
    sent = CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    (worker,) = base.workers()
    before = sum(worker.cpu_times()[:2])
    found, received = exchange(base, sent)
    assert found == [200, 200], received
    assert sum(worker.cpu_times()[:2]) - before < 1.0


def test_chunks_that_come_byte_by_byte(base: Role) -> None:
    sent = CHUNKED + ONE_CHUNK + b"X: y\r\n\r\n"
    with connect(base) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in sent + NEXT:
            connection.sendall(bytes([byte]))
        received = b""
        while b'"id":"next"' not in received:
            received += connection.recv(65_536)
    assert statuses(received) == [200, 200]


def test_an_answer_that_is_out_is_not_followed_by_another(base: Role) -> None:
    """The body of a request that is answered already goes wrong: the connection ends, and that is all."""
    with connect(base) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        received = connection.recv(65_536)
        connection.sendall(b"no size\r\n")
        while part := connection.recv(65_536):
            received += part
        assert statuses(received) == [404]
        wait_until(lambda: base.workers())
