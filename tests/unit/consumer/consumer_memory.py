"""A partition and its dead letters in memory, and a poller that hands them to a real consumer, without Kafka."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from hiveio import Actor
from hiveio.actor import Contract, contracts, performing
from hiveio.config import Settings
from hiveio.consumer import Consumer
from hiveio.consumer.dead_letters.format import headers_of, mark
from hiveio.consumer.dead_letters.topic import DeadLetterTopics
from hiveio.envelope import Codec, Handler
from hiveio.kafka import CommitMetadata, Lane, Message, Poller, Start
from hiveio.kafka.assigned import Lanes, Owner
from hiveio.kafka.headers import Pairs
from hiveio.kafka.session_clients import Outgoing

Record = tuple[bytes | None, bytes | None, Pairs]  # key, value, headers
_owners = itertools.count()


def message(topic: str, offset: int, key: bytes | None, value: bytes | None, headers: Pairs) -> Message:
    make: Any = Message
    made: Message = make(
        topic=topic, partition=0, offset=offset, key=key, value=value, headers=headers or None, timestamp=(1, 7)
    )
    return made


class DeadLetters:
    """The dead-letter topic of the partition, and its tail."""

    def __init__(self, source: list[Message]) -> None:
        self.written: list[Outgoing] = []
        self.messages: list[Message] = []
        self._source = source
        self._deliver: Callable[[list[Message]], None] | None = None

    def topic_of(self, topic: str) -> str:
        return f"{topic}.g.dead"

    async def write(self, topic: str, partition: int, group: Sequence[Outgoing]) -> None:
        first = len(self.messages)
        for made in group:
            pairs = [(name, text.encode() if isinstance(text, str) else text) for name, text in made.headers]
            # As the client does, an empty key is written as none.
            key = made.key.encode() if isinstance(made.key, str) else made.key
            self.messages.append(message(self.topic_of(topic), len(self.messages), key or None, made.value, pairs))
        self.written += group
        if self._deliver is not None:
            self._deliver(self.messages[first:])

    async def original(self, topic: str, partition: int, offset: int) -> Message | None:
        return self._source[offset]

    def tail(self, topic: str) -> "DeadLetters":
        return self

    def follow(self, partition: int, offset: int, on_records: Any, on_error: Any) -> None:
        self._deliver = on_records
        if offset < len(self.messages):
            on_records(self.messages[offset:])

    def unfollow(self, partition: int) -> None:
        self._deliver = None

    def consumed(self, partition: int, count: int) -> None:
        """Nothing waits."""

    async def stop(self) -> None:
        self._deliver = None


class MemoryPoller:
    """Hands the partition over, in chunks of EVENT_STORE_BUFFER; commits when asked for progress."""

    patience_s = 30.0

    def __init__(self, partition: "Partition", settings: Settings, owner: Lanes) -> None:
        self._partition, self._batch, self._owner = partition, settings.buffer, owner
        self._worker: Lane | None = None

    def start(self) -> None:
        self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        self._worker = await self._owner.open(self._partition.start())
        self.hand_over()

    def hand_over(self) -> None:
        """Whatever was written and not handed over yet."""
        worker = self._worker
        if worker is None:
            return
        while chunk := self._partition.messages[worker.handed_to : worker.handed_to + self._batch]:
            worker.handed += len(chunk)
            worker.handed_to = worker.high = worker.handed_to + len(chunk)
            self._owner.take([(worker, chunk)])

    def progress(self) -> None:
        worker = self._worker
        if worker is not None and worker.failure is None:
            offset, last = worker.at
            seen = last.decode() if isinstance(last, bytes) else "-"
            self._partition.committed = offset, CommitMetadata(seen, worker.topic_id, "", worker.owner)

    async def claim(self, worker: Lane, owner: Owner) -> None:
        worker.owner = owner

    async def stop(self, timeout_s: float) -> None:
        await self._opening
        if self._worker is not None:
            await self._owner.close([self._worker], lost=False)
            self.progress()

    def alive(self) -> bool:
        return True

    async def ready(self) -> str | None:
        return None


class Member:
    """A consumer of the partition, and its actors."""

    def __init__(
        self,
        partition: "Partition",
        settings: Settings,
        kinds: Sequence[type[Actor]],
        handler: Callable[[Contract], Handler],
        codec: Codec | None,
    ) -> None:
        made = contracts(kinds)
        self.actors: list[Any] = [contract.actor for contract in made]
        self.actor = self.actors[0]
        self.poller: MemoryPoller | None = None

        def polled(settings: Settings, owner: Lanes, companion: object) -> Poller:
            self.poller = MemoryPoller(partition, settings, owner)
            return cast("Poller", self.poller)

        self.consumer = Consumer(
            settings,
            [(contract, handler(contract)) for contract in made],
            with_record=handler is not performing,
            codec=codec,
            poller=polled,
            dead_letters=lambda settings: cast("DeadLetterTopics", partition.dead_letters),
        )

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)


class Partition:
    """The partition 0 of the topic t."""

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self.messages: list[Message] = []
        self.dead_letters = DeadLetters(self.messages)
        self.committed: tuple[int, CommitMetadata] | None = None
        self._members: list[Member] = []
        self.write(*records)

    def write(self, *records: Record) -> None:
        for key, value, headers in records:
            self.messages.append(message("t", len(self.messages), key, value, headers))
        for member in self._members:
            if member.poller is not None:
                member.poller.hand_over()

    def start(self) -> Start:
        offset, metadata = self.committed or (None, CommitMetadata())
        ends = 0, len(self.dead_letters.messages)
        owner = Owner(f"owner{next(_owners)}", ends[1])
        return Start("t", 0, "id", offset, metadata, 0, 0, len(self.messages), owner, ends)

    async def mark(self, kind: str, key: bytes | None = None) -> None:
        """Mark all dead letters, or those of one key."""
        dead_letters = [
            dead_letter
            for dead_letter in self.dead_letters.messages
            if "hive-dead-mark" not in headers_of(dead_letter) and (key is None or dead_letter.key() == key)
        ]
        await self.dead_letters.write("t", 0, [mark(kind, dead_letter) for dead_letter in dead_letters])

    def kept(self) -> list[tuple[int, str]]:
        """Of each dead letter the offset of its record, and the reason."""
        found = [headers_of(dead_letter) for dead_letter in self.dead_letters.messages]
        return [
            (int(one["hive-dead-origin"].decode().rpartition("/")[2]), one["hive-dead-reason"].decode())
            for one in found
            if "hive-dead-mark" not in one
        ]

    @asynccontextmanager
    async def member(
        self,
        *kinds: type[Actor],
        handler: Callable[[Contract], Handler] = performing,
        codec: Codec | None = None,
        **changes: Any,
    ) -> AsyncIterator[Member]:
        values: dict[str, Any] = {"brokers": "none:1", "topic": "t", "group_id": "g", "from_start": True}
        values |= {"consumer_attempts": 3, "consumer_backoff_ms": 1}
        made = Member(self, Settings(**(values | changes)), kinds, handler, codec)
        self._members.append(made)
        for actor in made.actors:
            if (starting := actor.start()) is not None:
                await starting
        await made.consumer.start()
        try:
            await made.until(lambda: made.consumer.workers)
            yield made
        finally:
            self._members.remove(made)
            await made.consumer.stop()
            for actor in made.actors:
                if (stopping := actor.stop()) is not None:
                    await stopping
