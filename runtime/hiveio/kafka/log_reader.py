"""Reads the end offsets of a log's partitions, single records and stretches of them, for whoever is async.

What it calls in `reading` blocks, so it waits for that on the pool of `threads`. Its clients are kept, and one that
fails is replaced.
"""

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message

from hiveio.config import Settings
from hiveio.errors import backend_away
from hiveio.kafka.reading import bounds, messages, messages_at
from hiveio.kafka.tail import LogRecord, log_record, reading_client
from hiveio.kafka.threads import blocking

AT_ONCE = 100  # partitions of which one client reads the first record
READERS = 3  # clients that read records at the same time, of any partitions
RENEW_S = 2.0  # a client younger than this is not replaced
Parsed = TypeVar("Parsed")

# For a consumer that reads one record and goes elsewhere: it does not read ahead, and the next read does not wait for a
# fetch at the end of the log.
_ONE_RECORD = {
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 1,
    "queued.min.messages": 1,
    "fetch.message.max.bytes": 65_536,
}


class LogReader:
    """End offsets and records of a topic. Up to READERS reads run at the same time. Every method that is awaited raises
    Unavailable."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._ends = reading_client(settings)
        self._made_at = time.monotonic()
        self._idle: list[Consumer] = []  # clients for records that are not in use
        self._slots = asyncio.Semaphore(READERS)
        self._renewed = 0
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._busy: set[int] = set()

    def renew(self) -> None:
        """Replace the clients, so that they look up the leaders. An old one ends when nothing uses it any more."""
        self._ends, self._made_at = reading_client(self._settings), time.monotonic()
        self._renewed += 1
        self._idle = []

    async def end(self, partition: int) -> int:
        """The end offset, fetched after this call: every record that was acknowledged before it is below that offset.

        Concurrent callers share a fetch.
        """
        asked = self._asked.get(partition)
        if asked is None:
            asked = self._asked[partition] = asyncio.get_running_loop().create_future()
        if partition not in self._busy:
            self._busy.add(partition)
            self._task = asyncio.ensure_future(self._fetch_ends(partition))
        return await asyncio.shield(asked)

    async def _fetch_ends(self, partition: int) -> None:
        while asked := self._asked.pop(partition, None):
            try:
                asked.set_result((await self.bounds(partition))[1])
            except Exception as error:  # whatever it is: the callers are answered
                asked.set_exception(error)
                asked.exception()  # the callers may have gone: that is no fault to report
        self._busy.discard(partition)

    async def bounds(self, partition: int) -> tuple[int, int]:
        """First offset and end offset."""
        return await blocking(self._bounds, partition)

    def _bounds(self, partition: int, timeout_s: float = 5.0) -> tuple[int, int]:
        try:
            return bounds(self._ends, self._topic, partition, timeout_s)
        except KafkaException as error:
            if error.args[0].code() == KafkaError._UNKNOWN_PARTITION and time.monotonic() - self._made_at > RENEW_S:
                # A client can keep what it learned of the topic while its broker was away for many minutes. The old
                # one ends when nothing uses it any more.
                self._ends, self._made_at = reading_client(self._settings), time.monotonic()
            raise backend_away(
                f"Kafka did not say where {self._topic}/{partition} ends: {error.args[0].str()}"
            ) from None

    async def read(self, partition: int, offset: int, *, end: bool = False) -> LogRecord | None:
        """The record at this offset (with ``end``: the last one of the partition). None if there is none."""
        message = await self.read_message(partition, OFFSET_END if end else offset)
        return None if message is None else log_record(message)

    async def read_message(self, partition: int, offset: int) -> Message | None:
        """The message at this offset, or the last one with OFFSET_END; None if the partition ends before."""
        return await self._reading(self._read_message, partition, offset)

    async def read_each(
        self, partition: int, offset: int, end: int, parse: Callable[[Message], Parsed]
    ) -> list[Parsed]:
        """What ``parse`` makes of each message from ``offset`` up to ``end``, which is not beyond the partition's end.

        Only one message at a time is kept, so a result should be small. ``parse`` is called on another thread.
        """
        return await self._reading(self._read_each, partition, offset, end, parse) if offset < end else []

    def _read_each(
        self, partition: int, offset: int, end: int, parse: Callable[[Message], Parsed], timeout_s: float = 5.0
    ) -> list[Parsed]:
        with self._client() as client:
            return [parse(message) for message in messages(client, self._topic, partition, offset, timeout_s, end=end)]

    async def first_records(self, partitions: Sequence[int]) -> dict[int, LogRecord]:
        """The records at offset 0 of those of the partitions that have one. Many partitions are read together."""
        return await self._reading(self._first_records, partitions)

    def _first_records(self, partitions: Sequence[int], timeout_s: float = 5.0) -> dict[int, LogRecord]:
        found: dict[int, LogRecord] = {}
        for start in range(0, len(partitions), AT_ONCE):
            offsets = {(self._topic, partition): 0 for partition in partitions[start : start + AT_ONCE]}
            with self._client() as client:
                some = messages_at(client, offsets, timeout_s)
            found |= {at[1]: log_record(message) for at, message in some.items() if message.offset() == 0}
        return found

    def _read_message(self, partition: int, offset: int, timeout_s: float = 5.0) -> Message | None:
        with self._client() as client:
            first, end = self._bounds(partition)
            if offset == OFFSET_END:
                return self._last(client, partition, first, end, timeout_s)
            if not first <= offset < end:
                return None
            # None at the offset of a transaction marker.
            return next(messages(client, self._topic, partition, offset, timeout_s, end=offset + 1), None)

    async def _reading(self, call: Callable[..., Parsed], *arguments: Any) -> Parsed:
        """Make a call that needs a client. Where many wait for one, they wait here and hold no threads."""
        await self._slots.acquire()
        reading = asyncio.ensure_future(blocking(call, *arguments))
        reading.add_done_callback(self._read_ended)
        return await asyncio.shield(reading)  # the thread goes on with the client if the caller is cancelled

    def _read_ended(self, reading: "asyncio.Future[Any]") -> None:
        self._slots.release()
        if not reading.cancelled():
            reading.exception()  # the caller may have gone: that is no fault to report

    @contextmanager
    def _client(self) -> Generator[Consumer]:
        """A client that nothing else uses meanwhile."""
        renewed, idle = self._renewed, self._idle
        try:
            client = idle.pop()
        except IndexError:
            client = reading_client(self._settings, **_ONE_RECORD)
        yield client  # a client that has failed is not used again
        if renewed == self._renewed:
            idle.append(client)

    def _last(self, client: Consumer, partition: int, first: int, end: int, timeout_s: float) -> Message | None:
        """The last offsets may hold no record (transaction markers): then it looks further back."""
        back = 1
        while first < end:
            start, last = max(first, end - back), None
            for message in messages(client, self._topic, partition, start, timeout_s, end=end):
                last = message
            if last is not None or start == first:
                return last
            back *= 4
        return None

    def close(self) -> None:
        self._ends.close()
        for client in self._idle:
            client.close()
