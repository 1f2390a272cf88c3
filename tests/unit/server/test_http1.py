"""What goes out over HTTP/1, byte by byte, for applications that say their length, do not, or fail."""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped]

from hiveio.server.address import listening
from hiveio.server.http1 import Http1Connection
from hiveio.server.http1_exchange import Exchange

Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


def worker_of(application: Application) -> Any:
    return SimpleNamespace(
        cfg=Config(), log=logging.getLogger("test"), asgi=application, loop=asyncio.get_running_loop(),
        connections=set(), alive=True, admit=lambda connection: True,
    )  # fmt: skip


async def talk(application: Application, request: bytes, host: str = "127.0.0.1") -> bytes:
    """All that is answered until the server closes; a client that has sent what it wants ends its side."""
    loop, worker = asyncio.get_running_loop(), worker_of(application)
    server = await loop.create_server(lambda: Http1Connection(worker), sock=listening("::", 0))
    async with server:
        reader, writer = await asyncio.open_connection(host, server.sockets[0].getsockname()[1])
        writer.write(request)
        async with asyncio.timeout(10):
            found = await reader.read()
        writer.close()
        await writer.wait_closed()
    return found


def answering(
    *parts: bytes, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = (), close: bool = False
) -> Application:
    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        end = ((b"connection", b"close"),) if close else ()
        await send({"type": "http.response.start", "status": status, "headers": [*headers, *end]})
        for index, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": index < len(parts)})

    return application


LENGTH = ((b"content-length", b"5"),)
TWICE = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ONCE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def test_a_body_of_known_length_keeps_the_connection() -> None:
    answers = await talk(answering(b"hello", headers=LENGTH), TWICE)
    first, second = answers.split(b"\r\n\r\nhello")[:2]
    assert first.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nDate: ")
    assert second.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\nDate: ")
    assert answers.count(b"\r\n\r\nhello") == 2


async def test_an_answer_that_says_close_ends_the_connection() -> None:
    answers = await talk(answering(b"hello", headers=LENGTH, close=True), TWICE)
    assert answers.count(b"HTTP/1.1 200") == 1
    assert b"connection: close\r\n" in answers


async def test_a_body_of_unknown_length_goes_out_in_chunks() -> None:
    answers = await talk(answering(b"hello", b"", b"x" * 17, b""), TWICE)
    assert answers.count(b"transfer-encoding: chunked\r\n") == 2
    assert answers.count(b"\r\n\r\n5\r\nhello\r\n11\r\n" + b"x" * 17 + b"\r\n0\r\n\r\n") == 2


async def test_to_an_older_client_it_ends_with_the_connection() -> None:
    request = b"GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
    answer = await talk(answering(b"hello", b"you"), request)
    assert b"chunked" not in answer
    assert answer.endswith(b"\r\n\r\nhelloyou")


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
async def test_no_body_where_none_may_be(method: bytes, status: int) -> None:
    answer = await talk(answering(b"hello", status=status), ONCE.replace(b"GET", method))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(b"\r\n\r\n")
    assert b"chunked" not in answer
    assert b"hello" not in answer


async def test_an_application_that_fails_is_a_500_before_its_head_and_a_cut_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/a":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError("a secret")

    answer = await talk(fails, ONCE)
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"a secret" not in answer
    answer = await talk(fails, ONCE.replace(b"/ ", b"/a "))
    assert answer.endswith(b"4\r\nhalf\r\n"), "no last chunk: the client sees that it is not all"
    assert [record.getMessage() for record in caplog.records] == ["GET / failed", "GET /a failed"]


async def test_what_the_application_learns_of_a_request() -> None:
    given: dict[str, Any] = {}

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        given.update(scope, body=(await receive())["body"])
        await answering(b"hello", headers=LENGTH)(scope, receive, send)

    head = b"POST /a%2Fb%C3%A9%FF?q=1&r=%20 HTTP/1.1\r\nHost: x\r\nX-Two: 1\r\nX-Two: 2\r\nContent-Length: 3\r\n"
    await talk(application, head + b"Connection: close\r\n\r\nabc")
    assert given["method"] == "POST"
    assert given["http_version"] == "1.1"
    assert given["raw_path"] == b"/a%2Fb%C3%A9%FF"
    assert given["path"] == "/a/bé\ufffd"
    assert given["query_string"] == b"q=1&r=%20"
    assert given["body"] == b"abc"
    assert given["headers"][:3] == [(b"host", b"x"), (b"x-two", b"1"), (b"x-two", b"2")]


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_who_has_called_is_a_host_and_a_port_and_ipv4_is_shown_as_such(host: str) -> None:
    given: dict[str, Any] = {}

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        given.update(scope)
        await answering(b"hello", headers=LENGTH)(scope, receive, send)

    await talk(application, ONCE, host)
    assert (given["client"][0], len(given["client"])) == (host, 2)
    assert (given["server"][0], len(given["server"])) == (host, 2)


