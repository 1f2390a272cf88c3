"""The dead-letter topics of a consumer, ``<topic>.<group>.dead``: they are created, written and read here."""

import asyncio
import dataclasses
from collections.abc import Sequence

from hiveio.config import Settings
from hiveio.consumer.dead_letters.format import dead_topic
from hiveio.errors import ConfigError
from hiveio.kafka import Message
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.session import Session
from hiveio.kafka.session_clients import Outgoing, SessionClients
from hiveio.kafka.tail import Tail
from hiveio.kafka.topics import FOREVER, ensure_companion

MAX_BYTES = 32 << 20  # of a dead letter: more than any source allows for a record


class DeadLetterTopics:
    """The dead-letter topics of one consumer.

    Each is created when its first dead letter is written, and is read while dead letters are open.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError for a group whose name cannot be part of a topic's."""
        self._settings = dataclasses.replace(
            settings, kafka={**settings.kafka, "message.max.bytes": str(MAX_BYTES + 65536)}
        )
        self._group = settings.group_id
        longest = max(map(len, settings.read_topics), default=0)
        if not all(c.isascii() and (c.isalnum() or c in "._-") for c in self._group) or (
            len(dead_topic("", self._group)) + longest > 249
        ):
            raise ConfigError(
                f"EVENT_STORE_GROUP_ID={self._group!r} is wrong: it is part of the name of the dead-letter topic, "
                "<topic>.<group>.dead, which takes a-z A-Z 0-9 . _ - and has at most 249 characters"
            )
        self._clients = SessionClients(self._settings, "dead letters")
        self._sessions: dict[tuple[str, int], Session] = {}
        self._tails: dict[str, Tail] = {}
        self._writing = asyncio.Lock()

    def topic_of(self, topic: str) -> str:
        return dead_topic(topic, self._group)

    async def write(self, topic: str, partition: int, group: Sequence[Outgoing]) -> None:
        """Write all of them, in order. Raises Unavailable: then each may have been written or not."""
        name = self.topic_of(topic)
        async with self._writing:
            session = self._sessions.pop((name, partition), None)
            if session is None or not session.usable:
                # A compacted or expiring topic would lose dead letters that are open.
                await ensure_companion(self._settings, name, topic, {**FOREVER, "max.message.bytes": str(MAX_BYTES)})
                session = Session(self._clients, name, partition)
            await session.send(group)
            self._sessions[name, partition] = session  # a session that failed is not used again

    async def original(self, topic: str, partition: int, offset: int) -> Message | None:
        """A record of the source; None if it is no longer there. Raises Unavailable."""
        reader = LogReader(self._settings, topic)
        try:
            return await reader.read_message(partition, offset)
        finally:
            reader.close()

    def tail(self, topic: str) -> Tail:
        name = self.topic_of(topic)
        if name not in self._tails:
            self._tails[name] = Tail(self._settings, name, make=lambda message: message, gap=None)
            self._tails[name].start()
        return self._tails[name]

    def renew(self) -> None:
        """Go on with new clients, which ask again who leads the partitions."""
        for tail in self._tails.values():
            tail.renew()
        self._clients.renew()

    async def stop(self) -> None:
        await asyncio.gather(self._clients.stop(), *(tail.stop() for tail in self._tails.values()))
