"""Faults 72, 79 and 80, which are time: an instance that has worked for long is no larger than one that is warm.

Each request may leave something behind. The instances know few aggregates and command ids by themselves: what they keep
of these has a bound, and would hide what has none. That the checker finds an engine that leaks: test_broken.py.
"""

import asyncio

import psutil  # type: ignore[import-untyped]
import pytest

from tests.faults.bounds import FEW_GROWTH, WARM_UP, growth
from tests.faults.stage import Broker, Stage, until

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]
RUN_S = 150.0
REQUESTS = int(2.5 * WARM_UP)
KEYS = 100  # more than an idle service has in Redis
SESSIONS, TAKEN_MS = 8, 700  # longer than a publisher waits until it asks again


async def bounded(stage: Stage) -> None:
    """The memory of each process, so far as it was looked at, has its bound."""
    grown = {name: growth(samples) for name, samples in stage.watched.memory.items()}
    print(f"growth in 10,000 requests, of each process: {grown}")
    assert None not in grown.values(), "long enough to be judged"
    stage.watched.growth = FEW_GROWTH
    await stage.well("Account/h0", "Tally/t0")


@pytest.mark.fault(72)
async def test_72_memory_does_not_grow_with_the_commands(broker: Broker) -> None:
    with Stage(broker, broken=("narrow", "narrow")) as stage:
        with stage.memory():
            async with stage.load(32) as load:
                await until(lambda: len(load.history) > REQUESTS, "a long run", RUN_S)
        await bounded(stage)


@pytest.mark.fault(79)
async def test_79_nothing_stays_of_refused_commands(broker: Broker) -> None:
    """Each is a command to an aggregate that never was."""
    with Stage(broker, broken=("narrow",)) as stage:
        numbers = iter(range(REQUESTS))

        async def refused() -> None:
            for number in numbers:
                call = await stage.send("Withdraw", f"Account/r{number}", amount=1)
                assert call.status == 422, call

        with stage.memory():
            await asyncio.gather(*[refused() for _ in range(32)])
        await bounded(stage)
        assert len(stage.redis_client().keys("*")) < KEYS


@pytest.mark.fault(80)
async def test_80_a_publisher_that_begins_again_and_again_keeps_no_threads(broker: Broker) -> None:
    """Another one takes its lease for a moment, as where instances come and go."""
    with Stage(broker, 1) as stage:
        client = stage.redis_client()

        def threads() -> int:
            assert stage.victim.process is not None
            (worker,) = psutil.Process(stage.victim.process.pid).children()
            return int(worker.num_threads())

        async def started(sessions: int) -> None:
            while len(stage.victim.lines('"publishing ')) < sessions:
                (lease,) = client.keys("hive:*:publisher") or (None,)
                if lease is not None and client.get(lease) != b"another":
                    client.set(lease, "another", px=TAKEN_MS)
                await asyncio.sleep(0.1)
            await stage.accepted("Deposit", "Account/a", amount=1)

        await stage.accepted("Deposit", "Account/a", amount=1)  # it follows the scope from then on
        await started(2)
        before = threads()
        await started(2 + SESSIONS)
        await until(lambda: threads() < before + SESSIONS, f"about {before} threads", 10)  # a client has three
        await stage.well("Account/a")