@pytest.mark.parametrize("name", [b"Host", b"Content-Type", b"Content-Length"])
async def test_a_header_that_may_come_once_and_comes_twice_is_refused(name: bytes) -> None:
    twice = b"%b: 1\r\n%b: 1\r\n" % (name, name)
    answer = await talk(answering(b"hello", headers=LENGTH), b"GET / HTTP/1.1\r\nHost: x\r\n" + twice + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_a_part_that_comes_as_its_request_is_cancelled_does_not_keep_it_alive() -> None:
    connection: Any = SimpleNamespace(scheme="http", client=None, server=None, closed=False, paused=False, unsent=None)
    head = SimpleNamespace(
        method=b"POST", path=b"/", http_version=(1, 1), asgi_headers=[], should_keep_alive=True, content_length=1
    )
    exchange = Exchange(connection, head, b"")
    waiting = asyncio.create_task(exchange.receive())
    await asyncio.sleep(0)
    exchange.feed(b"x")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_request_that_has_arrived_in_full_is_carried_out_though_its_client_is_gone() -> None:
    received: list[dict[str, Any]] = []

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await asyncio.sleep(0.2)  # for the keys of an issuer, say
        while not received or received[-1]["type"] == "http.request":
            received.append(await receive())

    loop, worker = asyncio.get_running_loop(), worker_of(application)
    server = await loop.create_server(lambda: Http1Connection(worker), sock=listening("::", 0))
    async with server, asyncio.timeout(10):
        for body in (b"abc", b"ab"):
            _, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n" + body)
            writer.close()
            await writer.wait_closed()
            while not received or received[-1]["type"] != "http.disconnect":
                await asyncio.sleep(0.01)
            if body == b"abc":
                assert received.pop(0) == {"type": "http.request", "body": b"abc", "more_body": False}
            assert received == [{"type": "http.disconnect"}]
            received.clear()


async def test_what_is_no_http_is_answered_after_an_answer_too() -> None:
    answers = await talk(answering(b"hello", headers=LENGTH), TWICE.replace(b"GET /b", b"GET  /b"))
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert answers.count(b"HTTP/1.1 400 Bad Request\r\n") == 1


async def test_the_task_of_an_idle_connection_ends_with_it() -> None:
    before = asyncio.all_tasks()
    loop = asyncio.get_running_loop()
    worker = worker_of(answering(b"hello", headers=LENGTH))
    server = await loop.create_server(lambda: Http1Connection(worker), sock=listening("::", 0))
    async with server, asyncio.timeout(10):
        _, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        while asyncio.all_tasks() == before:
            await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()
        while asyncio.all_tasks() != before:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "sent",
    [ONCE, TWICE, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n", b"GE"],
    ids=["said close", "said close then", "kept", "refused", "half a request"],
)
@pytest.mark.parametrize("takes_s", [0.0, 0.02], ids=["answered", "gone before its answer"])
async def test_a_connection_that_has_ended_is_freed_at_once_and_not_by_the_collector(
    sent: bytes, takes_s: float
) -> None:
    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await asyncio.sleep(takes_s)
        await answering(b"hello", headers=LENGTH)(scope, receive, send)

    loop, worker, made = asyncio.get_running_loop(), worker_of(application), 0
    worker.cfg.set("asgi_disconnect_grace_period", 60)  # as long as a request may take

    def greet() -> Http1Connection:
        nonlocal made
        made += 1
        return Http1Connection(worker)

    server = await loop.create_server(greet, sock=listening("::", 0))
    gc.collect()
    gc.disable()
    try:
        async with server, asyncio.timeout(10):
            for _ in range(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
                writer.write(sent)
                if not takes_s and b"close" in sent:
                    await reader.read()
                writer.close()
                await writer.wait_closed()
            while made < 10 or any(isinstance(each, Http1Connection) for each in gc.get_objects()):
                await asyncio.sleep(0.01)
    finally:
        gc.enable()
