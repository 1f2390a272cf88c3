"""A process that cannot go on waits with its inputs, in their order, until somebody looks at it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import ClassVar
from uuid import uuid4

import pytest

from hiveio import Command, Deadline, Event, Model, ProcessManager, Rejected, Stuck, Transaction
from hiveio.errors import Unavailable
from hiveio.testing import Service
from hiveio.transaction import deadlines, stuck
from hiveio.transaction.deadlines import Deadlines
from hiveio.transaction.process import STUCK, Process, Waiting
from tests.unit.transaction.test_engine import until

NAME = "Steps/p"
CANCELS = 9  # the number that cancels the deadline


class Came(Event):
    id: str
    number: int


class Late(Deadline):
    pass


class Mend(Command):
    pass


class Added(Event):
    number: int


class Sum(Model):
    numbers: list[int]


class Steps(ProcessManager):
    path = "/steps/{id}"
    correlates = {Came: "id"}  # noqa: RUF012
    error: ClassVar[Exception | None] = None

    def perform(self, state: Sum | None, message: Came | Late | Mend, tx: Transaction) -> Added | None:
        if isinstance(message, Mend):
            return Added(-1)
        number = message.number if isinstance(message, Came) else 0
        if number == 1:
            tx.schedule(Late(), after=timedelta(milliseconds=1))
        if number == CANCELS:
            tx.cancel(Late)
        if number == 2 and self.error is not None:
            tx.send("others", "x", Mend())
            raise self.error
        return Added(number)

    def replay(self, state: Sum | None, event: Added) -> Sum:
        return Sum([*(state.numbers if state else []), event.number])


class AsyncSteps(Steps):
    name = "Steps"

    async def perform(  # type: ignore[override]
        self, state: Sum | None, message: Came | Late | Mend, tx: Transaction
    ) -> Added | None:
        await asyncio.sleep(0)
        return super().perform(state, message, tx)


class BadReplay(Steps):
    """Its fault is in replay: what perform returns cannot be folded."""

    name = "Steps"

    def perform(self, state: Sum | None, message: Came | Late | Mend, tx: Transaction) -> Added | None:
        return Added(message.number if isinstance(message, Came) else 0)

    def replay(self, state: Sum | None, event: Added) -> Sum:
        if event.number == 2 and Steps.error is not None:
            raise Steps.error
        return super().replay(state, event)


def kept(service: Service) -> Process:
    return Process.of(service.log.folds[0].aggregates[NAME].process)


async def give(service: Service, number: int) -> None:
    await service.deliver(service.contracts[0].kind, Came("p", number), source=f"s{number}")


async def numbers(service: Service) -> list[int]:
    state, _ = await service.read(service.contracts[0].kind, "p")
    return list(state.numbers) if state else []


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine under load takes its time to read a record back."""
    monkeypatch.setattr(deadlines, "TICK_S", 30.0)


@asynccontextmanager
async def led(service: Service) -> AsyncIterator[Deadlines]:
    engine, (scope,) = service.transactions.engine, service.transactions.scopes
    duty = Deadlines(scope, service.cache, engine.fire, engine.resume)
    leads = True

    async def is_leading() -> bool:
        return leads

    task = asyncio.ensure_future(duty.run(is_leading))
    try:
        yield duty
    finally:
        leads = False
        await task


@pytest.mark.parametrize("kind", [Steps, AsyncSteps, BadReplay])
@pytest.mark.parametrize("error", [Stuck("it needs a person"), RuntimeError("a fault"), Rejected("no")])
async def test_what_comes_after_waits_and_a_retry_goes_on_in_order(
    kind: type[Steps], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Steps, "error", error)
    async with Service(kind) as service, led(service):
        for number in (2, 3, 3, 4):
            await give(service, number)
        process = kept(service)
        assert [each.name for each in process.waiting] == ["s2", "s3", "s4"]
        assert str(error) in process.stuck
        assert process.sources == ("s2", "s3", "s4"), "they are not delivered again"
        assert await numbers(service) == []
        await until(lambda: service.transactions.scopes[0].applied)
        assert await service.cache.processes(0, STUCK, 0, 10) == (1, [(NAME, 0)])
        await service.submit(kind, "p", Mend()) if kind is not BadReplay else None
        await service.cache.ask(0, NAME, "retry")
        await until(lambda: not service.cache.questions)
        assert kept(service).stuck, "it fails again"
        monkeypatch.setattr(Steps, "error", None)
        await service.cache.ask(0, NAME, "retry")
        await until(lambda: not kept(service).waiting)
        assert (await numbers(service))[-3:] == [2, 3, 4]
        assert kept(service) == Process(process.sources)
        await until(lambda: service.transactions.scopes[0].applied)
        assert await service.cache.processes(0, STUCK, 0, 10) == (0, [])


