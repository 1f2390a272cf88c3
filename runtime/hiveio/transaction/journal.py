"""What this instance appends to one scope, under ids that are never used twice, until it is read back."""

import itertools
import os
import time
from collections.abc import Iterator

from hiveio.envelope import nesting
from hiveio.errors import TooLarge, Unavailable
from hiveio.kafka.appender import Appender
from hiveio.transaction import record as records
from hiveio.transaction.bounds import SNAPSHOTS_BYTES
from hiveio.transaction.pending import Pending, Settled
from hiveio.transaction.proof import Proofs
from hiveio.transaction.record import Barrier, CommandId, Commit
from hiveio.transaction.view import View

LEVELS = 250  # of a record as JSON: how many can be read depends on who reads, and nobody may pass a record over
RECORD_LIMIT = 900_000  # bytes; what Kafka takes by default, less its own share
LATE_S = 3.0  # without a verdict for a command's record, after which no new work is taken
STOPPED = "This part of the service has stopped and needs its operator. Try again later."


def fresh_ids() -> Iterator[str]:
    """Ids that are never used twice, by no process: 64 random bits and a count. An instance has one of these, since
    the rule expects that the numbers of a writer's records rise."""
    prefix = os.urandom(8).hex()
    return map(f"{prefix}-{{:x}}".format, itertools.count(1))


def _forget(pending: Pending, verdict: bool | None, offset: int) -> None:
    """Nobody waits for this barrier but those who wait for a proof."""


class Journal:
    """``pending`` is what was appended and is not read back, in the order in which it was appended."""

    def __init__(self, partition: int, view: View, ids: Iterator[str]) -> None:
        self._partition, self._view, self._ids = partition, view, ids
        self._appender: Appender
        self._ended = False
        self._barriers: dict[str, str] = {}  # by aggregate, the one under way
        self.pending: dict[str, Pending] = {}
        self.proofs = Proofs(self.append_barrier)
        self.late = False  # a command's record has waited long for its verdict

    def start(self, appender: Appender) -> None:
        self._appender = appender

    def fresh(self) -> str:
        """An id for a record, or for a command that came without one."""
        return next(self._ids)

    def append(self, pending: Pending) -> None:
        """Raises TooLarge, TypeError or Unavailable where it is not appended."""
        if self._ended:
            raise Unavailable(STOPPED)  # nobody would read it back
        if pending.size > SNAPSHOTS_BYTES:
            raise TooLarge(
                f"What the command changes would have {pending.size} bytes; at most {SNAPSHOTS_BYTES} are kept."
            )
        value = records.encode(pending.record)
        if len(value) > RECORD_LIMIT:
            raise TooLarge(f"The transaction has {len(value)} bytes; at most {RECORD_LIMIT} are taken.")
        if len(value) > LEVELS and value.count(b"[") + value.count(b"{") > LEVELS and nesting(value) > LEVELS:
            raise TypeError(f"the transaction is nested deeper than {LEVELS}: no reader of the log would come past it")
        self._appender.append(self._partition, pending.tx, value, in_flight=len(self.pending))
        pending.encoded(len(value))
        self.pending[pending.tx] = pending
        self.proofs.appended(pending.tx)

    def append_barrier(
        self, *aggregates: str, command: CommandId | None = None, keyed: bool = False, settled: Settled = _forget
    ) -> str:
        """Append a barrier for these aggregates, which closes the command id. Returns its transaction id. Raises as
        ``append`` does."""
        tx = self.fresh()
        self.append(Pending(tx, Barrier(aggregates, command, keyed, self._view.next), settled))
        self._barriers.update(dict.fromkeys(aggregates, tx))
        return tx

    def has_barrier(self, aggregate: str) -> bool:
        """Whether a barrier for it is under way."""
        return aggregate in self._barriers

    def take(self, tx: str) -> Pending | None:
        """The record, if it is one of these: it is read back, or waited for no more."""
        pending = self.pending.pop(tx, None)
        if pending is not None and isinstance(pending.record, Barrier):
            for name in pending.record.aggregates:
                if self._barriers.get(name) == tx:
                    del self._barriers[name]
        return pending

    def check_lateness(self) -> None:
        oldest = next((each for each in self.pending.values() if isinstance(each.record, Commit)), None)
        self.late = oldest is not None and time.monotonic() - oldest.started_at > LATE_S

    def end(self) -> None:
        """The scope has failed: nothing is appended any more."""
        self._ended = True

    def release(self) -> None:
        """Nobody reads back what is still pending: what becomes of it, others know."""
        for tx in list(self.pending):
            if (pending := self.take(tx)) is not None:
                self.proofs.over(tx, read_back=False)
                pending.settled(pending, None, -1)
