"""A Redis that breaks connections is away, in whatever way the client notices it."""

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_client
import uvloop
from redis.asyncio.connection import Connection

from hiveio.errors import ConfigError, Unavailable, Unsafe
from hiveio.redis import Refusal, Script, connect
from hiveio.redis.node import Node
from tests.faults.proxy import Proxy
from tests.services import Redis as Server
from tests.services import free_port
from tests.unit.transaction.test_engine import until


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
        redis = connect(f"redis://127.0.0.1:{breaking}")
        for _ in range(200):
            with pytest.raises(Unavailable, match="does not answer"):
                await redis.execute("PING")
            with pytest.raises(Unavailable, match="does not answer"):
                await asyncio.wait_for(redis.call(Script("read"), "mark", (1,), (1, "", "")), 10)
        await redis.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(use())


@pytest.mark.parametrize(
    "answer",
    [
        "LOADING Redis is loading the dataset in memory",
        "MOVED 3999 127.0.0.1:6381",
        "CLUSTERDOWN The cluster is down",
        "NOAUTH Authentication required.",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "NOPERM this user has no permissions to run the 'script' command",
        "MASTERDOWN Link with MASTER is down",
        "ERR whatever a version to come may say",
    ],
)
async def test_whatever_redis_answers_instead_is_unavailable(answer: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            commands = len(re.findall(rb"(?:^|\r\n)\*\d+\r\n", data))
            writer.write(f"-{answer}\r\n".encode() * commands)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    redis = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    text = "node of a cluster" if answer.startswith("MOVED") else answer.partition(" ")[2]
    for attempt in (redis.execute("PING"), redis.call(Script("read"), "mark", (1,), (1, "", ""))):
        with pytest.raises(Unavailable, match=text):
            await attempt
    await redis.stop()
    server.close()
    await server.wait_closed()


def refuses(client: redis_client.Redis) -> bool:
    try:
        client.ping()
    except redis_client.ResponseError:
        return True
    return False


async def test_a_redis_that_refuses_is_unavailable_and_says_why() -> None:
    script = Script("read")
    with Server(options={"busy-reply-threshold": "10"}) as server:
        redis = connect(server.url)
        admin = redis_client.Redis.from_url(server.url)
        await redis.call(script, "mark", (1,), (1, "", ""))

        busy = asyncio.create_task(asyncio.to_thread(admin.eval, "while true do end", 0))
        with contextlib.closing(redis_client.Redis.from_url(server.url)) as other:
            await until(lambda: refuses(other))
            with pytest.raises(Unavailable, match="BUSY"):
                await redis.call(script, "mark", (1,), (1, "", ""))
            with pytest.raises(Unavailable, match="BUSY"):
                await redis.execute("PING")
            other.script_kill()
        await asyncio.wait([busy])
        assert isinstance(busy.exception(), redis_client.ResponseError)

        admin.config_set("maxmemory", 1)
        with pytest.raises(Unavailable, match="maxmemory"):
            await redis.call(Script("reset"), "mark", (), ("", "1|0|topic|generation|transaction"))
        admin.config_set("maxmemory", 0)

        admin.replicaof("127.0.0.1", 1)
        with pytest.raises(Unavailable, match="replica"):
            await redis.call(Script("reset"), "mark", (), ("", "1|0|topic|generation|transaction"))
        admin.replicaof("NO", "ONE")

        admin.lpush("mark", "by hand")
        with pytest.raises(Refusal, match="WRONGTYPE"):
            await redis.call(script, "mark", (1,), (1, "", ""))
        await redis.stop()
        admin.close()


async def test_calls_that_a_large_answer_leaves_out_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as server:
        redis, read = connect(server.url), Script("read")
        answers: list[int] = []
        read_response = Connection.read_response

        async def counted(self: Connection, *arguments: Any, **options: Any) -> Any:
            reply = await read_response(self, *arguments, **options)
            if isinstance(reply, list):  # of the script: the watermark, and an entry for each call
                answers.append(sum(len(entry) for ((entry, _),) in reply[1:]))
            return reply

        monkeypatch.setattr(Connection, "read_response", counted)
        try:
            await redis.execute("SET", "mark", "0|0|topic|gen|")
            for number in range(20):
                await redis.execute("SET", f"mark:gen:a:{number}", f"{number} " * 100_000)
            found = await asyncio.gather(*[redis.call(read, "mark", (1_000_000,), (1, f"{n}", "")) for n in range(20)])
            assert [entry[:3].split()[0] for _, ((entry, _),) in found] == [b"%d" % n for n in range(20)]
            assert len(answers) >= 4
            assert max(answers) < 1_500_000
            assert isinstance(redis, Node)
            assert redis.leave("nobody uses it any more").waiting == 0
        finally:
            await redis.stop()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1", "host:1"),
        ("rediss://ada:hunter2@host:1/2?ssl_cert_reqs=none", "host:1/2"),
        ("redis://host:1/0?password=hunter2", "host:1/0"),
        ("unix://ada:hunter2@/run/redis.sock?db=1", "/run/redis.sock"),
    ],
)
async def test_a_redis_is_shown_without_secrets(url: str, shown: str) -> None:
    assert connect(url).shown == shown


