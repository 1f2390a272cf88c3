"""Faults 17, 20, 23 to 26, 37, 39 and 66: what happens to Redis, to its locks, and to the way there."""

import asyncio
import contextlib
import hashlib
import shutil
import time
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

import hiveio.transaction
from tests.conftest import require
from tests.faults.chaos import Instance
from tests.faults.checker import Result
from tests.faults.proxy import Passing, When
from tests.faults.stage import LOCK_TTL_S, REQUEST_TIMEOUT_S, WELL_S, Broker, Stage, until
from tests.process import ROOT
from tests.services import Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def calls_of(script: str) -> When:
    """Requests that run this script, and their answers."""
    text = resources.files(hiveio.transaction).joinpath("lua", f"{script}.lua").read_bytes()
    sha = hashlib.sha1(text).hexdigest().encode()

    def when(message: Passing) -> bool:
        return sha in message.request

    return when


@pytest.mark.fault(17)
async def test_17_the_topic_was_made_anew(broker: Broker) -> None:
    with Stage(broker) as stage:
        for _ in range(5):
            await stage.accepted("Deposit", "Account/a", amount=10)
        for instance in stage.instances:
            instance.stop()
        ahead = stage.watermark()  # nobody moves it any more
        admin = AdminClient({"bootstrap.servers": stage.direct.brokers})
        for gone in admin.delete_topics([stage.topic, stage.log_topic]).values():
            gone.result(20)
        stage.workload.history.clear()
        for number in range(2):
            await stage.start(instance=number)
        # Noticed, loudly, and never used: the account of before is not there.
        assert any('"warning"' in line for i in stage.instances for line in i.lines("1 other logs named"))
        assert (await stage.read("Account/a")).version == 0
        assert stage.watermark() == ahead, "what is there is left as it is"
        await stage.well("Account/a")


@pytest.mark.fault(20)
async def test_20_redis_is_back_from_an_older_file(broker: Broker) -> None:
    with Stage(broker) as stage:
        async with stage.load():
            for _ in range(3):
                await asyncio.sleep(0.5)
                older = stage.redis.folder / "older"
                await asyncio.to_thread(shutil.copytree, stage.redis.data, older)
                await asyncio.sleep(1.0)
                await asyncio.to_thread(stage.redis.kill)
                shutil.rmtree(stage.redis.data)
                older.rename(stage.redis.data)
                await asyncio.to_thread(stage.redis.start)
            await asyncio.sleep(0.5)
        await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(66)
async def test_66_a_cache_that_is_lost_is_noticed_without_work(broker: Broker) -> None:
    """By each instance, whether it has the lease or not, and folded before a command comes."""
    with Stage(broker) as stage:
        for number in range(4):
            await stage.accepted("Deposit", "Account/a", at=number % 2, amount=10)
        older = stage.redis.folder / "older"
        await asyncio.to_thread(shutil.copytree, stage.redis.data, older)
        last = await stage.accepted("Deposit", "Account/a", amount=10)
        end = (last.position or 0) + 1
        await until(lambda: stage.watermark() == end, "applied")

        async def noticed(count: int) -> None:
            await until(lambda: stage.watermark() == end, "folded", 5)
            for number, instance in enumerate(stage.instances):
                await until(lambda i=instance: len(i.lines("fell back")) >= count, f"noticed by {number}", 5)  # type: ignore[misc]

        with contextlib.closing(stage.redis_client()) as client:
            await until(lambda: client.keys("hive:*:published"), "noted")
            client.flushall()
            await noticed(1)
            await until(lambda: client.keys("hive:*:published"), "noted again", 6)
        await asyncio.to_thread(stage.redis.kill)
        shutil.rmtree(stage.redis.data)
        older.rename(stage.redis.data)
        await asyncio.to_thread(stage.redis.start)
        await until(lambda: stage.watermark() == end, "folded", 4)  # it was away for a moment
        await stage.well("Account/a")