async def test_the_input_that_is_named_is_skipped_and_a_deadline_stays_pending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Steps, "error", Stuck("no"))
    async with Service(Steps) as service:
        for number in (1, 2, 3):
            await give(service, number)
        (due,) = kept(service).deadlines.values()
        while service.transactions.scopes[0].view.time < due.at:  # the log's clock is that of its records
            await service.deliver(Steps, Came("other", 0), source=uuid4().hex)
        await service.transactions.engine.fire(NAME, "Late", due)
        assert [each.name for each in kept(service).waiting] == ["s2", "s3"], "it was not pending any more, else"
        async with led(service) as duty:
            await service.cache.ask(0, NAME, "skip s1")
            await until(lambda: not service.cache.questions)
            assert len(kept(service).waiting) == 2, "another one is the first"
            await service.cache.ask(0, NAME, "skip s2")
            await until(lambda: not kept(service).deadlines)
            assert await numbers(service) == [1, 3, 0], "it has fired after all that waited"
            assert not duty.rests, "the process runs"


async def test_what_waits_may_cancel_a_deadline_that_has_become_due_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "error", Stuck("no"))
    async with Service(Steps) as service, led(service):
        for number in (1, 2, CANCELS):
            await give(service, number)
        await asyncio.sleep(0.05)
        monkeypatch.setattr(Steps, "error", None)
        await service.cache.ask(0, NAME, "retry")
        await until(lambda: not kept(service).waiting)
        await asyncio.sleep(0.05)
        assert await numbers(service) == [1, 2, CANCELS]


class SlowSteps(Steps):
    """Once it has been stuck, its input takes as long as a test likes."""

    name = "Steps"
    over: ClassVar[asyncio.Event]

    async def perform(  # type: ignore[override]
        self, state: Sum | None, message: Came | Late | Mend, tx: Transaction
    ) -> Added | None:
        if self.error is None and isinstance(message, Came) and message.number == 2:
            await self.over.wait()
        return super().perform(state, message, tx)


async def test_a_retry_that_hangs_delays_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "error", Stuck("no"))
    monkeypatch.setattr(deadlines, "ASK_S", 0.01)
    SlowSteps.over = asyncio.Event()
    async with Service(SlowSteps) as service, led(service):
        for id in ("p", "q"):
            await service.deliver(SlowSteps, Came(id, 2), source=f"{id}2")
        monkeypatch.setattr(Steps, "error", None)
        await service.cache.ask(0, NAME, "retry")
        await asyncio.sleep(0.1)
        await service.deliver(SlowSteps, Came("other", 1), source="o1")
        await service.cache.ask(0, "Steps/q", "skip q2")

        async def others_have_gone_on() -> bool:
            state, _ = await service.read(SlowSteps, "other")
            return state == Sum([1, 0]) and set(service.cache.questions) == {(0, NAME)}

        async with asyncio.timeout(5):
            while not await others_have_gone_on():
                await asyncio.sleep(0.01)
        SlowSteps.over.set()
        await until(lambda: not service.cache.questions)


async def test_a_process_that_is_stuck_is_led_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "error", Stuck("no"))
    async with Service(Steps) as service, led(service) as duty:
        await give(service, 2)
        await service.deliver(Steps, Came("other", 7), source="s2")
        assert (await service.read(Steps, "other"))[0] == Sum([7])
        assert not duty.rests
        assert Waiting("s2", kept(service).waiting[0].event) in kept(service).waiting


async def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "error", Stuck("no"))
    monkeypatch.setattr(stuck, "MOST_WAITING", 2)
    async with Service(Steps) as service:
        for number in (2, 3):
            await give(service, number)
        with pytest.raises(Unavailable, match="2 inputs wait for the process Steps/p, and it is stuck: no"):
            await give(service, 4)
        assert kept(service).sources == ("s2", "s3"), "it comes again"
