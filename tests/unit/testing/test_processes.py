"""Process managers over the real engine in memory: each input has its effect once, and all of it or nothing."""

import asyncio
import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from msgspec import Raw

from hiveio import (
    Actor,
    CommandRefused,
    Deadline,
    Event,
    Model,
    ProcessManager,
    Transaction,
)
from hiveio.config import Settings
from hiveio.errors import Invalid, Unavailable
from hiveio.testing import Service, given
from hiveio.testing.memory import MemoryLog
from hiveio.testing.processes import pending
from hiveio.testing.service import memory_settings
from hiveio.transaction import record as records
from hiveio.transaction.process import Process
from hiveio.transaction.record import Commit, Format, Upgrade
from tests.actors.fulfilment import (
    WAIT,
    Abandon,
    CancelPayment,
    CustomerLeft,
    Fulfilment,
    GivenUp,
    OrderPlaced,
    Paid,
    PaymentOverdue,
    PaymentReserved,
    Progress,
    ReservePayment,
    Ship,
    Started,
)
from tests.unit.transaction.test_engine import patiently

PLACED, RESERVED = OrderPlaced("o1", 5), PaymentReserved("o1")
RESERVE = ("payments", "o1", ReservePayment(5))


def test_what_an_event_leads_to_is_events_commands_and_deadlines() -> None:
    scenario = given(Fulfilment).when(PLACED).then(Started("o1")).then_sent(RESERVE)
    scenario.then_scheduled((PaymentOverdue("o1"), WAIT)).then_pending(PaymentOverdue("o1"))
    scenario.then_state(Progress("o1")).when(RESERVED).then(Paid()).then_sent(("stock", "o1", Ship()))
    scenario.then_scheduled().then_pending().after(days=400).then().then_sent().then_state(Progress("o1", "paid"))
    with pytest.raises(AssertionError, match=r"Fulfilment/o1 after 400 days.*\n  expected commands \[Sent\("):
        scenario.then_sent(RESERVE)


def test_a_deadline_comes_when_its_time_is_over_and_once() -> None:
    scenario = given(Fulfilment).when(PLACED).after(minutes=14, seconds=59).then().then_state(Progress("o1"))
    scenario.after(seconds=1).then(GivenUp("overdue")).then_sent(("payments", "o1", CancelPayment())).then_pending()
    scenario.after(hours=1).then().when(RESERVED).then().then_state(Progress("o1", "overdue"))


def test_an_event_goes_to_its_process_and_a_refusal_to_the_one_that_has_sent_the_command() -> None:
    refused = CommandRefused("payments", "o1", "ReservePayment", {"status": 422, "detail": "overdrawn"})
    scenario = given(Fulfilment).when(PLACED).when(OrderPlaced("o2", 7)).then(Started("o2"))
    scenario.when(refused, id="o1").then(GivenUp("payments: overdrawn")).then_state(Progress("o2"), id="o2")
    scenario.then_pending().when(CustomerLeft(), id="o2").then().then_sent().then_pending(PaymentOverdue("o2"))
    scenario.when(Abandon(), id="o2").then(GivenUp("abandoned"))  # a command comes over HTTP
    given(Fulfilment, Started("o1"), id="o1").when(RESERVED).then(Paid())


def test_a_process_that_cannot_go_on_is_stuck_and_others_go_on() -> None:
    scenario = given(Fulfilment).when(OrderPlaced("o1", -1)).then_stuck("negative").then_state(None)
    with pytest.raises(AssertionError, match="the process is stuck: Rejected: a negative amount"):
        scenario.when(RESERVED).then()
    scenario.when(OrderPlaced("o2", 5)).then(Started("o2"))
    with pytest.raises(AssertionError, match="it is not stuck"):
        scenario.then_stuck("negative")