@pytest.mark.fault(23)
@pytest.mark.parametrize("how", ["stopped", "slow", "busy"])
async def test_23_redis_does_not_answer_in_time(broker: Broker, how: str) -> None:
    async def busy() -> None:
        script = "local n = redis.call('TIME')[1] + 3; while tonumber(redis.call('TIME')[1]) < n do end"
        with contextlib.closing(stage.redis_client()) as client:
            await asyncio.to_thread(client.eval, script, 0)

    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/h0", amount=10)
        async with stage.load() as load:
            await asyncio.sleep(0.5)
            if how == "stopped":
                with stage.nobody_publishes():
                    stage.redis.pause()
                    await asyncio.sleep(5)
                    stage.redis.resume()
            elif how == "busy":
                await busy()
            else:
                for _ in range(10):
                    stage.redis_proxy.down.hold()
                    await asyncio.sleep(0.3)
                    stage.redis_proxy.down.open()
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
        waits = [call.answered - call.called for call in load.history]
        assert max(waits) < REQUEST_TIMEOUT_S + 4  # bounded; the machine may be busy
        await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(24)
@pytest.mark.parametrize("script", ["read", "lock", "prepare", "apply", "reset"])
async def test_24_the_reply_of_a_script_is_lost_after_its_effect(broker: Broker, script: str) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        for number in range(4):  # the other one works on these too, so the victim locks and reads them
            await stage.accepted("Deposit", f"Account/{number}", at=1, amount=1)
        await stage.read("Account/3", at=0)
        lost = stage.redis_proxy.down.cut(calls_of(script), times=1)
        if script in ("apply", "reset"):
            stage.instances[1].pause()  # else it may be the one that applies
        if script == "reset":
            stage.redis_client().flushall()
        for number in range(400):
            if lost.count:
                break
            how: Any = {"seconds": LOCK_TTL_S * 1.1} if script == "prepare" else {}
            await stage.send("Think" if script == "prepare" else "Deposit", f"Account/{number % 4}", amount=1, **how)
        assert lost.count == 1
        if script in ("apply", "reset"):
            stage.instances[1].resume()
        await stage.well("Account/a", *(f"Account/{number}" for number in range(4)))


@pytest.mark.fault(25)
async def test_25_lock_nodes_are_down(broker: Broker) -> None:
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(Redis()) for _ in range(3)]
        urls = ",".join(node.url for node in nodes)
        # Each executes its own commands: a leader that executes those of all soon needs no lock.
        stage = stack.enter_context(Stage(broker, broken=("alone", "alone"), environ={"LOCK_URLS": urls}))
        async with stage.load(8):
            await asyncio.sleep(0.5)
            nodes[0].kill()  # 1 of 3: goes on
            for number in (1, 0, 1, 0):  # both work on it, so it takes the lock
                await stage.accepted("Deposit", "Account/two", at=number, amount=1)
                await stage.read("Account/two", at=0)
            nodes[1].kill()  # 2 of 3: nothing more where a lock is needed, and all else goes on
            call = await stage.send("Deposit", "Account/two", amount=1)
            assert call.status == 503
            await stage.accepted("Deposit", "Account/one", amount=1)
            shutil.rmtree(nodes[0].data)
            nodes[0].start()  # one is back, and knows nothing of the locks that are held
            await stage.accepted("Deposit", "Account/two", amount=1)
        await stage.well("Account/h0", "Account/two")


@pytest.mark.fault(26)
async def test_26_locks_end_early(broker: Broker) -> None:
    with Stage(broker) as stage:
        client = stage.redis_client()
        async with stage.load(hot=0.9):
            for _ in range(60):
                await asyncio.sleep(0.05)
                if keys := [key for key in client.scan_iter(count=1000) if b":lock:" in key]:
                    client.delete(*keys)
        await stage.well("Account/h0", "Tally/t0")  # more voids, no more


