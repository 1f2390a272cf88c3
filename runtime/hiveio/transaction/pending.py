"""A record on its way: appended by this instance, and not read back."""

import time
from collections.abc import Callable
from typing import Any

from hiveio.transaction.cache import Entry
from hiveio.transaction.record import Barrier, Commit

Settled = Callable[["Pending", bool | None, int], None]


class Pending:
    """A record that this instance appends ``since_s`` and has not read back. ``entries`` is what it makes of its
    aggregates, ``id_absent_from`` an offset at which its command id is known not to be on record."""

    __slots__ = ("entries", "id_absent_from", "owner", "record", "settled", "since_s", "size", "text", "tx")

    def __init__(
        self,
        tx: str,
        record: Commit | Barrier,
        entries: dict[str, Entry],
        id_absent_from: int,
        settled: Settled,
        owner: Any,
    ) -> None:
        self.tx, self.record, self.entries, self.id_absent_from = tx, record, entries, id_absent_from
        self.settled, self.owner, self.since_s = settled, owner, time.monotonic()
        self.size = sum([entry.size for entry in entries.values()])
        self.text = record.command.text if record.command else ""
