"""The leader fires what is due by the log's time, and makes that go on."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from hiveio import Command, Deadline, Event, Model, ProcessManager, Transaction
from hiveio.config import Settings
from hiveio.errors import ConfigError, Unavailable
from hiveio.testing import Service
from hiveio.testing.memory import MemoryLog
from hiveio.testing.service import memory_settings
from hiveio.transaction import deadlines
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.deadlines import Deadlines
from hiveio.transaction.record import Barrier


class Begin(Command):
    ms: int
    faulty: bool = False


class Over(Deadline):
    faulty: bool


class Opened(Event):
    pass


class Ended(Event):
    pass


class State(Model):
    ended: int = 0


class Waiting(ProcessManager):
    path = "/waiting/{id}"

    def perform(self, state: State | None, message: Begin | Over, tx: Transaction) -> Opened | Ended:
        if isinstance(message, Over):
            if message.faulty:
                raise RuntimeError("a fault")
            return Ended()
        tx.schedule(Over(message.faulty), after=timedelta(milliseconds=message.ms))
        return Opened()

    def replay(self, state: State | None, event: Opened | Ended) -> State:
        ended = state.ended if state else 0
        return State(ended + 1 if isinstance(event, Ended) else ended)


class Leading:
    """The lease of one instance."""

    def __init__(self) -> None:
        self.leads, self.asked = True, 0

    async def __call__(self) -> bool:
        self.asked += 1
        return self.leads


def duty(service: Service) -> Deadlines:
    return Deadlines(
        service.transactions.scopes[0],
        service.cache,
        service.transactions.engine.fire,
        service.transactions.engine.resume,
    )


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine under load takes its time to read a record back."""
    monkeypatch.setattr(deadlines, "TICK_S", 60.0)


@asynccontextmanager
async def leading(service: Service) -> AsyncIterator[Leading]:
    lease = Leading()
    task = asyncio.ensure_future(duty(service).run(lease))
    try:
        yield lease
    finally:
        lease.leads = False
        await task


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.005)


async def ended(service: Service, *ids: str) -> list[int]:
    found = [(await service.read(Waiting, id))[0] for id in ids]
    return [state.ended if state else 0 for state in found]


async def test_a_deadline_fires_soon_after_its_time_while_nobody_works() -> None:
    async with Service(Waiting) as service, leading(service):
        began = time.monotonic()
        await service.submit(Waiting, "a", Begin(300))
        await service.submit(Waiting, "b", Begin(3_600_000))
        await eventually(lambda: has_ended(service, "a"))
        assert 0.29 < time.monotonic() - began < 5
        assert await ended(service, "b") == [0]
        ticks = sum(isinstance(logged.record, Barrier) for logged in service.records())
        assert 0 < ticks < 10, "one for each deadline, and few more because clocks differ"


async def has_ended(service: Service, *ids: str) -> bool:
    return await ended(service, *ids) == [1] * len(ids)


async def test_the_logs_time_goes_on_before_the_step_to_the_next_record_is_too_long() -> None:
    """The log's clock counts a second at most between two records here, and the deadline is further away."""
    log = MemoryLog(memory_settings(Settings(idempotency_time_s=60)))
    async with Service(Waiting, log=log) as service, leading(service):
        began = time.monotonic()
        await service.submit(Waiting, "a", Begin(2_500))
        await eventually(lambda: has_ended(service, "a"))
        assert 2.4 < time.monotonic() - began < 6


async def test_what_has_become_due_while_nobody_led_fires_at_once() -> None:
    """The log's time has stood still meanwhile, so the first thing to do is to ask what time it is."""
    now = 1_000_000
    async with Service(Waiting, log=MemoryLog(memory_settings(None), lambda: now)) as service:
        await service.submit(Waiting, "a", Begin(60_000))
        now += 60_001
        async with leading(service):
            began = time.monotonic()
            await eventually(lambda: has_ended(service, "a"))
            assert time.monotonic() - began < 5


