"""The ends of a log's partitions, and single records."""

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import TypeVar

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from hiveio.config import Settings
from hiveio.errors import backend_away
from hiveio.kafka.tail import LogRecord, log_record, reading_client
from hiveio.kafka.threads import blocking

READERS = 4  # clients that read records at once, each of another partition or of the same
RENEW_S = 2.0  # so old is a client at least that is given up
Made = TypeVar("Made")

# Of a consumer that reads one record and goes elsewhere: it neither reads ahead, nor waits at the end of the log for a
# fetch of its own before the next one.
_ONE_RECORD = {
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 1,
    "queued.min.messages": 1,
    "fetch.message.max.bytes": 65_536,
}


class LogReader:
    """Ends and single records of a topic. Few of those who read records wait for each other (READERS)."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._ends = reading_client(settings)
        self._made = time.monotonic()
        self._idle: list[Consumer] = []  # that read records, and are not in use
        self._places = threading.BoundedSemaphore(READERS)
        self._renewed = 0
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._busy: set[int] = set()

    def renew(self) -> None:
        """Go on with clients that learn anew who leads. An old one ends when nobody uses it any more."""
        self._ends, self._made = reading_client(self._settings), time.monotonic()
        self._renewed += 1
        self._idle = []

    async def end(self, partition: int) -> int:
        """The end offset, fetched after this call came: every record acknowledged before stands below it.

        Concurrent callers share a fetch. Raises Unavailable.
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
                asked.set_result((await blocking(self.bounds, partition))[1])
            except Exception as error:  # whatever it is: nobody is left waiting
                asked.set_exception(error)
                asked.exception()  # those who asked may have gone: that is no fault to report
        self._busy.discard(partition)

    def bounds(self, partition: int, timeout_s: float = 5.0) -> tuple[int, int]:
        """First offset and end offset; blocking."""
        try:
            found = self._ends.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=timeout_s)
        except KafkaException as error:
            if error.args[0].code() == KafkaError._UNKNOWN_PARTITION and time.monotonic() - self._made > RENEW_S:
                # What a client was told of the topic while its broker was away can stay with it for many minutes.
                # The old one ends when nobody uses it any more.
                self._ends, self._made = reading_client(self._settings), time.monotonic()
            raise backend_away(f"the end of {self._topic}/{partition}: {error.args[0].str()}") from None
        if found is None:
            raise backend_away(f"the end of {self._topic}/{partition} was not told within {timeout_s:.0f} s")
        return found

    async def read(self, partition: int, offset: int, *, end: bool = False) -> LogRecord | None:
        """The record at this offset (with ``end``: the last one of the partition). None if there is none."""
        message = await blocking(self.read_message, partition, OFFSET_END if end else offset)
        if message is None:
            return None
        return log_record(message)

    def read_each(
        self, partition: int, offset: int, end: int, made: Callable[[Message], Made], timeout_s: float = 5.0
    ) -> list[Made]:
        """What is made of each message from ``offset`` to below ``end``, which is not beyond the end of the partition:
        something small, since only one message at a time is kept. Blocking."""
        if offset >= end:
            return []
        found: list[Made] = []
        with self._client() as client, closing(self._from(client, partition, offset, timeout_s)) as messages:
            for message in messages:
                if (at := message.offset() or 0) < end:
                    found.append(made(message))
                if at >= end - 1:
                    break
        return found

    def read_message(self, partition: int, offset: int, timeout_s: float = 5.0) -> Message | None:
        """The message at this offset, or the last one with OFFSET_END; None if the partition ends before. Blocking."""
        with self._client() as client:
            first, end = self.bounds(partition)
            if offset == OFFSET_END:
                return self._last(client, partition, first, end, timeout_s)
            if not first <= offset < end:
                return None
            message = next(self._from(client, partition, offset, timeout_s), None)
            return message if message is not None and message.offset() == offset else None  # a mark of a transaction

    @contextmanager
    def _client(self) -> Generator[Consumer]:
        """A client that nobody else uses meanwhile."""
        with self._places:
            renewed, idle = self._renewed, self._idle
            try:
                client = idle.pop()
            except IndexError:
                client = reading_client(self._settings, **_ONE_RECORD)
            yield client  # one that has failed is not used again
            if renewed == self._renewed:
                idle.append(client)

    def _last(self, client: Consumer, partition: int, first: int, end: int, timeout_s: float) -> Message | None:
        """What stands at the end may be no record (a mark of a transaction): then it looks further back."""
        back = 1
        while first < end:
            begin, last = max(first, end - back), None
            for message in self._from(client, partition, begin, timeout_s):
                last = message
                if message.offset() == end - 1:
                    break
            if last is not None or begin == first:
                return last
            back *= 4
        return None

    def _from(self, client: Consumer, partition: int, offset: int, timeout_s: float) -> Generator[Message]:
        """The records from this offset to the end of now."""
        where = f"{self._topic}/{partition}/{offset}"
        try:
            client.assign([TopicPartition(self._topic, partition, offset)])
            while True:
                message = client.poll(timeout_s)
                if message is None:
                    raise backend_away(f"{where} cannot be read: no answer")
                if (failure := message.error()) is not None:
                    if failure.code() == KafkaError._PARTITION_EOF:
                        return
                    if failure.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                        continue  # the client looks for a coordinator, whom nobody needs here
                    raise backend_away(f"{where} cannot be read: {failure.str()}")
                yield message
        except KafkaException as error:
            raise backend_away(f"{where}: {error.args[0].str()}") from None
        finally:
            client.unassign()

    def close(self) -> None:
        self._ends.close()
        for client in self._idle:
            client.close()
