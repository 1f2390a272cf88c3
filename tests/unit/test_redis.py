"""A Redis that breaks connections is away, in whatever way the client notices it."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
import uvloop

from hiveio.errors import Unavailable
from hiveio.redis import Redis, Script


@pytest.fixture
def breaking() -> Iterator[int]:
    """The port of a server that accepts and resets every connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_connection_that_breaks_at_any_moment_is_unavailable(breaking: int) -> None:
    async def use() -> None:
        redis = Redis(f"redis://127.0.0.1:{breaking}")
        for _ in range(200):
            with pytest.raises(Unavailable, match="does not answer"):
                await redis.execute("PING")
            with pytest.raises(Unavailable, match="does not answer"):
                await asyncio.wait_for(redis.call(Script("begin"), "mark", (), ("", "")), 10)
        await redis.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(use())