def test_the_deadlines_of_a_process_that_is_stuck_stay_pending_and_those_of_others_fire() -> None:
    scenario = given(Fulfilment).when(PLACED).when(OrderPlaced("o2", 7))
    scenario.when(CommandRefused("payments", "o1", "ReservePayment", {}), id="o1").then_stuck("detail").after(days=1)
    scenario.then_stuck("detail").then_pending(PaymentOverdue("o1")).then_state(Progress("o1"))
    scenario.then_state(Progress("o2", "overdue"), id="o2")


def test_a_scenario_says_what_it_cannot_send() -> None:
    with pytest.raises(AssertionError, match="`after` lets go by"):
        given(Fulfilment).when(PaymentOverdue("o1"))
    with pytest.raises(AssertionError, match="does not take Paid"):
        given(Fulfilment).when(Paid())
    with pytest.raises(Invalid, match="belongs to no process: its field order has 0 bytes"):
        given(Fulfilment).when(OrderPlaced("", 5))


class Again(Deadline):
    pass


class Ticked(Event):
    pass


class Ticks(Model):
    count: int = 0


class Ticker(ProcessManager):
    path = "/tickers/{id}"

    def perform(self, state: Ticks | None, message: Ship | Again, tx: Transaction) -> Ticked:
        tx.schedule(Again(), after=timedelta(minutes=state.count if state else 0))
        return Ticked()

    def replay(self, state: Ticks | None, event: Ticked) -> Ticks:
        return Ticks(state.count + 1 if state else 1)


def test_deadlines_fire_in_the_order_in_which_they_are_due() -> None:
    scenario = given(Ticker).when(Ship()).after(minutes=3)
    scenario.then(Ticked(), Ticked(), Ticked()).then_state(Ticks(4))  # after 0, 1 and 2 minutes more
    scenario.then_scheduled(*[(Again(), timedelta(minutes=n)) for n in (1, 2, 3)])
    scenario.after(minutes=3).then(Ticked())


# -- the engine


async def state(service: Service, id: str = "o1") -> Any:
    return (await service.read(Fulfilment, id))[0]


def kept(service: Service, id: str = "o1") -> Process:
    """What the rule alone says of a process, and what the instance has of it."""
    by_rule = service.log.folds[0].aggregates[f"Fulfilment/{id}"].process
    entry = service.transactions.scopes[0].view.entry(f"Fulfilment/{id}")
    assert entry is not None
    assert entry.process == by_rule
    return Process.of(by_rule)


async def test_an_input_that_comes_again_has_no_second_effect_however_late() -> None:
    settings = dataclasses.replace(Settings(), idempotency_count=1, idempotency_time_s=60)
    async with Service(Fulfilment, settings=settings) as service:
        first = await service.deliver(Fulfilment, PLACED, source="orders/id/0/7")
        assert first.events == [Started("o1")]
        for number in range(5):
            await service.deliver(Fulfilment, OrderPlaced(f"p{number}", 1), source=f"orders/id/0/{8 + number}")
        await service.deliver(Fulfilment, RESERVED, source="payments/id/0/3")
        before = len(service.records())
        for _ in range(2):
            again = await patiently(lambda: service.deliver(Fulfilment, PLACED, source="orders/id/0/7"))
            assert (again.events, again.position) == ([], None)
            service.lose_cache()
        assert len(service.records()) == before
        assert kept(service).sources == ("orders/id/0/7", "payments/id/0/3")
        # What another process has taken is nothing to this one, and an older one that comes late is no repeat.
        late = await patiently(lambda: service.deliver(Fulfilment, PaymentReserved("p0"), source="payments/id/0/2"))
        assert late.events == [Paid()]
        # The same position of another service, or of a topic that was recreated.
        others = await patiently(lambda: service.deliver(Fulfilment, PLACED, source="orders/other/0/7"))
        assert others.events == [Started("o1")]


