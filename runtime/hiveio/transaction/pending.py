"""A record in flight: this instance has appended it and has not read it back."""

import time
from collections.abc import Callable

from hiveio.errors import Problem
from hiveio.transaction.entry import Entry
from hiveio.transaction.record import Barrier, Commit

Settled = Callable[["Pending", bool | None, int], None]
Refused = Callable[[Problem], None]


class Pending:
    """A record that this instance appends at ``started_at`` and has not read back.

    ``entries`` are its aggregates as they are after it. ``id_absent_from`` is an offset at which its command id was not
    on record. ``settled`` is called once, with its verdict and its offset; the verdict is None where nobody can say.
    ``refused`` is called before that if Kafka has certainly refused the record.
    """

    __slots__ = ("entries", "id_absent_from", "record", "refused", "settled", "size", "started_at", "tx")

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
        self.size = 0
        for entry in self.entries.values():
            self.size += entry.size

    @property
    def target(self) -> str:
        """The aggregate to which its command went; "" for a barrier."""
        return self.record.command.target if isinstance(self.record, Commit) else ""

    def encoded(self, size: int) -> None:
        """Count the size of its encoded value. A barrier, which changes no aggregate, counts as nothing."""
        if self.entries:
            self.size += size
