"""The transaction log with its verdicts, by the rule alone. Neither a cache nor a service is asked."""

import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from hiveio.config import Settings
from hiveio.errors import Corrupt, NotFound
from hiveio.kafka import Message
from hiveio.kafka.reader import Reader
from hiveio.kafka.tail import LogRecord, log_record, no_record
from hiveio.loader import load
from hiveio.transaction import record as records
from hiveio.transaction.placement import Placement
from hiveio.transaction.record import Format, Record
from hiveio.transaction.rule import ReferenceFold

FORGET = 50_000  # records after which command ids outside the window are forgotten
POLL_S = 0.2


class JudgedRecord(NamedTuple):
    message: LogRecord
    record: Record
    accepted: bool


class Partition(Reader):
    """One partition, read from its start up to the offsets that are asked for. All methods may raise Unavailable."""

    def __init__(self, settings: Settings, topic: str, partition: int) -> None:
        super().__init__(settings)
        self.where, self._partition = f"{topic}/{partition}", (topic, partition)
        self._stream: Iterator[Message] = iter(())
        self._offset = 0

    def end(self) -> int:
        return self.bounds(*self._partition)[1]

    def messages(self, end: int) -> Iterator[Message]:
        """The messages from the present offset to below ``end``, which must not be beyond the end of the partition."""
        while self._offset < end:
            message = next(self._stream, None)
            if message is None:
                self._stream = self.read(*self._partition, self._offset)
            else:
                self._offset = (message.offset() or 0) + 1
                yield message

    def records(self, end: int) -> Iterator[LogRecord]:
        """A record for each offset, since each offset has a verdict."""
        at = self._offset
        for record in map(log_record, self.messages(end)):
            yield from map(no_record, range(at, record.offset))
            yield record
            at = record.offset + 1
        yield from map(no_record, range(at, end))

    def close(self) -> None:
        self._stream = iter(())
        super().close()


def count_scopes(settings: Settings) -> int:
    """The number of scopes by the format record of the log; its topic may have more partitions. Raises NotFound."""
    with Partition(settings, settings.log_topic, 0) as log:
        partitions = len(log.partitions(settings.log_topic))
        if not partitions:
            raise NotFound(f"the topic {settings.log_topic} does not exist at {settings.brokers}")
        first = next(log.records(min(1, log.end())), None)
        record = decoded(log.where, first) if first is not None else None
    return record.partitions if isinstance(record, Format) else partitions


def decoded(where: str, message: LogRecord) -> Record:
    """Raises Corrupt."""
    try:
        return records.decode(message.value)
    except Corrupt as error:
        raise Corrupt(f"{where}/{message.offset}: {error}") from None


def judged(settings: Settings, partition: int, *, follow: bool = False) -> Iterator[JudgedRecord]:
    """All records of a scope from the first one on, since a verdict depends on all before it. ``follow`` never ends."""
    with Partition(settings, settings.log_topic, partition) as log:
        fold, progress = ReferenceFold(), Progress(log.where)
        end = log.end()
        while True:
            for message in log.records(end):
                record = decoded(log.where, message)
                yield JudgedRecord(message, record, fold.append(message.key, record, message.time))
                progress.at(message.offset + 1, end)
                if message.offset % FORGET == 0:
                    fold.forget()
            if not follow:
                return
            time.sleep(POLL_S)
            end = log.end()


class Progress:
    """Writes a line to stderr every two seconds."""

    def __init__(self, where: str) -> None:
        self._where, self._next = where, time.monotonic() + 2

    def at(self, offset: int, end: int) -> None:
        if offset % 1000 == 0 and time.monotonic() > self._next:
            self._next = time.monotonic() + 2
            print(f"{self._where}: {offset:,} of {end:,} records", file=sys.stderr, flush=True)


def home_of(settings: Settings, aggregate: str, count: int) -> int | None:
    """The scope of ``<actor>/<id>``; None if this service does not have the actor."""
    contracts = {contract.name: contract for contract in load(settings)} if settings.actor_module else {}
    return Placement(contracts, settings.log_topic, count).home(aggregate)


def searched(home: int | None, count: int) -> list[int]:
    """All scopes, and first the one to which an aggregate belongs. The log may have been written with another
    ``scope(id)``, so the others are searched too."""
    return sorted(range(count), key=lambda scope: scope != home)