@pytest.mark.fault(26)
async def test_26_the_clock_of_redis_jumps(broker: Broker, tmp_path: Path) -> None:
    """By hours, to and fro: locks, leases and intents end early or late, and waiting instances are forgotten."""
    if FAKETIME is None:
        require("faketime", "there is no libfaketime (apt-get install faketime)")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environ = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with Stage(broker, redis_environ=environ) as stage:
        client = stage.redis_client()
        async with stage.load(hot=0.9) as load:
            for hours in (2, -24, 0, -3, 48, 0) * 2:
                clock.write_text(f"{hours:+d}h")
                answered = len(load.history)
                await asyncio.sleep(0.3)
                assert abs(client.time()[0] - time.time() - hours * 3600) < 60
                async with asyncio.timeout(WELL_S):  # work goes on
                    while not any(call.result is Result.ACCEPTED for call in load.history[answered:]):
                        await asyncio.sleep(0.02)
        await stage.accepted("Deposit", "Account/x", at=1, amount=1)  # so the victim locks it
        await stage.read("Account/x", at=0)
        # What an instance held and wished that died while the clock was ahead: it ends by its time, and not by that.
        await until(lambda: client.keys("hive:*:publisher"), "somebody leads")
        (scope,) = {key.rpartition(b":publisher")[0].decode() for key in client.keys("hive:*:publisher")}
        clock.write_text("+48h")
        await until(lambda: client.time()[0] > time.time() + 3600, "ahead")
        ahead = client.time()[0] * 1000
        for held, ttl_s in ((":lock:Account/x", LOCK_TTL_S), (":intent:Account/x", LOCK_TTL_S), (":publisher", 2)):
            client.set(scope + held, "dead", px=int(ttl_s * 1000))
        client.hset(f"{scope}:wishes:Account/x", "dead", f"{ahead - 60_000} {ahead}")
        clock.write_text("+0h")
        await until(lambda: client.time()[0] < time.time() + 60, "back")
        began = time.monotonic()
        await stage.accepted("Think", "Account/x", amount=1, seconds=1.1 * LOCK_TTL_S)  # it is prepared
        assert time.monotonic() - began < 4 * LOCK_TTL_S
        await until(lambda: client.get(f"{scope}:publisher") != b"dead", "the lease is another's", 5)
        await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(26)
def test_26_no_clock_of_the_machine_is_read() -> None:
    """A clock that jumps moves nothing: waits are measured by the monotonic clock, windows by the log's own time."""
    for path in (ROOT / "runtime" / "hiveio" / "transaction").rglob("*.py"):
        text = path.read_text()
        if path.name != "presence.py":  # it tells people when an instance was seen, and decides nothing
            assert "time.time(" not in text, path
        assert "datetime" not in text.replace("from datetime import timedelta", ""), path


@pytest.mark.fault(37)
async def test_37_a_redis_that_evicts_is_refused(broker: Broker) -> None:
    with Redis(options={"maxmemory-policy": "allkeys-lru"}) as evicting:
        environ = Stage(broker)
        environ.redis = evicting
        environ.kafka = broker.kafka
        instance = Instance(environ.environ(1))
        try:
            instance.launch()
            assert instance.process is not None
            code = await asyncio.to_thread(instance.process.wait, 60)
            assert code == 20
            assert any("noeviction" in line for line in instance.lines("maxmemory-policy"))
        finally:
            instance.close()


@pytest.mark.fault(37)
async def test_37_a_key_deleted_by_hand_is_found(broker: Broker) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        await stage.well()
        client = stage.redis_client()
        (key,) = [key for key in client.scan_iter(count=1000) if key.endswith(b":a:Account/a")]
        client.delete(key)
        assert [(finding.point, finding.where) for finding in stage.findings()] == [(6, "Account/a")]
        verified = await asyncio.to_thread(stage.verify)
        assert (verified.returncode, "Account/a" in verified.stdout) == (1, True), verified
        client.flushall()  # the remedy
        await stage.well("Account/a")


@pytest.mark.fault(39)
@pytest.mark.parametrize("backend", ["Kafka", "Redis"])
async def test_39_an_instance_is_cut_off(broker: Broker, backend: str) -> None:
    with Stage(broker) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        proxy = stage.kafka_proxy if backend == "Kafka" else stage.redis_proxy
        async with stage.load(8):
            await asyncio.sleep(0.5)
            proxy.refuse()
            await asyncio.sleep(LOCK_TTL_S * 1.2)  # the locks that it held have ended
            calls = await asyncio.gather(*[stage.send("Deposit", f"Account/{n}", amount=1) for n in range(4)])
            assert not [call for call in calls if call.result is Result.ACCEPTED]
            await stage.accepted("Deposit", "Account/a", at=1, amount=1)  # the others go on
            proxy.open()
        await until(stage.victim.is_ready, "ready again", to_thread=True)
        await stage.well("Account/a", "Account/h0")