async def test_an_input_without_an_effect_is_on_record_too() -> None:
    async with Service(Fulfilment) as service:
        answer = await service.deliver(Fulfilment, RESERVED, source="payments/id/0/3")
        assert (answer.events, answer.version) == ([], 0)
        await service.deliver(Fulfilment, PLACED, source="orders/id/0/7")
        # Performed again, it would have one now.
        assert (await service.deliver(Fulfilment, RESERVED, source="payments/id/0/3")).events == []
        assert await state(service) == Progress("o1")


async def test_instances_that_are_given_the_same_input_take_it_once() -> None:
    async with Service(Fulfilment) as a, Service(Fulfilment, log=a.log, cache=a.cache) as b:
        for number in range(20):
            order = OrderPlaced(f"o{number}", 5)
            both = [s.deliver(Fulfilment, order, source=f"orders/id/0/{number}") for s in (a, b, a, b)]
            assert sorted(len(answer.events) for answer in await asyncio.gather(*both)) == [0, 0, 0, 1]
            assert kept(a, f"o{number}").sources == (f"orders/id/0/{number}",)
        steps = [r.record.process for r in a.records() if r.verdict and isinstance(r.record, Commit)]
        assert sum(len(step.sends) for step in steps if step) == 20


async def test_events_commands_and_deadlines_are_one_record() -> None:
    async with Service(Fulfilment) as service:
        await service.deliver(Fulfilment, PLACED, source="orders/id/0/7", meta={"by": "ada"})
        (record,) = [r.record for r in service.records() if isinstance(r.record, Commit)]
        assert record.process is not None
        assert record.writes[0].events == (Raw(b'{"type":"Started","payload":{"order":"o1"},"meta":{"by":"ada"}}'),)
        (send,), (schedule,) = record.process.sends, record.process.schedules
        assert send.message == Raw(b'{"type":"ReservePayment","payload":{"amount":5},"meta":{"by":"ada"}}')
        assert (schedule.name, schedule.after_ms) == ("PaymentOverdue", 900_000)
        assert not record.keyed


async def test_a_deadline_that_is_not_pending_any_more_has_no_effect() -> None:
    now = [1_000_000]
    async with Service(Fulfilment, log=MemoryLog(memory_settings(None), lambda: now[0])) as service:
        await service.deliver(Fulfilment, PLACED, source="orders/id/0/7")
        (deadline,) = pending(service.log)
        with pytest.raises(Unavailable, match="PaymentOverdue of Fulfilment o1 is not due yet"):
            await service.fire(deadline)
        while service.transactions.scopes[0].view.time < deadline.due:
            now[0] += 60_000
            await service.deliver(Fulfilment, OrderPlaced("other", 1), source=f"orders/id/0/{now[0]}")
        answers = await asyncio.gather(*[service.fire(deadline) for _ in range(3)])
        assert sorted(len(answer.events) for answer in answers) == [0, 0, 1]
        assert await state(service) == Progress("o1", "overdue")
        # Put off: the time that the first schedule was for is over, and it must not fire.
        other = next(each for each in pending(service.log) if each.id == "other")
        assert (await service.fire(other._replace(due=other.due - 60_000 * 15))).events == []


async def test_the_cache_is_folded_again_with_inputs_and_deadlines() -> None:
    async with Service(Fulfilment) as service:
        await service.deliver(Fulfilment, PLACED, source="orders/id/0/7")
        before = kept(service)
        assert before.due is not None
    async with Service(Fulfilment, log=service.log) as service:  # with an empty cache
        assert kept(service) == before
        while (applied := service.cache.scopes[0]).watermark.offset < len(service.records()):
            await asyncio.sleep(0.001)
        assert b"orders/id/0/7" in applied.entries["Fulfilment/o1"]
    async with Service(Fulfilment, log=service.log, cache=service.cache) as service:
        assert (await service.deliver(Fulfilment, PLACED, source="orders/id/0/7")).events == []