async def test_many_commands_at_once_wait_for_a_connection() -> None:
    with Server() as server:
        redis = connect(server.url)
        assert (
            await asyncio.gather(*[redis.execute("SET", f"key-{number}", "x") for number in range(40)]) == [True] * 40
        )
        await redis.stop()


async def test_a_server_that_has_become_a_replica_is_left() -> None:
    """Behind the name is another master by then. A connection that is open leads to the old one for ever."""
    reset = ("mark", (), ("", "1|0|topic|generation|2|0|0|"))
    with Server() as old, Server() as new, Proxy(old.port) as name:
        redis = connect(f"redis://127.0.0.1:{name.port}")
        await redis.call(Script("reset"), *reset)
        await redis.execute("SET", "key", "x")
        with contextlib.closing(redis_client.Redis.from_url(old.url)) as admin:
            admin.replicaof("127.0.0.1", new.port)
        name.target = new.port  # for new connections
        with pytest.raises(Unavailable, match="read only replica"):
            await redis.execute("SET", "key", "x")
        await redis.execute("SET", "key", "x")
        await redis.call(Script("reset"), *reset)
        await redis.stop()


NO_CONFIG = "-ERR unknown command 'config'\r\n"
INFO = "# Memory\r\nused_memory:1\r\n"


@pytest.mark.parametrize(
    ("config", "info", "refused"),
    [
        (NO_CONFIG, INFO + "maxmemory_policy:noeviction\r\n", ""),
        (NO_CONFIG, INFO + "maxmemory_policy:volatile-lru\r\n", "has maxmemory-policy volatile-lru: "),
        ("*0\r\n", INFO + "maxmemory_policy:noeviction\r\n", ""),  # Dragonfly, and with --cache_mode
        ("*0\r\n", INFO + "cache_mode:cache\r\nmaxmemory_policy:eviction\r\n", "has maxmemory-policy eviction: "),
        (NO_CONFIG, INFO, "says its maxmemory-policy neither in CONFIG GET nor in INFO memory: "),
    ],
)
async def test_a_redis_says_in_one_way_or_another_that_it_evicts_nothing(config: str, info: str, refused: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            if b"CONFIG" in data:
                writer.write(config.encode())
            elif b"INFO\r\n" in data and b"memory" in data:
                writer.write(f"${len(info)}\r\n{info}\r\n".encode())
            else:
                writer.write(b"+OK\r\n" * data.count(b"*"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    redis = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    if refused:
        with pytest.raises(Unsafe, match=re.escape(refused)):
            await redis.refuse_eviction()
    else:
        await redis.refuse_eviction()
    await redis.stop()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h?ssl_ca=/x", "wrong option: .*'ssl_ca'"),
        ("redis+cluster://h?db=3", "wrong option: Argument 'db' must be 0"),
        ("redis+sentinel://h/m?sentinel_ssl_ca=/x", "wrong option: .*'ssl_ca'"),
        ("rediss://h?ssl_ca_certs=/nowhere", "ssl_ca_certs=/nowhere, which cannot be read"),
        ("rediss+cluster://h?ssl_keyfile=/nowhere", "ssl_keyfile=/nowhere, which cannot be read"),
    ],
)
def test_a_wrong_option_of_a_url_is_named(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^the URL of Redis at h(/m)? has .*{said}"):
        connect(url)


async def test_what_each_sentinel_says_is_said() -> None:
    answers = {
        free_port(): b"-NOAUTH Authentication required.\r\n",
        free_port(): b"*0\r\n",
    }

    def serving(answer: bytes) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(4096):
                writer.write(answer if b"SENTINEL" in data else b"+OK\r\n" * data.count(b"*"))
            writer.close()

        return serve

    servers = [await asyncio.start_server(serving(answer), "127.0.0.1", port) for port, answer in answers.items()]
    refuses, empty, closed = [*answers, free_port()]
    redis = connect(f"redis+sentinel://127.0.0.1:{refuses},127.0.0.1:{empty},127.0.0.1:{closed}/main")
    with pytest.raises(Unavailable) as caught:
        await redis.execute("PING")
    said = str(caught.value)
    assert "no Sentinel names a master 'main'" in said
    assert f"127.0.0.1:{refuses}: Authentication required." in said
    assert f"127.0.0.1:{empty} knows none of that name" in said
    assert f"127.0.0.1:{closed}: " in said
    assert "redis.asyncio" not in said
    await redis.stop()
    for server in servers:
        server.close()
        await server.wait_closed()
