"""What is published of a record, and when a publisher is done: a scope must not be left, and an instance not end, while
events are on their way."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import Raw

from hiveio.kafka.session_clients import Outgoing
from hiveio.kafka.tail import LogRecord
from hiveio.testing.memory import MemoryTail
from hiveio.testing.service import Service
from hiveio.transaction import publisher
from hiveio.transaction.publisher import COMMANDS, EVENTS, Origin, Publisher
from hiveio.transaction.record import Barrier, CommandId, Commit, ProcessStep, Send, Write
from tests.actors.fulfilment import Fulfilment, OrderPlaced
from tests.actors.tally import Add, Tallies
from tests.unit.transaction.test_engine import until

RESERVE, SHIP = Raw(b'{"type":"Reserve","payload":{}}'), Raw(b'{"type":"Ship","payload":{}}')
STARTED = Raw(b'{"type":"Started","payload":{}}')
ORIGIN = Origin("t", "log", 2)
MESSAGE = LogRecord(7, "w-1f", b"", 0)


def test_a_command_names_whom_it_is_for_and_who_sends_it() -> None:
    step = ProcessStep("s", (Send("payments", "o1", RESERVE), Send("stock", "ü", SHIP)))
    writes = (Write("Fulfilment/p/1", "", 0, (STARTED, STARTED)),)
    record = Commit(CommandId("Fulfilment/p/1", "k"), writes, trace="00-a-b-01", tracestate="x=y", process=step)
    first, second = COMMANDS.outgoing(ORIGIN, MESSAGE, record)
    assert (first.key, first.value) == ("o1", bytes(RESERVE))
    assert first.headers == [
        ("hive-service", "payments"),
        ("hive-id", "w-1f.0"),
        ("hive-position", "2:7:0"),
        ("hive-log", "log"),
        ("hive-process", "Fulfilment/p/1"),
        ("content-type", "application/json"),
        ("traceparent", "00-a-b-01"),
        ("tracestate", "x=y"),
    ]
    assert (second.key, second.value) == ("ü", bytes(SHIP))
    assert dict(second.headers)["hive-position"] == "2:7:1"
    assert len(EVENTS.outgoing(ORIGIN, MESSAGE, record)) == 2


def test_other_records_send_nothing() -> None:
    for record in (
        Barrier(("A/a",)),
        Commit(CommandId("A/a", "k"), ()),
        Commit(CommandId("A/a", "k"), (), process=ProcessStep("s")),
    ):
        assert COMMANDS.outgoing(ORIGIN, MESSAGE, record) == []


async def test_publishers_of_events_and_of_commands_get_each_record_of_a_scope() -> None:
    async with Service(Fulfilment) as service:
        scope = service.transactions.scopes[0]
        one, two = list[int](), list[int]()
        take_one, take_two = (
            (lambda message, *_: one.append(message.offset)),
            (lambda message, *_: two.append(message.offset)),
        )
        scope.notify_judged(take_one)
        scope.notify_judged(take_two)
        await service.deliver(Fulfilment, OrderPlaced("o1", 5), source="a")
        scope.stop_judged(take_one)
        scope.stop_judged(take_one)
        await service.deliver(Fulfilment, OrderPlaced("o2", 5), source="b")
        assert (one, two) == ([1], [1, 2])


async def test_verdicts_are_kept_from_the_slower_publisher_on() -> None:
    async with Service(Fulfilment) as service:
        applier = service.transactions.scopes[0].applier
        kept = list[int]()
        original = service.cache.apply

        async def apply(*arguments: object) -> object:
            kept.append(arguments[7])  # type: ignore[arg-type]
            return await original(*arguments)  # type: ignore[arg-type]

        service.cache.apply = apply  # type: ignore[assignment,method-assign]
        events, commands = applier.publishing("events"), applier.publishing("commands")
        for published, source in ((events, "a"), (commands, "b")):
            published(9 if published is events else 4)
            await service.deliver(Fulfilment, OrderPlaced("o1", 5), source=source)
            await service.transactions.scopes[0].applier.wait(0)
        assert (kept[0], kept[-1]) == (0, 4)


async def test_verdicts_are_kept_from_the_last_record_on_that_has_something_on_the_topic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next session resumes there, although everything is published: further records had nothing for the topic."""
    monkeypatch.setattr(publisher, "Resume", Resuming)
    async with Service(Fulfilment, Tallies) as service:
        below = list[int]()
        (scope,) = service.transactions.scopes
        monkeypatch.setattr(scope.applier, "publishing", lambda name: below.append)
        clients, nothing = Clients(), SimpleNamespace(topic_id="")
        clients.stored.set()
        given: Any = (scope, nothing, MemoryTail(service.log), nothing, clients)
        duty = Publisher(COMMANDS, "t.commands", *given)
        running = asyncio.create_task(duty.run(leads))
        await service.submit(Tallies, "a", Add(1))
        await service.deliver(Fulfilment, OrderPlaced("o1", 5), source="a")
        for _ in range(3):
            await service.submit(Tallies, "a", Add(1))
        await until(lambda: duty.done)
        assert clients.sent
        assert sorted(set(below)) in ([2], [0, 2])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Resuming:
    """An event topic without events."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    async def last(self) -> None: ...

    async def note(self) -> None: ...

    async def note_again(self) -> None: ...

    def forget(self) -> None: ...

    async def landed(self, *_: Any) -> None: ...


class Clients:
    """Deliver what they are given once ``stored`` is set."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        self.stored = asyncio.Event()

    def take(self, topic: str, partition: int) -> Any:
        return SimpleNamespace(retired=False)

    def leave(self, client: Any) -> None: ...

    async def deliver(self, client: Any, topic: str, partition: int, records: Sequence[Outgoing]) -> None:
        self.sent += records
        await self.stored.wait()


async def leads() -> bool:
    return True


async def test_a_publisher_is_done_once_kafka_has_stored_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "Resume", Resuming)
    async with Service(Tallies) as service:
        await service.submit(Tallies, "a", Add(1))
        (scope,) = service.transactions.scopes
        clients, nothing = Clients(), SimpleNamespace(topic_id="")
        given: Any = (scope, nothing, MemoryTail(service.log), nothing, clients)
        duty = Publisher(EVENTS, "events", *given)
        running = asyncio.create_task(duty.run(leads))
        await until(lambda: clients.sent)
        assert not duty.done, "they are on their way"
        clients.stored.set()
        await until(lambda: duty.done)
        clients.stored.clear()
        await service.submit(Tallies, "a", Add(1))
        assert not duty.done
        await until(lambda: len(clients.sent) == 2)
        assert not duty.done
        clients.stored.set()
        await until(lambda: duty.done)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
