"""Faults 28, 29, 33 to 35, 47 and 65: skew, readers, storms, everything gone at once, what cannot be folded, and what
never ends."""

import asyncio
import contextlib
import itertools
import json
import shutil
import time
import urllib.request
from typing import Any

import pytest

from tests.faults.checker import Result
from tests.faults.evidence import log_of, messages
from tests.faults.fold import Fold
from tests.faults.stage import REQUEST_TIMEOUT_S, Broker, Stage, until
from tests.services import HOST

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]


@pytest.mark.fault(28)
async def test_28_write_skew_is_refused(broker: Broker) -> None:
    # Without locks the two meet at the log: only the validated reads are between them and the skew.
    with Stage(broker, broken=("lockless", "lockless")) as stage:
        met = 0
        for number in range(12):
            a, b = f"p{number}-a", f"p{number}-b"
            await stage.accepted("Give", f"Pair/{a}", amount=10)
            both = await asyncio.gather(
                stage.send("Take", f"Pair/{a}", at=0, other=b, amount=10),
                stage.send("Take", f"Pair/{b}", at=1, other=a, amount=10),
            )
            assert [call.result for call in both].count(Result.ACCEPTED) <= 1
            met += any(False in stage.verdicts(call) for call in both)
        assert met  # some were void: they did meet
        await stage.well()


@pytest.mark.fault(29)
async def test_29_readers_see_a_consistent_cut(broker: Broker) -> None:
    with Stage(broker, broken=("", "lockless")) as stage:
        for name in "ab":
            await stage.accepted("Deposit", f"Account/{name}", amount=100)
        over = asyncio.Event()

        async def transfer(at: int) -> None:
            for sender, to in itertools.cycle((("a", "b"), ("b", "a"))):
                if over.is_set():
                    return
                await stage.send("Transfer", f"Account/{sender}", at=at, to=to, amount=1)

        async def witness(number: int) -> int:
            calls = [
                await stage.send("Witness", f"Account/w{number}", at=turn % 2, of=["a", "b"]) for turn in range(30)
            ]
            return sum(call.result is Result.ACCEPTED for call in calls)

        transfers = [asyncio.create_task(transfer(at)) for at in (0, 1)]
        seen = sum(await asyncio.gather(*[witness(number) for number in range(4)]))
        over.set()
        await asyncio.gather(*transfers)
        assert seen > 20
        events = [event for event in committed(stage) if event["type"] == "Witnessed"]
        assert {sum(state[0] for state in event["payload"]["seen"].values()) for event in events} == {200}
        await stage.well("Account/a")


def committed(stage: Stage) -> list[dict[str, Any]]:
    fold = Fold()
    for record in log_of(stage.direct.brokers, stage.log_topic):
        fold.take(record)
    return [event.value for event in fold.events]


@pytest.mark.fault(33)
async def test_33_a_storm_of_retries_with_one_key(broker: Broker) -> None:
    with Stage(broker, 3) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)

        how: Any = {"key": "storm", "marker": "storm", "amount": 1}
        storm = [stage.settled("Deposit", "Account/a", at=number % 3, **how) for number in range(60)]
        calls = await asyncio.gather(*storm)
        assert {(call.result, call.version, call.position) for call in calls} == {
            (Result.ACCEPTED, calls[0].version, calls[0].position)
        }
        assert stage.verdicts("storm").count(True) == 1
        await stage.well("Account/a")


@pytest.mark.fault(34)
async def test_34_everything_is_killed_at_once(broker: Broker) -> None:
    with Stage(broker) as stage, contextlib.ExitStack() as stack:
        async with stage.load():
            await asyncio.sleep(3)
            stack.enter_context(stage.nobody_publishes())
            for service in (*stage.instances, stage.redis, broker.kafka):
                service.kill()
        shutil.rmtree(stage.redis.data)
        await asyncio.to_thread(broker.kafka.start)
        stage.redis.start()
        for number in range(2):
            await stage.start(instance=number)
        stack.close()
        await stage.well("Account/h0", "Tally/t0")  # all of it, from the log alone


