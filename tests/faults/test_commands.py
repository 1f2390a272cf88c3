"""Faults 28, 29 and 33 to 35: skew, readers, storms, everything gone at once, and a log that cannot be folded."""

import asyncio
import itertools
import json
import shutil
from typing import Any

import pytest

from tests.faults.checker import Told
from tests.faults.evidence import log_of
from tests.faults.fold import Fold
from tests.faults.stage import Broker, Stage, until

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
            assert [call.told for call in both].count(Told.ACCEPTED) <= 1
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
            return sum(call.told is Told.ACCEPTED for call in calls)

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
        assert {(call.told, call.version, call.position) for call in calls} == {
            (Told.ACCEPTED, calls[0].version, calls[0].position)
        }
        assert stage.verdicts("storm").count(True) == 1
        await stage.well("Account/a")


@pytest.mark.fault(34)
async def test_34_everything_is_killed_at_once(broker: Broker) -> None:
    with Stage(broker) as stage:
        async with stage.load():
            await asyncio.sleep(3)
            for service in (*stage.instances, stage.redis, broker.kafka):
                service.kill()
        shutil.rmtree(stage.redis.data)
        await asyncio.to_thread(broker.kafka.start)
        stage.redis.start()
        for number in range(2):
            await stage.start(instance=number)
        await stage.well("Account/h0", "Tally/t0")  # all of it, from the log alone


@pytest.mark.fault(35)
@pytest.mark.parametrize("what", ["no record", "replay raises"])
async def test_35_a_record_that_cannot_be_folded(broker: Broker, what: str) -> None:
    with Stage(broker) as stage:
        last = await stage.accepted("Deposit", "Account/a", amount=10)
        await until(lambda: stage.watermark() > (last.position or 0), "applied")
        event = {"type": "Deposited", "payload": {"amount": "much", "marker": "m"}}
        bad = {"kind": "commit", "command": ["Account/b", "k"], "writes": [["Account/b", "", 0, [event]]]}
        stage.append("bad", b"\xff{" if what == "no record" else json.dumps(bad).encode())
        offset = (last.position or 0) + 1
        for instance in stage.instances:
            await until(lambda i=instance: not i.is_ready(), "stopped", to_thread=True)  # type: ignore[misc]
            assert f"{stage.log_topic}/0/{offset}" in instance.why()
            assert [line for line in instance.faults() if '"critical"' in line and f"/0/{offset}" in line]
        for number in range(2):
            call = await stage.send("Deposit", "Account/c", at=number, amount=1)
            assert call.status == 503
        assert stage.watermark() == offset  # and no further
        # A new one stops at the same place.
        stage.victim.kill()
        stage.victim.launch()
        await until(lambda: f"/0/{offset}" in stage.victim.why(), "stopped again", to_thread=True)
        assert stage.watermark() == offset
