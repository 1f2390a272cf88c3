"""The records that this instance appends to one scope, from the append until they are read back."""

import itertools
import os
import time
from collections.abc import Callable, Iterator

from hiveio.envelope import nesting
from hiveio.errors import TooLarge, Unavailable
from hiveio.kafka.appender import Appender
from hiveio.transaction import record as records
from hiveio.transaction.bounds import SNAPSHOTS_BYTES
from hiveio.transaction.pending import Pending, Settled
from hiveio.transaction.proof import Proofs
from hiveio.transaction.record import Barrier, CommandId, Commit
from hiveio.transaction.view import View

LEVELS = 250  # of nesting in a record: readers differ in how much they can decode, and none may skip a record
RECORD_LIMIT = 900_000  # bytes: the default limit of Kafka, less its own overhead
LATE_S = 3.0  # without a verdict on a command's record, after which no new commands are taken
STOPPED = "This part of the service has stopped and needs its operator. Try again later."


def fresh_ids() -> Iterator[str]:
    """Ids that no process uses twice: 64 random bits and a count. An instance has one such iterator, since the rule
    expects that the numbers of a writer's records rise."""
    prefix = os.urandom(8).hex()
    return map(f"{prefix}-{{:x}}".format, itertools.count(1))


def _forget(pending: Pending, verdict: bool | None, offset: int) -> None:
    """Only reads that need a proof wait for this barrier."""


class Journal:
    """``pending`` are the records that were appended and are not read back, in the order of their appends."""

    def __init__(self, partition: int, view: View, ids: Iterator[str], on_append: Callable[[], None]) -> None:
        """``on_append`` is called with each append, since its record is to be read back."""
        self._partition, self._view, self._ids, self._on_append = partition, view, ids, on_append
        self._appender: Appender
        self._ended = False
        self._barriers: dict[str, str] = {}  # for each aggregate the barrier in flight
        self.pending: dict[str, Pending] = {}
        self.proofs = Proofs(self.append_barrier)
        self.late = False  # whether a command's record has waited for its verdict for more than LATE_S

    def start(self, appender: Appender) -> None:
        self._appender = appender

    def fresh(self) -> str:
        """A new id for a record, or for a command that came without one."""
        return next(self._ids)

    def append(self, pending: Pending) -> None:
        """Append the record. Raises TooLarge, TypeError or Unavailable if it was not appended."""
        if self._ended:
            raise Unavailable(STOPPED)  # nobody would read it back
        if pending.size > SNAPSHOTS_BYTES:
            raise TooLarge(
                f"The aggregates would have {pending.size} bytes after this command; at most {SNAPSHOTS_BYTES} are "
                "allowed."
            )
        value = records.encode(pending.record)
        size = len(value)
        if size > RECORD_LIMIT:
            raise TooLarge(f"The transaction has {size} bytes; at most {RECORD_LIMIT} are allowed.")
        if size > LEVELS and value.count(b"[") + value.count(b"{") > LEVELS and nesting(value) > LEVELS:
            raise TypeError(f"the transaction is nested deeper than {LEVELS} levels, which not every reader can decode")
        self._appender.append(self._partition, pending.tx, value, in_flight=len(self.pending))
        pending.encoded(size)
        self.pending[pending.tx] = pending
        self._on_append()
        self.proofs.appended(pending.tx)

    def append_barrier(
        self, *aggregates: str, command: CommandId | None = None, keyed: bool = False, settled: Settled = _forget
    ) -> str:
        """Append a barrier for these aggregates, which closes the command id if one is given. Returns its transaction
        id. Raises as ``append`` does."""
        tx = self.fresh()
        self.append(Pending(tx, Barrier(aggregates, command, keyed, self._view.next), settled))
        self._barriers.update(dict.fromkeys(aggregates, tx))
        return tx

    def has_barrier(self, aggregate: str) -> bool:
        """Whether a barrier for it is in flight."""
        return aggregate in self._barriers

    def take(self, tx: str) -> Pending | None:
        """Remove the record, which is read back or no longer waited for, and return it. None if it is not pending."""
        pending = self.pending.pop(tx, None)
        if pending is None:
            return None
        self._appender.read_back(self._partition, len(self.pending))
        if isinstance(pending.record, Barrier):
            for name in pending.record.aggregates:
                if self._barriers.get(name) == tx:
                    del self._barriers[name]
        return pending

    def check_lateness(self) -> None:
        oldest = next((each for each in self.pending.values() if isinstance(each.record, Commit)), None)
        self.late = oldest is not None and time.monotonic() - oldest.started_at > LATE_S

    def end(self) -> None:
        """The scope has failed, so nothing is appended from now on."""
        self._ended = True

    def release(self) -> None:
        """Settle the pending records without a verdict: this instance will not read them back."""
        for tx in list(self.pending):
            if (pending := self.take(tx)) is not None:
                self.proofs.over(tx, read_back=False)
                pending.settled(pending, None, -1)
