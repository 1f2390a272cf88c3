"""The transaction log with its verdicts, told by the rule alone: no cache and no service is asked."""

import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from hiveio.config import Settings
from hiveio.errors import Corrupt
from hiveio.kafka.scan import Scan
from hiveio.kafka.tail import LogRecord
from hiveio.loader import load
from hiveio.transaction import record as records
from hiveio.transaction.record import Record
from hiveio.transaction.rule import Prefix, scope_of

FORGET = 50_000  # records between two looks at command ids that the window has left
POLL_S = 0.2


class Judged(NamedTuple):
    message: LogRecord
    record: Record
    accepted: bool


def decoded(where: str, message: LogRecord) -> Record:
    """Raises Corrupt."""
    try:
        return records.decode(message.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{where}/{message.offset} is no transaction record: {error}") from None


def judged(settings: Settings, partition: int, *, follow: bool = False) -> Iterator[Judged]:
    """Every record of a scope, from the first on: a verdict depends on all before it. With ``follow``, without end."""
    scan = Scan(settings, settings.log_topic, partition)
    prefix, progress = Prefix(), Progress(scan.where)
    try:
        end = scan.end()
        while True:
            for message in scan.records(end):
                record = decoded(scan.where, message)
                yield Judged(message, record, prefix.append(message.key, record, message.time))
                progress.at(message.offset + 1, end)
                if message.offset % FORGET == 0:
                    prefix.forget()
            if not follow:
                return
            time.sleep(POLL_S)
            end = scan.end()
    finally:
        scan.close()


class Progress:
    """A line on stderr every two seconds while it takes that long."""

    def __init__(self, where: str) -> None:
        self._where, self._next = where, time.monotonic() + 2

    def at(self, offset: int, end: int) -> None:
        if offset % 1000 == 0 and time.monotonic() > self._next:
            self._next = time.monotonic() + 2
            print(f"{self._where}: {offset:,} of {end:,} records", file=sys.stderr, flush=True)


def scopes_of(settings: Settings, aggregate: str, count: int) -> list[int]:
    """The scope of ``<actor>/<id>``; every scope, if the actor is not here to say it."""
    actor, _, id = aggregate.partition("/")
    if settings.actor_module:
        for contract in load(settings):
            if contract.name == actor:
                return [scope_of(contract.actor.scope(id), count)]
    return list(range(count))
