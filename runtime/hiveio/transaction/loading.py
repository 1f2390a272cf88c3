"""Loading from the cache what the verdicts of records need and the view does not have."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from hiveio.kafka.tail import LogRecord
from hiveio.transaction.applier import Applier
from hiveio.transaction.cache import Cache
from hiveio.transaction.mirror import Mirror
from hiveio.transaction.pending import Pending
from hiveio.transaction.record import Record, Transactional, named
from hiveio.transaction.rule import IdWindow
from hiveio.transaction.view import View

LOADED = 500  # the most aggregates and command ids that are asked for at once


class Loader:
    """The loads for one scope."""

    def __init__(
        self,
        partition: int,
        view: View,
        mirror: Mirror,
        cache: Cache,
        applier: Applier,
        window: IdWindow,
        pending: Mapping[str, Pending],
        decoded: Callable[[LogRecord], Record],
    ) -> None:
        self._partition, self._view, self._mirror, self._cache = partition, view, mirror, cache
        self._applier, self._window, self._pending, self._decoded = applier, window, pending, decoded

    async def load(self, batch: Sequence[LogRecord]) -> list[Record] | None:
        """Load what the verdicts of the first records of the batch need into the view, and return these records
        decoded: as many as one load takes. None if the cache has moved beyond them meanwhile."""
        view, mirror, pending = self._view, self._mirror, self._pending
        entry, recent, ids_from = view.entries.get, view.recent, view.ids_from
        complete = view.complete  # then an aggregate without an entry has never existed
        found: list[Record] = []
        missing: dict[tuple[str, str], None] = {}  # aggregates and command ids that the view does not have
        upto: list[int] = []  # how many of these each record needs, with those before it
        for message in batch:
            record = self._decoded(message)
            found.append(record)
            for name in named(record):
                known = entry(name)
                if not complete if known is None else known.head is None:
                    missing[name, ""] = None
            if ids_from and isinstance(record, Transactional) and record.command is not None:
                mine = pending.get(message.key)
                covered = not record.keyed and message.offset - ids_from > self._window.records
                absent = mine is not None and mine.id_absent_from >= ids_from
                if not covered and not absent and (text := record.command.text) not in recent:
                    missing["", text] = None
            upto.append(len(missing))
            if len(missing) >= LOADED:
                break
        if not missing:
            return found
        # An entry that the view does not have is not waiting to be applied, so the cache has its latest state. The same
        # holds for ids, as long as the view has those that wait to be applied.
        if ids_from > mirror.watermark.offset:
            await self._applier.wait(0)
        pairs, loaded = list(missing), 0
        while loaded < upto[0] or not loaded:
            asked = mirror.watermark.offset
            replies = await self._cache.load(self._partition, pairs[loaded:])
            if not mirror.observe_watermark(replies[0].watermark, asked) or mirror.watermark.offset > view.next:
                return None
            for (name, text), reply in zip(pairs[loaded:], replies, strict=False):
                if name:
                    view.keep(name, view.decoded(name, reply.entry, view.next))
                elif (id := reply.id) is not None:
                    recent[text] = id
            loaded += len(replies)
        return found[: bisect_right(upto, loaded)]
