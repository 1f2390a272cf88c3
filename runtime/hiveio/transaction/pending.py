"""A record on its way: appended by this instance, and not read back."""

import time
from collections.abc import Callable

from hiveio.errors import Problem
from hiveio.transaction.cache import Entry
from hiveio.transaction.record import Barrier, Commit

Settled = Callable[["Pending", bool | None, int], None]
Refused = Callable[[Problem], None]


class Pending:
    """A record that this instance appends at ``started_at`` and has not read back.

    ``entries`` is what it makes of its aggregates, ``id_absent_from`` an offset at which its command id is known not to
    be on record. ``settled`` is called with its verdict and its offset, once: accepted, void, or None where nobody
    can say; ``refused`` before that where Kafka has refused it for certain.
    """

    __slots__ = ("entries", "id_absent_from", "record", "refused", "settled", "size", "started_at", "text", "tx")

    def __init__(
        self,
        tx: str,
        record: Commit | Barrier,
        settled: Settled,
        *,
        entries: dict[str, Entry] | None = None,
        id_absent_from: int = -1,
        refused: Refused = lambda problem: None,
    ) -> None:
        self.tx, self.record, self.entries, self.id_absent_from = tx, record, entries or {}, id_absent_from
        self.settled, self.refused, self.started_at = settled, refused, time.monotonic()
        self.size = sum([entry.size for entry in self.entries.values()])
        self.text = record.command.text if record.command else ""

    @property
    def target(self) -> str:
        """The aggregate whose command it is; "" for a barrier, which is nobody's."""
        return self.record.command.target if isinstance(self.record, Commit) else ""

    def encoded(self, size: int) -> None:
        """Its value has this size. A barrier, which makes nothing of its aggregates, weighs nothing."""
        if self.entries:
            self.size += size
