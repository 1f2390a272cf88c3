"""A consumer in the process of the test, and what it reads."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from hiveio import Actor, Context, Event
from hiveio.actor import contracts, performing
from hiveio.config import Settings
from hiveio.consumer import Consumer
from tests.integration.topics import Written
from tests.services import Kafka


class Deposited(Event, frozen=True):
    amount: int


class Withdrawn(Event, frozen=True):
    amount: int


class Recorder(Actor):
    """Keeps what it is given. ``on_event`` may be set by a test."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []  # partition, offset, amount
        self.on_event: Callable[[int, Context], Awaitable[None]] | None = None

    async def perform(self, event: Deposited, context: Context) -> None:
        if self.on_event:
            await self.on_event(event.amount, context)
        assert context.partition is not None
        assert context.offset is not None
        self.seen.append((context.partition, context.offset, event.amount))

    def amounts(self) -> list[int]:
        return [amount for _, _, amount in self.seen]


class Ledger(Actor):
    """Takes both events, without a context."""

    def __init__(self) -> None:
        self.sum = 0

    def perform(self, event: Deposited | Withdrawn) -> None:
        self.sum += event.amount if isinstance(event, Deposited) else -event.amount


class Member:
    """A consumer in this process."""

    def __init__(self, settings: Settings, *kinds: type[Actor]) -> None:
        made = contracts(kinds or [Recorder])
        self._settings = settings
        self.actor: Any = made[0].actor
        self.actors: list[Any] = [contract.actor for contract in made]
        self.consumer = Consumer(settings, [(contract, performing(contract)) for contract in made])

    @property
    def topic(self) -> str:
        return self._settings.read_topics[0]

    async def until(self, condition: Callable[[], Any], within_s: float = 30.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.005)

    async def ready(self) -> None:
        async with asyncio.timeout(30):
            while await self.consumer.ready() is not None:
                await asyncio.sleep(0.02)

    async def unready(self, reason: str) -> None:
        """Wait until readiness names the reason."""
        async with asyncio.timeout(30):
            while reason not in (await self.consumer.ready() or ""):
                await asyncio.sleep(0.02)

    def partitions(self) -> set[int]:
        return {partition for _, partition in self.consumer.workers}


@asynccontextmanager
async def member(settings: Settings, *kinds: type[Actor]) -> AsyncIterator[Member]:
    made = Member(settings, *kinds)
    for actor in made.actors:
        if (starting := actor.start()) is not None:
            await starting
    await made.consumer.start()
    try:
        yield made
    finally:
        await made.consumer.stop()
        for actor in made.actors:
            if (stopping := actor.stop()) is not None:
                await stopping


@pytest.fixture
def settings(kafka: Kafka, topic: str) -> Callable[..., Settings]:
    group = uuid.uuid4().hex

    def made(**changes: Any) -> Settings:
        values: dict[str, Any] = {"brokers": kafka.brokers, "topic": topic, "group_id": group, "from_start": True}
        return Settings(**(values | changes))

    return made


def wire(amount: int, kind: str = "Deposited") -> bytes:
    return msgspec.json.encode({"type": kind, "payload": {"amount": amount}})


def plain(amounts: Iterable[int], partition: int = 0) -> list[Written]:
    return [(partition, f"a{amount % 7}", wire(amount), {}) for amount in amounts]


def positioned(offsets: Iterable[int], partition: int = 0) -> list[Written]:
    """What a publisher sends for the transactions at these offsets, one event each; the amount is the offset."""
    return [
        (partition, "a", wire(o), {"hive-position": f"0:{o}:0"} | ({"hive-previous": f"0:{o - 1}:0"} if o else {}))
        for o in offsets
    ]