async def test_two_leaders_at_once_fire_a_deadline_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "TURN_S", 0.1)
    async with Service(Waiting) as a, Service(Waiting, log=a.log, cache=a.cache) as b, leading(a), leading(b):
        ids = [f"p{number}" for number in range(50)]
        await asyncio.gather(*[a.submit(Waiting, id, Begin(100)) for id in ids])
        await eventually(lambda: has_ended(b, *ids))
        await asyncio.sleep(2 * deadlines.TURN_S)
        assert await has_ended(a, *ids)


async def test_a_process_whose_deadline_fails_delays_no_other_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "AT_ONCE", 2)
    monkeypatch.setattr(deadlines, "PAGE", 3)
    with caplog.at_level(logging.ERROR, "hiveio.engine"):
        async with Service(Waiting) as service, leading(service) as lease:
            faulty, fine = [f"x{number}" for number in range(7)], [f"y{number}" for number in range(7)]
            await asyncio.gather(*[service.submit(Waiting, id, Begin(0, True)) for id in faulty])
            await asyncio.gather(*[service.submit(Waiting, id, Begin(50)) for id in fine])
            await eventually(lambda: has_ended(service, *fine))
            assert await ended(service, *faulty) == [0] * 7
            asked = lease.asked
            await asyncio.sleep(0.1)
            assert lease.asked - asked < 20, "it does not spin"
    texts = [record.getMessage() for record in caplog.records]
    assert any("the process Waiting/x0 is stuck: RuntimeError: a fault" in text for text in texts)
    assert len(texts) == 7


async def test_however_many_are_due_a_turn_reads_no_more_than_it_can_fire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "AT_ONCE", 5)
    monkeypatch.setattr(deadlines, "PAGE", 40)
    ids = [f"a{number}" for number in range(100)]
    async with Service(Waiting) as service:
        await asyncio.gather(*[service.submit(Waiting, id, Begin(0)) for id in ids])
        looks: list[tuple[int, int]] = []  # how many were passed over, and how many are due
        ask = service.cache.due

        async def due(partition: int, first: int, count: int, by: int) -> Any:
            found = await ask(partition, first, count, by)
            looks.append((first, found[1]))
            return found

        monkeypatch.setattr(service.cache, "due", due)
        async with leading(service):
            await eventually(lambda: has_ended(service, *ids))
    assert {first for first, number in looks if number >= 40} == {0}


async def test_what_is_due_when_an_instance_starts_fires_then() -> None:
    async with Service(Waiting) as service:
        await asyncio.gather(*[service.submit(Waiting, f"p{number}", Begin(1)) for number in range(5)])
    async with Service(Waiting, log=service.log) as later:
        assert await ended(later, "p0") == [0], "not while folding"
        async with leading(later):
            await eventually(lambda: has_ended(later, *[f"p{number}" for number in range(5)]))


async def test_it_ends_where_the_cache_is_lost_and_the_lease_is_asked_for_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadlines, "TURN_S", 0.05)
    async with Service(Waiting) as service, leading(service) as lease:
        await service.submit(Waiting, "a", Begin(3_600_000))
        await eventually(lambda: more(lease, 3))
    async with Service(Waiting) as service:
        await service.submit(Waiting, "a", Begin(3_600_000))
        service.lose_cache()
        with pytest.raises(Unavailable):
            await duty(service).run(Leading())


async def more(lease: Leading, than: int) -> bool:
    return lease.asked > than


def test_the_window_of_a_log_with_processes_leaves_its_clock_a_step_of_a_second() -> None:
    def made(seconds: int) -> Any:
        service = Service(Waiting, settings=Settings(idempotency_time_s=seconds))
        return TransactionLog(service.settings, service.contracts)

    assert made(60)
    with pytest.raises(ConfigError, match=r"IDEMPOTENCY_TIME=59: .* Waiting it must be 60 or more"):
        made(59)