async def test_a_log_of_an_older_format_is_refused_until_it_is_upgraded() -> None:
    log = MemoryLog(memory_settings(None))
    pinned = made_with(log, 2)
    async with Service(Fulfilment, log=pinned) as service:
        assert (
            "has format 2, and process managers and COMMAND_TOPICS need format 3: run hiveio upgrade"
            in service.transactions.scopes[0].failed
        )
    pinned.append(0, "upgrade-1", records.encode(Upgrade(3)))
    async with Service(Fulfilment, log=pinned) as service:
        await service.deliver(Fulfilment, PLACED, source="orders/id/0/7")
    async with Service(Other, log=made_with(MemoryLog(memory_settings(None)), 2)) as service:
        assert not service.transactions.scopes[0].failed


def made_with(log: MemoryLog, format: int) -> MemoryLog:
    """An empty log that was made with an older format."""
    first = log.partitions[0].pop()
    log.folds[0].__init__()  # type: ignore[misc]
    made = records.decode(first.value)
    assert isinstance(made, Format)
    log.append(0, first.key, records.encode(Format(format, made.partitions, made.hash, 10, 10_000)))
    return log


# -- what is wrong


class Other(Actor):
    path = "/others/{id}"

    def perform(self, state: Ticks | None, message: Ship, tx: Transaction) -> Ticked:
        tx.send("payments", "1", ReservePayment(1))
        return Ticked()

    def replay(self, state: Ticks | None, event: Ticked) -> Ticks:
        return Ticks()


def test_only_a_process_manager_sends_and_schedules() -> None:
    with pytest.raises(TypeError, match=r"Other called tx\.send, and is not a ProcessManager"):
        given(Other).when(Ship())


class Wrong(ProcessManager):
    path = "/wrong/{id}"
    sends = {"payments": (Ship,)}  # noqa: RUF012
    does: Any = None

    def perform(self, state: Ticks | None, message: Ship | Again, tx: Transaction) -> Ticked:
        Wrong.does(tx)
        return Ticked()

    def replay(self, state: Ticks | None, event: Ticked) -> Ticks:
        return Ticks()


@pytest.mark.parametrize(
    ("does", "text"),
    [
        (lambda tx: tx.send("payments", "1", Ticked()), "is not a Command"),
        (lambda tx: tx.send("pay ments", "1", Ship()), "the service 'pay ments'"),
        (lambda tx: tx.send("payments", "", Ship()), "the id ''"),
        (lambda tx: tx.send("stock", "1", Ship()), "Ship for stock, which `sends` does not name"),
        (lambda tx: tx.send("payments", "1", Abandon()), "Abandon for payments, which `sends` does not name"),
        (lambda tx: tx.send("payments", "x" * 256, Ship()), "has 1 to 255 bytes"),
        (lambda tx: tx.schedule(PaymentOverdue("1"), after=WAIT), "no Deadline that Wrong.perform takes"),
        (lambda tx: tx.schedule(Again(), after=-WAIT), "a deadline is in the future"),
        (lambda tx: tx.cancel(Ticked), "no Deadline that Wrong.perform takes"),
    ],
)
def test_what_is_sent_or_scheduled_wrongly_is_a_fault_of_the_actor(
    does: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "does", does)
    with pytest.raises((TypeError, ValueError), match=text):
        given(Wrong).when(Ship())


def test_names_tell_deadlines_of_one_class_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(tx: Transaction) -> None:
        tx.schedule(Again(), after=2 * WAIT, name="a")
        tx.schedule(Again(), after=WAIT, name="b")
        tx.schedule(Again(), after=3 * WAIT, name="c")
        tx.cancel(Again, name="c")

    monkeypatch.setattr(Wrong, "does", both)
    scenario = given(Wrong).when(Ship()).then_pending(Again(), Again())
    monkeypatch.setattr(Wrong, "does", lambda tx: tx.cancel(Again, name="a"))
    scenario.when(Ship()).then_pending(Again())
    monkeypatch.setattr(Wrong, "does", lambda tx: None)
    scenario.after(minutes=15).then(Ticked()).then_pending()