@pytest.mark.fault(35)
async def test_35_a_record_of_a_newer_version_stops_the_scope(broker: Broker) -> None:
    with Stage(broker) as stage:
        last = await stage.accepted("Deposit", "Account/a", amount=10)
        await until(lambda: stage.watermark() > (last.position or 0), "applied")
        stage.append("bad", b'{"kind":"from the future"}')
        offset = (last.position or 0) + 1
        for instance in stage.instances:
            await until(lambda i=instance: not i.is_ready(), "stopped", to_thread=True)  # type: ignore[misc]
            assert f"{stage.log_topic}/0/{offset}" in instance.why()
            assert [line for line in instance.faults() if '"critical"' in line and f"/0/{offset}" in line]
        for number in range(2):
            call = await stage.send("Deposit", "Account/c", at=number, amount=1)
            assert call.status == 503
            assert not internals(stage, call.answer["detail"])
        assert stage.watermark() == offset  # and no further
        # A new one stops at the same place.
        stage.victim.kill()
        stage.victim.launch()
        await until(lambda: f"/0/{offset}" in stage.victim.why(), "stopped again", to_thread=True)
        assert stage.watermark() == offset


@pytest.mark.fault(35)
async def test_35_an_event_that_replay_raises_for_concerns_its_aggregate(broker: Broker) -> None:
    with Stage(broker) as stage:
        good, ill = (
            {"type": "Deposited", "payload": {"amount": amount, "marker": "m"}} for amount in (1, "much and /0/2")
        )
        writes = [["Account/a", "", 0, [good]], ["Account/b", "", 0, [ill]]]
        stage.append("bad", json.dumps({"kind": "commit", "command": ["Account/a", "k"], "writes": writes}).encode())
        (offset,) = [record.offset for record in log_of(stage.direct.brokers, stage.log_topic) if record.tx == "bad"]

        async def answer(number: int) -> None:
            """What an instance says: of this aggregate, of others, and to whoever operates it."""
            call = await stage.accepted("Deposit", "Account/a", at=number, amount=10)
            assert (await stage.read("Account/a", number)).answer["balance"] % 10 == 1
            await until(lambda: stage.watermark() > (call.position or 0), "applied")
            for command in (
                await stage.send("Deposit", "Account/b", at=number, amount=1),
                await stage.send("Transfer", "Account/a", at=number, to="b", amount=1),
            ):
                assert command.status == 503
                assert not internals(stage, command.answer["detail"])
            answer = await stage.ask("GET", "/accounts/b", number)
            assert answer is not None
            assert (answer.status, answer.headers["retry-after"]) == (503, "10")
            instance = stage.instances[number]
            assert instance.is_ready()
            *before, critical = map(json.loads, instance.lines('"critical"'))
            assert critical["pid"] not in [line["pid"] for line in before], "once"
            fields = [critical[name] for name in ("topic", "partition", "offset", "aggregate")]
            assert fields == [stage.log_topic, 0, offset, "Account/b"]
            (shown,) = json.loads(instance.why())["checks"][0]["quarantined"]
            assert (shown["aggregate"], shown["offset"]) == ("Account/b", offset)

            def gauge() -> bool:
                with urllib.request.urlopen(f"http://{HOST}:{instance.port}/metrics", timeout=5) as answer:
                    return 'hiveio_quarantined_aggregates{scope="0"} 1.0' in answer.read().decode()

            await until(gauge, "shown", to_thread=True)

        await answer(0)
        await answer(1)
        # A new one has not folded it, and knows it from the cache.
        await stage.start()
        await stage.ready()
        await answer(0)
        values = [message.value() or b"" for message in messages(stage.direct.brokers, stage.topic)]
        assert [value for value in values if b"much" in value], "it is published like any other"
        verified = await asyncio.to_thread(stage.verify)
        assert verified.returncode == 0, verified.stdout
        assert f"Account/b is quarantined: {stage.log_topic}/0/{offset}" in verified.stdout


