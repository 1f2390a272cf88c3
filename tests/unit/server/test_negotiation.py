"""Room among the connections of a worker is given once, when a client comes, and not asked for again."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped]
from hyperframe.frame import PingFrame, SettingsFrame

from hiveio.server.address import listening
from hiveio.server.http1 import Http1Connection
from hiveio.server.negotiation import PREFACE, ProtocolNegotiator
from hiveio.server.worker import Worker

HTTP1 = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HTTP2 = PREFACE + SettingsFrame(0).serialize() + PingFrame(0, opaque_data=b"anybody?").serialize()


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": b"welcome"})


@pytest.mark.parametrize(
    ("said", "answer"), [(HTTP1, b"welcome"), (HTTP2, PingFrame(0, b"anybody?", flags=["ACK"]).serialize())]
)
async def test_who_is_within_the_limit_is_answered_however_many_are_refused(said: bytes, answer: bytes) -> None:
    refused = object()  # and not lost yet
    worker: Any = SimpleNamespace(
        cfg=Config(), log=logging.getLogger("test"), asgi=application, loop=asyncio.get_running_loop(), nr=0,
        nr_conns=0, max_requests=1 << 60, alive=True, connections=set(), most_connections=1,
        admit=lambda connection: Worker.admit(worker, connection),
    )  # fmt: skip
    worker.log.access_log_enabled = False
    with listening("::", 0) as listener:
        server = await worker.loop.create_server(lambda: ProtocolNegotiator(worker, Http1Connection), sock=listener)
        async with server, asyncio.timeout(10):
            address = "127.0.0.1", listener.getsockname()[1]
            reader, writer = await asyncio.open_connection(*address)
            while not worker.connections:
                await asyncio.sleep(0)
            worker.connections.add(refused)
            late, other = await asyncio.open_connection(*address)
            assert (await late.read()).startswith(b"HTTP/1.1 503 ")
            writer.write(said)
            await reader.readuntil(answer)
            for each in (writer, other):
                each.close()
                await each.wait_closed()
            while worker.connections != {refused}:
                await asyncio.sleep(0)
