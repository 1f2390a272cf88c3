"""Faults 99 to 105: commands that an instance has given to the leader of their scope, whatever becomes of that one and
of the packets between them."""

import asyncio
import contextlib
import json
import random
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis as AsyncRedis

from hiveio.transaction.journal import LATE_S
from tests.faults.chaos import Instance
from tests.faults.checker import Call, Result
from tests.faults.evidence import log_of
from tests.faults.fold import Fold
from tests.faults.proxy import FETCH, kafka
from tests.faults.stage import REQUEST_TIMEOUT_S, WELL_S, Broker, Stage, until
from tests.faults.test_redis_cluster import PASSWORD, ClusterStage
from tests.faults.workload import Workload
from tests.services import HOST, RedisCluster

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]

POINTS = ("prepared", "appended", "judged", "answering")
FEW = 50  # command ids that are remembered
WINDOW = {"IDEMPOTENCY_COUNT": str(FEW)}


def forwarded(instance: Instance) -> int:
    """How many commands it has answered with what another one has decided."""
    return commands(instance, 'outcome="forwarded"')


def commands(instance: Instance, label: str) -> int:
    """How many commands with this label are over in it."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{instance.port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return 0
    counts = [line for line in lines if line.startswith("hiveio_commands_total{") and label in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in counts)


def in_all(stage: Stage) -> int:
    return sum(forwarded(instance) for instance in stage.instances if instance.is_awake())


async def goes_on(stage: Stage) -> None:
    """More commands are forwarded, and answered."""
    before = await asyncio.to_thread(in_all, stage)
    await until(lambda: in_all(stage) > before, "forwarded", to_thread=True)


def holder(stage: Stage) -> str:
    """The name of the instance that has the lease."""
    with contextlib.closing(stage.redis_client()) as client:
        names = [client.get(key) for key in client.scan_iter(match="hive:{*:publisher", count=1000)]
    return next((name.decode() for name in names if name), "")


def leader(stage: Stage) -> tuple[Instance, str] | None:
    """The instance that has the lease, and its mailbox."""
    name = holder(stage)
    with contextlib.closing(stage.redis_client()) as client:
        for key in client.scan_iter(match="hive:instances:*", count=1000):
            if said := client.hget(key, name):
                port, log = json.loads(said)["port"], key.decode().partition("{")[2].rstrip("}")
                for instance in stage.instances:
                    if instance.port == port and instance.is_awake():
                        return instance, f"hive:mail:{{{log}/{name}}}"
    return None


async def paused(stage: Stage) -> Instance:
    """Pause the leader with commands of others in its mailbox."""
    await goes_on(stage)
    while True:
        instance, mailbox = await until(lambda: leader(stage), "led", to_thread=True)
        await asyncio.to_thread(instance.pause)
        with contextlib.closing(stage.redis_client()) as client:
            for _ in range(50):
                if client.llen(mailbox):
                    return instance  # type: ignore[no-any-return]
                await asyncio.sleep(0.02)
        instance.resume()  # another one was faster with the lease
        await asyncio.sleep(0.2)


async def victim_leads(stage: Stage) -> str:
    """Let the victim have the lease, and return its mailbox."""
    for _ in range(20):
        for number in range(2):
            await stage.accepted("Deposit", f"Account/by{number}", at=number, amount=1)  # so they follow the scope
        found = await asyncio.to_thread(leader, stage)
        if found is not None and found[0] is stage.victim:
            await asyncio.sleep(1.0)  # so that the other one knows
            return found[1]
        stage.instances[1].pause()
        with contextlib.closing(stage.redis_client()) as client:
            for key in client.scan_iter(match="hive:{*:publisher", count=1000):
                client.delete(key)
        await asyncio.sleep(1.0)
        stage.instances[1].resume()
    raise AssertionError("the victim does not lead")


async def taking(stage: Stage) -> str:
    """The victim leads, and takes commands of the other one. Returns its mailbox."""
    end = time.monotonic() + WELL_S
    while time.monotonic() < end:
        mailbox = await victim_leads(stage)
        before = forwarded(stage.instances[1])
        await stage.accepted("Deposit", "Account/both", amount=1)
        for _ in range(20):  # the victim may give the lease back meanwhile
            await stage.accepted("Deposit", "Account/both", at=1, amount=1)
            leads = await asyncio.to_thread(leader, stage)
            if forwarded(stage.instances[1]) > before and leads == (stage.victim, mailbox):
                return mailbox
            await asyncio.sleep(0.2)
    raise AssertionError("the victim takes no commands")


async def asked(stage: Stage) -> None:
    """The other one knows, for a second, that the victim takes commands."""
    for _ in range(2):
        await stage.accepted("Deposit", "Account/both", at=1, amount=1)
        await asyncio.sleep(0.1)


async def one_outcome(stage: Stage, load: Workload) -> None:
    """Each command that was answered 504 has one outcome, which all instances know and the log has."""
    await stage.ready()
    unknown = [call for call in load.history if call.status == 504 and isinstance(call.answer, dict) and call.command]
    unknown = [call for call in unknown if "transaction" in call.answer]
    found = {}
    for call in unknown:
        found[call.marker] = {await stage.outcome(call, at) for at in range(len(stage.instances))} - {"unknown"}
    fold = Fold()
    for record in log_of(stage.direct.brokers, stage.log_topic):
        fold.take(record)
    accepted = {marker for commit in fold.commits.values() for marker in commit.markers}
    for marker, outcomes in found.items():
        assert len(outcomes) < 2, (marker, outcomes)
        assert not outcomes or ("accepted" in outcomes) == (marker in accepted), (marker, outcomes)


async def well(stage: Stage) -> None:
    assert await asyncio.to_thread(in_all, stage), "nothing was forwarded"
    await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(99)
async def test_99_the_leader_is_killed_while_it_has_commands_of_others(broker: Broker) -> None:
    with Stage(broker, 3) as stage:
        async with stage.load(24, hot=1.0) as load:
            for _ in range(4):
                gone = await paused(stage)
                answered = len(load.history)
                await asyncio.to_thread(gone.kill)
                await until(lambda n=answered: any(c.result is Result.ACCEPTED for c in load.history[n:]), "goes on")  # type: ignore[misc]
                await asyncio.to_thread(gone.start, 90.0)
            await goes_on(stage)
        await one_outcome(stage, load)
        await well(stage)


@pytest.mark.fault(99)
async def test_99_the_leader_is_killed_at_a_step_of_a_command_of_another_instance(broker: Broker) -> None:
    with Stage(broker) as stage:
        for point in POINTS:
            await stage.start({point: f"KILL:Account/{point}"})
            await stage.accepted("Deposit", f"Account/{point}-from", amount=10)
            await taking(stage)
            # So the other one knows that the victim works on it, and forwards; the victim has not met its fault.
            await stage.accepted("Transfer", f"Account/{point}-from", to=point, amount=5)
            await stage.read(f"Account/{point}", at=1)
            await asked(stage)
            call = await stage.send("Withdraw", f"Account/{point}", at=1, amount=5)
            assert not stage.victim.is_awake(), "it had the command"
            assert call.result is Result.ACCEPTED, call
            assert stage.verdicts(call).count(True) == 1
        await stage.start()
        await stage.well(*(f"Account/{point}" for point in POINTS))


@pytest.mark.fault(100)
@pytest.mark.parametrize("seconds", [3.0, REQUEST_TIMEOUT_S + 2])
async def test_100_the_leader_is_paused_with_commands_of_others(broker: Broker, seconds: float) -> None:
    with Stage(broker) as stage:
        async with stage.load(24, hot=1.0) as load:
            for _ in range(2):
                late = await paused(stage)
                await asyncio.sleep(seconds)
                late.resume()
                await goes_on(stage)
        await one_outcome(stage, load)
        await well(stage)


class Thief:
    """Takes packets out of the mailboxes before their owners do. They are lost, or come late, or twice."""

    def __init__(self, stage: Stage) -> None:
        self._url, self._dice, self.done = stage.cache_url, random.Random(101), Counter[str]()
        self._over = asyncio.Event()

    async def _run(self) -> None:
        late: list[asyncio.Task[None]] = []
        async with AsyncRedis.from_url(self._url) as client:
            while not self._over.is_set():
                opened: Any = await client.keys("hive:mail:*:open")
                boxes = [key.decode().removesuffix(":open") for key in opened]
                found: Any = await client.blpop(boxes, 0.5) if boxes else None
                if found:
                    how = self._dice.choice(("lost", "late", "late", "twice", "twice", "as it was"))
                    self.done[how] += 1
                    if how in ("twice", "as it was"):
                        await client.rpush(*found)
                    if how in ("late", "twice"):
                        late.append(asyncio.create_task(self._put_back(client, *found)))
                await asyncio.sleep(0.01)  # the owners get their turn
            await asyncio.gather(*late)

    async def _put_back(self, client: Any, mailbox: bytes, packet: bytes) -> None:
        await asyncio.sleep(self._dice.choice((0.05, 0.5, 2.0, REQUEST_TIMEOUT_S)))
        await client.rpush(mailbox, packet)

    async def __aenter__(self) -> "Thief":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await self._task


@pytest.mark.fault(101)
async def test_101_packets_are_lost_or_come_late_or_twice(broker: Broker) -> None:
    with Stage(broker) as stage:
        async with stage.load(24, hot=1.0) as load:
            await goes_on(stage)
            async with Thief(stage) as thief:
                await asyncio.sleep(10)
            await goes_on(stage)
        assert min(thief.done[how] for how in ("lost", "late", "twice")) > 10, thief.done
        await one_outcome(stage, load)
        await well(stage)


async def emptied(stage: Stage) -> None:
    """Account/a, on which the other one sees that the victim works, has next to nothing."""
    await stage.accepted("Deposit", "Account/a", amount=1)
    read = await stage.read("Account/a")
    if (amount := read.answer["balance"] - 1) > 0:
        await stage.accepted("Withdraw", "Account/a", amount=amount)
    await stage.read("Account/a", at=1)


async def declined(stage: Stage) -> None:
    """The victim gets a command again that it has declined, and that the other one has refused since."""
    for _ in range(8):
        mailbox = await taking(stage)
        await emptied(stage)
        stage.kafka_proxy.down.hold(kafka(FETCH))
        late = [stage.sending("Deposit", "Account/c", amount=1)]
        await asyncio.sleep(LATE_S / 2)
        for _ in range(2):  # the other one asks whether the victim takes commands, and then hears that it is at work
            late.append(stage.sending("Deposit", "Account/both", at=1, amount=1))
            await asyncio.sleep(0.2)
        await asyncio.sleep(LATE_S / 2 - 0.2)  # from now on the victim takes no further command
        stage.victim.pause()
        late.append(stage.sending("Deposit", "Account/both", at=1, amount=1))  # in the hands of the victim
        await asyncio.sleep(0.1)
        sent = stage.sending("Withdraw", "Account/a", at=1, amount=50)
        await asyncio.sleep(0.1)
        with contextlib.closing(stage.redis_client()) as client:
            packets = client.lrange(mailbox, 0, -1)
            stage.victim.resume()
            assert (await sent).result is Result.REFUSED, sent
            await stage.accepted("Deposit", "Account/a", at=1, amount=100)
            stage.kafka_proxy.open()
            await asyncio.gather(*late)
            await stage.accepted("Deposit", "Account/c", amount=1)
            if packets:
                client.rpush(mailbox, *packets)
                await until(lambda box=mailbox: not client.llen(box), "taken")  # type: ignore[misc]
                await stage.accepted("Deposit", "Account/a", amount=1)
                return
    raise AssertionError("the victim had given the lease back each time")


@pytest.mark.fault(101)
async def test_101_a_command_comes_again_after_it_was_declined(broker: Broker) -> None:
    with Stage(broker) as stage:
        await declined(stage)
        await stage.well("Account/a")


@contextlib.asynccontextmanager
async def late(stage: Stage, held: str, kind: str, amount: int) -> AsyncIterator[Call]:
    """The victim gets a command late that the other one has executed since, and which the block is given. It is behind
    one at the aggregate ``held``, which is in the hands of the victim when that is paused. It comes once the victim has
    read what the other one has written meanwhile."""
    mailbox = await taking(stage)
    await stage.accepted("Deposit", "Account/a", amount=10)
    await stage.read("Account/a", at=1)
    await asked(stage)
    stage.victim.pause()
    first = stage.sending("Deposit", held, at=1, amount=1)
    await asyncio.sleep(0.1)
    call = await stage.send(kind, "Account/a", at=1, amount=amount)
    assert (await first).result is Result.ACCEPTED
    with contextlib.closing(stage.redis_client()) as client:
        packets = client.lrange(mailbox, 0, -1)
        assert packets, "it is there"
        client.delete(mailbox)
        yield call
        stage.victim.resume()
        await stage.accepted("Deposit", "Account/c", amount=1)
        client.rpush(mailbox, *packets)
        await until(lambda: not client.llen(mailbox), "taken")
    await stage.accepted("Deposit", "Account/a", amount=1)


async def overdue(stage: Stage) -> None:
    """By then the id of the late command is forgotten."""
    async with late(stage, "Account/a", "Deposit", 1) as call:
        assert call.result is Result.ACCEPTED, call
        for _ in range(FEW + 10):
            await stage.accepted("Deposit", "Account/b", at=1, amount=1)


async def refused(stage: Stage) -> None:
    """The other one has refused the late command, and would not refuse it any more."""
    async with late(stage, "Account/both", "Withdraw", 50) as call:
        assert call.result is Result.REFUSED, call
        await stage.accepted("Deposit", "Account/a", at=1, amount=100)


async def performed_meanwhile(stage: Stage) -> None:
    """The victim performs a command for so long that the other one executes it too, and its id is forgotten."""
    await taking(stage)
    await stage.accepted("Deposit", "Account/a", at=1, amount=10)
    await stage.accepted("Deposit", "Account/a", amount=10)  # each has seen the other one, so they lock it
    await stage.read("Account/a", at=1)
    await asked(stage)
    file = stage.redis.folder / "go"
    go = [file.with_name(f"go-{instance.port}") for instance in stage.instances]
    sent = stage.sending("Await", "Account/a", at=1, amount=1, file=str(file))
    await until(file.with_name(f"{go[0].name}.begun").exists, "performed by the victim")
    stage.redis_proxy.up.hold()  # so the other one does not hear that it is at work
    stage.redis_proxy.down.hold()
    go[1].touch()
    assert (await sent).result is Result.ACCEPTED, sent
    await asyncio.gather(*[stage.send("Deposit", "Account/b", at=1, amount=1) for _ in range(FEW + 10)])
    stage.redis_proxy.open()
    await until(stage.victim.is_ready, "back", to_thread=True)
    go[0].touch()
    await until(lambda: commands(stage.victim, 'command="Await"'), "over in the victim", to_thread=True)
    await stage.accepted("Deposit", "Account/a", amount=1)


@pytest.mark.fault(102)
@pytest.mark.parametrize("play", [overdue, refused, performed_meanwhile])
async def test_102_the_leader_comes_late_with_a_command(broker: Broker, play: Any) -> None:
    with Stage(broker, environ=WINDOW) as stage:
        await play(stage)
        await stage.well("Account/a")


@pytest.mark.fault(102)
@pytest.mark.parametrize(
    ("way", "play"),
    [
        ("forgetful", overdue),
        ("forgetful", performed_meanwhile),
        ("unrecorded", refused),
        ("gullible", declined),
    ],
)
async def test_102_an_engine_without_its_protection_is_found(broker: Broker, way: str, play: Any) -> None:
    with Stage(broker, broken=(way, way), environ=WINDOW) as stage:
        await play(stage)
        findings = await asyncio.to_thread(stage.findings)
        print("\n".join(map(str, findings[:5])))
        assert 1 in {finding.point for finding in findings}


@pytest.mark.fault(102)
@pytest.mark.parametrize("seconds", [3.0, REQUEST_TIMEOUT_S + 2])
async def test_102_the_leader_is_paused_and_few_ids_are_remembered(broker: Broker, seconds: float) -> None:
    with Stage(broker, environ=WINDOW) as stage:
        async with stage.load(24, hot=1.0) as load:
            for _ in range(2):
                late = await paused(stage)
                await asyncio.sleep(seconds)
                late.resume()
                await goes_on(stage)
        await one_outcome(stage, load)
        await well(stage)


@pytest.mark.fault(103)
async def test_103_the_lease_goes_back_and_forth(broker: Broker) -> None:
    with Stage(broker) as stage:
        async with stage.load(24, hot=1.0) as load:
            await goes_on(stage)
            holders = [holder(stage)]
            async with asyncio.timeout(60):
                while len(holders) < 8:
                    with contextlib.closing(stage.redis_client()) as client:
                        for key in client.scan_iter(match="hive:{*:publisher", count=1000):
                            client.delete(key)
                    await asyncio.sleep(0.7)
                    if (now := holder(stage)) and now != holders[-1]:
                        holders.append(now)
            await goes_on(stage)
        assert len(set(holders)) == 2
        await one_outcome(stage, load)
        await well(stage)


@pytest.mark.fault(104)
async def test_104_flushed_while_commands_are_forwarded(broker: Broker) -> None:
    with Stage(broker) as stage:
        async with stage.load(24, hot=1.0) as load:
            for _ in range(5):
                await goes_on(stage)
                stage.redis_client().flushall()
            await goes_on(stage)
        await one_outcome(stage, load)
        await well(stage)


@pytest.mark.fault(105)
async def test_105_masters_of_a_cluster_fail_over_while_commands_are_forwarded(broker: Broker) -> None:
    with RedisCluster(password=PASSWORD) as cluster, ClusterStage(broker, cluster) as stage:
        await stage.accepted("Deposit", "Account/h0", amount=10)
        slot = stage.slot
        async with stage.load(24, hot=1.0) as load:
            for old in cluster.servers[:3]:  # the masters, one of which has the scope, and another one a mailbox
                await goes_on(stage)
                before, new = stage.watermark_of(cluster.master(slot)), cluster.replica(old)
                old.kill()
                await until(lambda new=new: cluster.id(new) in cluster.masters_by(new), "promoted", to_thread=True)  # type: ignore[misc]
                await stage.reached(before + 1)
                old.start()
                await asyncio.to_thread(cluster.until, cluster.is_well, "well")
            await goes_on(stage)
        await one_outcome(stage, load)
        await well(stage)