@pytest.mark.fault(47)
async def test_47_an_older_version_does_not_know_an_event(broker: Broker) -> None:
    """The newer one dies at work, so the older one applies what it cannot fold; then both work side by side, with one
    cache; then the newer one goes, and the older one is all there is."""
    with Stage(broker, broken=("", "older"), points={"judged": "KILL:Account/w0"}) as stage:
        await stage.accepted("Deposit", "Account/a", amount=10)
        old = stage.instances[1]
        async with stage.load(8):
            dying = stage.sending("Note", "Account/w0")
            await until(lambda: not stage.victim.is_awake(), "killed")
            assert (await dying).result is Result.UNKNOWN
            await until(lambda: old.lines("Account/w0 is quarantined"), "in quarantine")
            assert old.is_ready()
            refused = await stage.send("Deposit", "Account/w0", at=1, amount=1)
            assert refused.status == 503
            assert not internals(stage, refused.answer["detail"])
            for number in range(3):  # others do not notice
                await stage.accepted("Deposit", f"Account/a{number}", at=1, amount=1)
            await stage.start()
            await stage.ready()
            # The newer one goes on from where the older one stopped, and what it has folded serves both.
            await stage.accepted("Deposit", "Account/w0", at=0, amount=1)
            await stage.accepted("Deposit", "Account/w0", at=1, amount=1)
            for number in range(20):
                await stage.accepted("Note", f"Account/w{number % 3}", at=0)
                await stage.accepted("Deposit", f"Account/a{number % 3}", at=1, amount=1)
        for number in range(3):
            await stage.accepted("Deposit", f"Account/w{number}", at=0, amount=1)
            await stage.accepted("Deposit", f"Account/w{number}", at=1, amount=1)
        # Back to the older one alone: what the newer one has applied is there for it.
        await asyncio.to_thread(stage.victim.kill)
        for number in range(3):
            await stage.accepted("Deposit", f"Account/w{number}", at=1, amount=1)
        await stage.start()
        others = [c.answer for c in stage.workload.history if c.status == 503 and "/w" not in c.target]
        assert not [answer for answer in others if internals(stage, str(answer))]
        await stage.well("Account/w0", "Account/w1", faults=20)
        assert not [line for instance in stage.instances for line in instance.lines('"traceback"')]


def internals(stage: Stage, text: str) -> list[str]:
    """What a client has no business with: places in the log, somebody else's aggregate, the text of an exception."""
    return [part for part in (stage.log_topic, "Account/", "offset", "Error", "much", "Noted") if part in text]


@pytest.mark.fault(65)
async def test_65_a_perform_that_never_ends(broker: Broker) -> None:
    """One that can be cancelled, and one that goes on; both have read a further aggregate."""
    with Stage(broker, 1, environ={"DRAIN_TIMEOUT": "2000"}) as stage:
        await stage.accepted("Deposit", "Account/b", amount=10)
        names = ("Account/a", "Account/c")
        began = time.monotonic()
        hanging = [
            stage.sending("Think", name, seconds=3600, amount=1, of="b", stubborn=name == "Account/c", key=name)
            for name in names
        ]
        await asyncio.sleep(REQUEST_TIMEOUT_S / 2)
        waiting = [stage.sending("Deposit", name, amount=1) for name in names]
        for call in await asyncio.gather(*hanging):
            assert (call.status, call.result) == (503, Result.NOT_EXECUTED)
            assert "nothing was changed" in call.answer["detail"]
        for call in await asyncio.gather(*waiting):
            assert call.result is Result.ACCEPTED, call
        assert time.monotonic() - began < REQUEST_TIMEOUT_S + 1.5
        await stage.accepted("Transfer", "Account/b", to="d", amount=1)
        await stage.accepted("Deposit", "Account/a", amount=1, key="Account/a")

        def reported() -> bool:
            with urllib.request.urlopen(f"http://{HOST}:{stage.victim.port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            return "hiveio_performs_cancelled_total 2.0" in text and "hiveio_performs_abandoned 1.0" in text

        await until(reported, "reported", to_thread=True)
        await until(lambda: stage.victim.lines("goes on after its cancellation"), "in the log")
        assert all(json.loads(line)["actor"] == "Account" for line in stage.victim.lines("cancel"))
        (line,) = stage.victim.lines("goes on after its cancellation")
        assert json.loads(line)["id"] == "c"
        await stage.well(*names)

        # At the end of the instance: what is queued behind it is not performed, and the end comes in time.
        last = stage.sending("Think", "Account/c", seconds=3600, amount=1, stubborn=True)
        await asyncio.sleep(0.3)
        behind = stage.sending("Deposit", "Account/c", amount=1)
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await asyncio.to_thread(stage.victim.stop)
        assert time.monotonic() - began < 4
        for call in (await last, await behind):
            assert (call.status, call.result) == (503, Result.NOT_EXECUTED), call
            assert not stage.verdicts(call)
        assert not [verdict for task in hanging for verdict in stage.verdicts(task.result().marker)]
        assert not stage.findings()
