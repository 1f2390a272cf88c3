"""The format record, the first of each partition: it pins what verdicts depend on, and says whose log it is."""

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence

import msgspec

from hiveio.config import Settings
from hiveio.errors import ConfigError, Corrupt, Unsafe, backend_away
from hiveio.kafka.appender import Appender
from hiveio.kafka.end_offsets import EndOffsets
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.threads import blocking
from hiveio.kafka.topics import Topic
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache
from hiveio.transaction.placement import SAMPLED, last_records
from hiveio.transaction.record import FORMAT, Format
from hiveio.transaction.resume import last_event
from hiveio.transaction.rule import HASH

logger = logging.getLogger("hiveio.transaction")

# Produce requests of one instance at a time, where the rule makes copies void; else 1. A request has the records of one
# partition: several in flight keep partitions from waiting for each other, and let those of one gather less.
IN_FLIGHT = 5


class Pinned:
    """Reads and writes the format records of one log. ``actors`` are the names of the actors of this service."""

    def __init__(
        self, settings: Settings, actors: Iterable[str], reader: LogReader, events: LogReader, ends: EndOffsets
    ) -> None:
        s = self._settings = settings
        self._actors = tuple(sorted(actors))
        self._reader, self._events, self._ends = reader, events, ends
        self._found: dict[int, Format] = {}  # by partition: what is written there stays
        self._mine = Format(FORMAT, s.partitions, HASH, s.idempotency_count, s.idempotency_time_s * 1000, self._actors)

    async def scopes(self, topic: Topic, events: Topic) -> tuple[int, dict[str, int]]:
        """The number of partitions of the log, by its format record or, for a new log, by its topic; and for each of
        the two topics how many partitions are not used.

        Raises Unsafe, ConfigError or Corrupt if this service cannot work with the topics; Unavailable.
        """
        found = await self._first(0)
        if found is not None:
            await self._compare(0, found)
        elif topic.partitions != self._settings.partitions:
            raise Unsafe(
                f"Topic {topic.name} has {topic.partitions} partitions and EVENT_STORE_PARTITIONS is "
                f"{self._settings.partitions}: the number is fixed when the log is created; set "
                f"EVENT_STORE_PARTITIONS={topic.partitions}"
            )
        count = self._settings.partitions
        if topic.partitions < count:
            raise Unsafe(
                f"Topic {topic.name} has {topic.partitions} partitions, and the log was created with {count}: records "
                "are missing; restore the topic as it was"
            )
        if events.partitions < count:
            raise Unsafe(
                f"Topic {events.name} has {events.partitions} partitions and the transaction log has {count}, each of "
                f"which is published to a partition of its own; add partitions to {events.name}"
            )
        if topic.partitions > count:
            logger.warning(
                "Topic %s has %d partitions, and the log was created with %d: that number is fixed, so the others are "
                "not used; to use more, let a new service write to another topic",
                *(topic.name, topic.partitions, count),
            )
        if events.partitions > count:
            logger.warning(
                "Topic %s has %d partitions and the transaction log has %d, so the others are not used",
                *(events.name, events.partitions, count),
            )
        return count, {each.name: each.partitions - count for each in (topic, events) if each.partitions > count}

    async def pin(self, count: int, appender: Appender) -> None:
        """Write the format record to those of the first ``count`` partitions that have none. Of two that are written at
        the same time the first counts. Raises as ``scopes`` does."""
        s = self._settings
        missing = await self._missing(range(count))
        if missing:
            ends = await blocking(self._ends.ends, [(s.written_topic, partition) for partition in missing])
            for partition in missing:
                if ends[s.written_topic, partition] and await self._has_events(partition):
                    raise Unsafe(
                        f"{s.log_topic}/{partition} is empty, and {s.written_topic}/{partition} has events of a log "
                        "that is gone, so a new log would never be published there. Restore the log; or, to give it "
                        "up, let the service write to another EVENT_STORE_TOPIC"
                    )
            for partition in missing:
                appender.append(partition, f"format-{os.urandom(6).hex()}", records.encode(self._mine))
            for _ in range(100):
                if not (missing := await self._missing(missing)):
                    break
                await asyncio.sleep(0.05)
            else:
                raise backend_away(f"the format record of {s.log_topic}/{missing[0]} was not read back")
        for partition in range(count):
            await self._compare(partition, self._found[partition])

    async def _has_events(self, partition: int) -> bool:
        return await last_event(self._events, partition, lambda offset: None) is not None

    async def in_flight(self, count: int, topic_id: str, cache: Cache) -> int:
        """How many produce requests an instance may have in flight: as many as there are partitions, IN_FLIGHT at most,
        if each of the first ``count`` partitions has format 2, by its first record, or by the cache, which knows of an
        upgrade."""
        await self._missing(range(count))
        for partition in range(count):
            if (first := self._found.get(partition)) is not None and first.format < 2:
                watermark = (await cache.read(partition)).watermark
                if watermark is None or watermark.topic != topic_id or watermark.format < 2:
                    return 1
        return min(IN_FLIGHT, count)

    async def _first(self, partition: int) -> Format | None:
        await self._missing([partition])
        return self._found.get(partition)

    async def _missing(self, partitions: Sequence[int]) -> list[int]:
        """Those of the partitions that have no format record yet. Raises Corrupt, Unavailable."""
        sought = [partition for partition in partitions if partition not in self._found]
        for partition, first in (await self._reader.first_records(sought)).items():
            where = f"{self._settings.log_topic}/{partition}"
            try:
                found = records.decode(first.value)
            except Corrupt as error:
                raise Corrupt(f"{where}/0: {error}") from None
            if not isinstance(found, Format):
                raise Corrupt(f"{where}/0 is not a format record, so this topic is not a transaction log")
            self._found[partition] = found
        return [partition for partition in sought if partition not in self._found]

    async def _compare(self, partition: int, found: Format) -> None:
        if found.actors and not {*found.actors} & {*self._actors} and not await self._at_home(found.partitions):
            s = self._settings
            name = "EVENT_STORE_PRODUCER_TOPIC" if s.producer_topic else "EVENT_STORE_TOPIC"
            raise ConfigError(
                f"{name}={s.written_topic} belongs to another service: {s.log_topic} was made by one with the actors "
                f"{', '.join(found.actors)}, and this one has {', '.join(self._actors)}. Let this service write to "
                'another topic; or, if its actors were renamed, keep their names in the log with name = "…"'
            )
        if msgspec.structs.replace(found, actors=self._actors, format=FORMAT) != self._mine:
            raise Unsafe(f"{self._settings.log_topic}/{partition} was made with {_difference(found, self._mine)}")

    async def _at_home(self, partitions: int) -> bool:
        """Whether the last records of the log belong to actors of this service. It may have replaced the first ones
        step by step, with old and new actors together for a while."""
        for partition in range(min(partitions, SAMPLED)):
            for _, record in await last_records(self._reader, partition):
                if any(name.partition("/")[0] in self._actors for name in records.named(record)):
                    return True
        return False


def _difference(found: Format, mine: Format) -> str:
    if found.hash != HASH:
        return f"hash {found.hash}; this version knows hash {HASH}"
    for name, theirs, ours in (
        ("EVENT_STORE_PARTITIONS", found.partitions, mine.partitions),
        ("IDEMPOTENCY_COUNT", found.idempotency_count, mine.idempotency_count),
        ("IDEMPOTENCY_TIME", found.idempotency_time_ms // 1000, mine.idempotency_time_ms // 1000),
    ):
        if theirs != ours:
            return f"{name}={theirs} and the settings say {ours}; verdicts depend on it, so set {name}={theirs}"
    return "other settings"
