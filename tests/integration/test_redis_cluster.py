"""Redis Cluster and Sentinel: the client, and the roles on them."""

import asyncio
import contextlib
import itertools
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from hiveio import outages
from hiveio.errors import Unavailable, Unsafe
from hiveio.redis import Redis, Script, connect
from hiveio.transaction.cache import former_marks
from hiveio.transaction.entry import Watermark
from hiveio.transaction.lock import Locked, Redlock
from tests.conftest import required
from tests.integration.accounts import TAKES_DEPOSITS
from tests.integration.test_security import REDIS_RIGHTS, tls_before
from tests.integration.topics import read_all
from tests.process import Role, settled, wait_until
from tests.services import HOST, Kafka, RedisCluster, Security, Sentinels
from tests.services import Redis as Server

pytestmark = [pytest.mark.redis, pytest.mark.timeout(120)]
PASSWORD = "hunter2"
READ, RESET, LOCK = Script("read"), Script("reset"), Script("lock")
FORMER = ("5|0|id|generation|transaction", "5|0|id|generation|2|0|0|transaction")  # watermarks of formats 1 and 2
TAGS = [f"hive:{{log/{number}/id}}" for number in range(12)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with required("redis"), RedisCluster(password=PASSWORD) as service:
        yield service


@pytest.fixture
async def redis(cluster: RedisCluster) -> Any:
    client = connect(cluster.url)
    yield client
    await client.stop()


def another(cluster: RedisCluster, than: Server) -> Server:
    """Another master."""
    return next(master for tag in TAGS if (master := cluster.master(cluster.slot(tag))) is not than)


async def begin(redis: Redis, tag: str, offset: int = 0) -> None:
    """A watermark, if there is none."""
    await redis.call(RESET, f"{tag}:mark", (), ("", f"{offset}|0|topic|gen|2|0|0|"))


async def read(redis: Redis, tag: str, name: str = "Account/a") -> Any:
    _, ((entry, _),) = await redis.call(READ, f"{tag}:mark", (1_000_000,), (1, name, ""))
    return entry


async def test_calls_and_commands_go_to_the_shard_of_their_key(redis: Redis, cluster: RedisCluster) -> None:
    await redis.refuse_eviction()
    await asyncio.gather(*[begin(redis, tag) for tag in TAGS])
    for number, tag in enumerate(TAGS):
        await redis.execute("SET", f"{tag}:mark:gen:a:Account/a", f"{number} head")
    assert await asyncio.gather(*[read(redis, tag) for tag in TAGS]) == [b"%d head" % n for n in range(len(TAGS))]
    assert len({cluster.master(cluster.slot(tag)).port for tag in TAGS}) == 3
    found = [key async for keys in redis.scan("hive:*:mark", 10) for key in keys]
    assert sorted(found) == sorted(f"{tag}:mark".encode() for tag in TAGS)
    own = [key async for keys in redis.scan("hive:*:mark", 10, TAGS[0]) for key in keys]
    assert f"{TAGS[0]}:mark".encode() in own
    assert len(own) < len(TAGS)
    former = [f"hive:{{old/{number}/id}}:01234567" for number in range(12)]  # as ``hiveio upgrade`` looks for them
    for key, text in zip(former, itertools.cycle(FORMER), strict=False):
        await redis.execute("SET", key, text)
    await redis.execute("SET", "hive:{old/12/id}:01234567", Watermark(5, 0, "id", "generation").text)
    assert sorted(await former_marks(redis, "old", "id")) == sorted(key.encode() for key in former)


async def test_a_master_that_evicts_is_refused(redis: Redis, cluster: RedisCluster) -> None:
    evicting = cluster.master(cluster.slot(TAGS[1]))
    cluster.ask(evicting, "CONFIG SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(Unsafe, match=f"127.0.0.1:{evicting.port} has maxmemory-policy allkeys-lru"):
            await redis.refuse_eviction()
    finally:
        cluster.ask(evicting, "CONFIG SET", "maxmemory-policy", "noeviction")


async def test_while_a_slot_is_moved_a_script_runs_on_all_of_its_keys_or_not_at_all(cluster: RedisCluster) -> None:
    """Half of the keys are on the other node: there a script would take those that are not for keys that never were."""
    redis, tag = connect(cluster.url, timeout_s=60.0), TAGS[2]  # a busy machine moves them slowly
    slot, names = cluster.slot(tag), [f"Account/{number}" for number in range(60)]
    await begin(redis, tag)
    for name in names:
        await redis.execute("SET", f"{tag}:mark:gen:a:{name}", "1 head")
    source = cluster.master(slot)
    target = another(cluster, source)
    moving = asyncio.create_task(asyncio.to_thread(cluster.migrate, slot, target, 0.01))
    found = []
    while not moving.done():
        found += await asyncio.gather(*[read(redis, tag, name) for name in names])
        await asyncio.sleep(0.01)
    await moving
    assert cluster.master(slot) is target
    found.append(await read(redis, tag))
    assert set(found[:-1]) == {b"1 head"}
    # And back, with calls that find the slot elsewhere: MOVED.
    await asyncio.to_thread(cluster.migrate, slot, source)
    assert await asyncio.gather(*[read(redis, tag, name) for name in names]) == [b"1 head"] * len(names)
    await redis.stop()


async def test_a_slot_that_is_moved_for_long_is_unavailable_and_its_neighbours_are_not(
    cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    redis = connect(cluster.url, timeout_s=4.0)
    tag, other = TAGS[3], TAGS[4]
    slot = cluster.slot(tag)
    await asyncio.gather(begin(redis, tag), begin(redis, other))
    source = cluster.master(slot)
    target = another(cluster, source)
    caplog.set_level(logging.INFO, "hiveio.backends")
    cluster.ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", cluster.id(source))
    cluster.ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", cluster.id(target))
    for _ in range(3):
        with pytest.raises(Unavailable, match=f"Slot {slot} of Redis Cluster at .* does not answer: it is being moved"):
            await asyncio.wait_for(read(redis, tag), 20)
        assert await read(redis, other, "Account/none") is None
    assert "it is being moved to another node" in redis.away(tag)
    assert redis.away(other) == ""
    for server in (source, target):
        cluster.ask(server, "CLUSTER SETSLOT", slot, "STABLE")
    assert await read(redis, tag, "Account/none") is None
    assert redis.away() == ""
    lines = [record.message for record in caplog.records if record.message.startswith("Slot")]
    assert len(lines) == 2, lines
    assert "is away" in lines[0]
    assert "is back" in lines[1]
    assert PASSWORD not in caplog.text
    await redis.stop()


async def test_a_master_is_lost_and_its_replica_takes_over(
    cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    redis = connect(cluster.url)
    tag = TAGS[5]
    await asyncio.gather(*[begin(redis, each) for each in TAGS])
    await redis.execute("SET", f"{tag}:mark:gen:a:Account/a", "1 head")
    lost = cluster.master(cluster.slot(tag))
    replica = cluster.replica(lost)
    others = [each for each in TAGS if cluster.master(cluster.slot(each)) is not lost]
    caplog.set_level(logging.INFO, "hiveio.backends")
    lost.kill()
    try:
        answered = None
        while answered is None:
            with contextlib.suppress(Unavailable):
                answered = await asyncio.wait_for(read(redis, tag), 5)
            assert len(await asyncio.wait_for(asyncio.gather(*[read(redis, each) for each in others]), 5)) == len(
                others
            )
            await asyncio.sleep(0.02)
        assert answered == b"1 head"
        assert cluster.master(cluster.slot(tag)) is replica
        lines = [line.message for line in caplog.records if f":{lost.port} " in f"{line.message} "]
        assert len(lines) == 2, lines
        assert f"Redis at 127.0.0.1:{lost.port} is away" in lines[0]
        assert "is no longer used: it is no master" in lines[1]
    finally:
        lost.start()
        await asyncio.to_thread(cluster.until, cluster.is_well, "well")
        await redis.stop()
        outages.known.clear()


async def test_a_cluster_is_one_node_of_a_lock_among_others(redis: Redis) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Server()) for _ in range(2)]
        nodes = [redis, *(connect(server.url) for server in servers)]
        locks = [Redlock(nodes, token, 5_000, 0.01, 200) for token in ("a", "b")]

        async def acquired(lock: Redlock) -> Locked:
            future: asyncio.Future[Locked] = asyncio.get_running_loop().create_future()
            lock.acquire("hive:{lock/0}", ["x", "y"], future.set_result)
            return await future

        try:
            assert (await acquired(locks[0])).until
            async with asyncio.timeout(10):  # the third has GRACE_S to say why
                while (refused := await acquired(locks[1])).reason.count("is locked by another instance") != 3:
                    assert not refused.until
            assert redis.shown in refused.reason
            servers[0].kill()
            assert (await acquired(locks[0])).until
            assert not (await acquired(locks[1])).until
            locks[0].release("hive:{lock/0}", ["x", "y"])
            assert (await acquired(locks[1])).until
        finally:
            for node in nodes[1:]:
                await node.stop()
            outages.known.clear()


async def test_a_wrong_kind_of_url_is_named(cluster: RedisCluster) -> None:
    node = connect(f"redis://:{PASSWORD}@{HOST}:{cluster.servers[0].port}")
    foreign = next(tag for tag in TAGS if cluster.master(cluster.slot(tag)) is not cluster.servers[0])
    with pytest.raises(Unavailable, match=r"is a node of a cluster; write redis\+cluster://"):
        await node.execute("GET", foreign)
    await node.stop()
    with Server() as server:
        for url, said in [
            (f"redis+cluster://{HOST}:{server.port}", "CLUSTER SLOTS: This instance has cluster support disabled"),
            (f"redis+sentinel://{HOST}:{server.port}/mymaster", "unknown command"),
        ]:
            wrong = connect(url)
            with pytest.raises(Unavailable, match=said):
                await wrong.refuse_eviction()
            await wrong.stop()


def post(role: Role, account: str, amount: int = 1, **headers: str) -> httpx.Response:
    return httpx.post(f"{role.url}/accounts/{account}", json={"amount": amount}, headers=headers, timeout=30)


def balance(role: Role, account: str, consistency: str = "current") -> int | None:
    """None if there is no such account."""
    url, level = f"{role.url}/accounts/{account}", {"consistency": consistency}
    answer = settled(lambda: httpx.get(url, params=level, timeout=30))
    return int(answer.json()["payload"]["balance"]) if answer.status_code == 200 else None


@pytest.mark.kafka
def test_roles_on_a_cluster(kafka: Kafka, cluster: RedisCluster, topic: str) -> None:
    """Commands, reads and keys over all shards; and the cache is the fold of the log."""
    settings = {"EVENT_STORE_BROKERS": kafka.brokers, "CACHE_URL": cluster.url, "EVENT_STORE_PARTITIONS": "6"}
    names = [f"a{number}" for number in range(24)]
    with ExitStack() as stack:
        processor, producer = (
            stack.enter_context(Role(name, settings | {"EVENT_STORE_TOPIC": f"{topic}-{name}"}, actor=TAKES_DEPOSITS))
            for name in ("stream-processor", "producer")
        )
        for role in (processor, producer):
            for name in names:
                first = post(role, name, 2, **{"Idempotency-Key": name})
                assert first.status_code == 200, first.text
                again = post(role, name, 2, **{"Idempotency-Key": name})
                assert (again.status_code, again.content) == (200, first.content)
                assert again.headers["hive-position"] == first.headers["hive-position"]
            assert post(role, "a0", 3, **{"Idempotency-Key": "a0"}).status_code == 422
        assert [httpx.get(f"{processor.url}/accounts/{name}").status_code for name in names] == [200] * len(names)
        stored = Counter(dict(m.headers() or [])["hive-key"] for m in read_all(kafka.brokers, f"{topic}-producer"))
        assert stored == {name.encode(): 1 for name in names}
        environ = processor.environ | {"PATH": os.environ["PATH"]}
        tool = str(Path(sys.executable).parent / "hiveio")
        done = subprocess.run([tool, "verify"], env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout.count("no difference")) == (0, 6), done
        for role in (processor, producer):
            assert not role.complaints(), role.text()
        # The shard with the keys of the producer is lost, and its replica knows them.
        found = [cluster.ask(server, "KEYS", f"hive:keys:{{{topic}-producer/*") for server in cluster.servers]
        key = next(filter(None, found))[0].decode()
        lost = cluster.master(cluster.slot(key))
        first = post(producer, "a1", 2, **{"Idempotency-Key": "a1"})
        lost.kill()
        try:
            wait_until(lambda: is_ready(producer) == 503, 5, "not ready")
            wait_until(lambda: is_ready(producer) == 200, 30, "ready")
            again = post(producer, "a1", 2, **{"Idempotency-Key": "a1"})
            assert (again.status_code, again.content) == (200, first.content)
            assert post(producer, "new", 2, **{"Idempotency-Key": "new"}).status_code == 200
            wait_until(lambda: is_ready(processor) == 200, 30, "ready")
            assert [post(processor, name, 1).status_code for name in names] == [200] * len(names)
        finally:
            lost.start()
            cluster.until(cluster.is_well, "well")


def is_ready(role: Role) -> int:
    return httpx.get(f"{role.url}/readyz", timeout=10).status_code


@pytest.mark.kafka
def test_a_cluster_with_tls_users_and_passwords(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    """The user has the rights that the documents list, and no more. No secret is shown."""
    security = Security(tmp_path)
    with ExitStack() as stack:
        ports: list[int] = []

        def behind_tls(port: int) -> int:
            ports.append(stack.enter_context(tls_before(port, security)))
            return ports[-1]

        cluster = stack.enter_context(RedisCluster(0, password=security.password, announced=behind_tls))
        rights = [*REDIS_RIGHTS, "+cluster|slots"]
        for server in cluster.servers:
            cluster.ask(server, "ACL", "SETUSER", security.user, f">{security.password}", *rights)
        login = f"{security.user}:{quote(security.password)}"
        url = f"rediss+cluster://{login}@{HOST}:{ports[0]},{HOST}:{ports[1]}?ssl_ca_certs={security.ca}"
        settings = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_PARTITIONS": "6", "CACHE_URL": url}
        for name in ("stream-processor", "producer"):
            own = {"EVENT_STORE_TOPIC": f"{topic}-{name}"}
            with Role(name, settings | own, actor=TAKES_DEPOSITS) as role:
                found = [post(role, f"a{number}", 1, **{"Idempotency-Key": "k"}) for number in range(12)]
                assert [answer.status_code for answer in found] == [200] * 12
                assert not role.complaints(), role.text()
            assert security.password not in role.text()


@pytest.mark.kafka
def test_sentinels_name_another_master(kafka: Kafka, topic: str) -> None:
    with required("redis"), Sentinels(password=PASSWORD, own_password="correct-horse") as sentinels:
        settings = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic, "CACHE_URL": sentinels.url}
        with Role("stream-processor", settings | {"REQUEST_TIMEOUT": "4000"}, actor=TAKES_DEPOSITS) as role:
            assert settled(lambda: post(role, "a", 2, **{"Idempotency-Key": "k2"})).status_code == 200
            sentinels.sentinels[0].pause()  # and one of those that are asked does not answer
            sentinels.master.kill()
            answer = settled(lambda: post(role, "a", 3, **{"Idempotency-Key": "k3"}))
            assert answer.status_code == 200, answer.text  # commands are taken again
            role.ready()
            assert balance(role, "a") == 5
            assert balance(role, "a", "cached") == 5
            with contextlib.closing(sentinels.client(sentinels.replica)) as client:
                assert client.info("replication")["role"] == "master"
                wait_until(lambda: client.keys("hive:*:a:*"), 30, "the cache has it; no answer waits for that")
            lines = [line["message"] for line in role.logs() if line["message"].startswith("Redis at")]
            assert "is away" in lines[0], lines
            assert "is back" in lines[-1], lines
            for secret in (PASSWORD, "correct"):
                assert secret not in role.text()
            sentinels.sentinels[0].resume()


@pytest.mark.kafka
def test_sentinels_with_tls_users_and_passwords(kafka: Kafka, topic: str, tmp_path: Path) -> None:
    """Both users have the rights that the documents list, and no more. No secret is shown."""
    security, own = Security(tmp_path), "correct-horse"
    with required("redis"), Sentinels(password=PASSWORD, own_password=own, security=security) as sentinels:
        for server in (sentinels.master, sentinels.replica):
            with contextlib.closing(sentinels.client(server)) as client:
                client.execute_command("ACL", "SETUSER", security.user, f">{security.password}", *REDIS_RIGHTS)
        for sentinel in sentinels.sentinels:
            sentinel.ask("ACL SETUSER", "watcher", "on", ">battery-staple", "+sentinel|masters")
        hosts = ",".join(f"{HOST}:{sentinel.tls_port}" for sentinel in sentinels.sentinels)
        options = f"sentinel_username=watcher&sentinel_password=battery-staple&ssl_ca_certs={security.ca}"
        url = f"rediss+sentinel://{security.user}:{security.password}@{hosts}/mymaster/0?{options}"
        settings = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic, "CACHE_URL": url}
        with Role("stream-processor", settings | {"REQUEST_TIMEOUT": "4000"}, actor=TAKES_DEPOSITS) as role:
            assert settled(lambda: post(role, "a", 2, **{"Idempotency-Key": "k2"})).status_code == 200
            assert not role.complaints(), role.text()
            sentinels.master.kill()
            answer = settled(lambda: post(role, "a", 3, **{"Idempotency-Key": "k3"}))
            assert answer.status_code == 200, answer.text  # commands are taken again
            assert balance(role, "a") == 5
            for secret in (PASSWORD, security.password, own, "battery"):
                assert secret not in role.text()
