"""When a publisher is done: a scope must not be left, and an instance not end, while events are on their way."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from hiveio.kafka.session_clients import Outgoing
from hiveio.testing.memory import MemoryTail
from hiveio.testing.service import Service
from hiveio.transaction import publisher
from hiveio.transaction.publisher import Publisher
from tests.actors.tally import Add, Tallies
from tests.unit.transaction.test_engine import until


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
        clients, nothing = Clients(), SimpleNamespace()
        given: Any = (scope, nothing, MemoryTail(service.log), nothing, clients)
        duty = Publisher("events", *given)
        running = asyncio.create_task(duty.run(leads))
        await until(lambda: clients.sent)
        assert not duty.done, "they are on their way"
        clients.stored.set()
        await until(lambda: duty.done)
        await service.submit(Tallies, "a", Add(1))
        assert not duty.done
        await until(lambda: duty.done and len(clients.sent) == 2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
