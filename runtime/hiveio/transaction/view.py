"""What an instance knows of a scope without asking the cache: entries that are exact at ``next``, recent command ids
and recent verdicts. The fold of the log, one record after the other, keeps them.

The view is a pure function of the log, so it is right whatever the cache does. It is bounded: what it does not have
comes from the cache, at a watermark, and ``reconcile`` takes the newer of the two.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from hiveio.actor import Contract
from hiveio.envelope import encode_json
from hiveio.errors import Problem
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.bounds import ENTRY_BYTES, Bounds
from hiveio.transaction.entry import CacheReply, Entry
from hiveio.transaction.quarantine import Quarantine, reason
from hiveio.transaction.record import Record
from hiveio.transaction.rule import Effects, IdRecord, IdWindow, LogState, ProcessEffect, adopt, step

AGGREGATES = 50_000  # that are kept in memory
RECENT = 50_000  # command ids that are kept in memory
VERDICTS = 100_000  # that are kept in memory for the publisher
ACCEPTED, VOID, UNKNOWN = b"10?"  # verdicts
LOOKED_AT = 1_000  # entries that one call of ``trim`` looks at
_NEVER = Entry()  # an aggregate that has never existed


class View:
    """The entries, command ids and verdicts of one scope. Every record below the offset ``next`` is judged."""

    def __init__(
        self, contracts: Mapping[str, Contract], quarantine: Quarantine, window: IdWindow, bounds: Bounds | None = None
    ) -> None:
        self._contracts, self._bounds = contracts, bounds or Bounds()
        self.quarantine = quarantine
        self.complete = False  # an aggregate without an entry has never existed
        self.next = 0
        self.state = LogState(window)
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self._snapshots = 0  # the bytes of what is folded in them
        self.recent: OrderedDict[str, IdRecord] = OrderedDict()
        self.ids_from = 0  # ``recent`` has every id recorded in [ids_from, next)
        self._verdicts, self._verdicts_from = bytearray(), 0

    @property
    def time(self) -> int:
        """The log's clock, ms."""
        return self.state.time

    def begin(self, offset: int, state: LogState) -> None:
        """Forget everything and go on from this offset, at which the log has this state."""
        self.next = self.ids_from = self._verdicts_from = offset
        self.state = state
        self.complete = offset == 0
        self._verdicts = bytearray()
        self.entries.clear()
        self._snapshots = 0
        self.recent.clear()
        self.quarantine.clear()

    @property
    def size(self) -> int:
        """About the bytes of memory that the entries take, without their states."""
        return self._snapshots + ENTRY_BYTES * len(self.entries)

    def entry(self, name: str) -> Entry | None:
        """The aggregate as it is at ``next``, or None if the view does not know."""
        entry = self.entries.get(name)
        return entry if entry is not None and entry.head is not None else None

    def known(self, name: str) -> Entry | None:
        """The same, and an entry without anything if the aggregate has never existed, as far as the view knows. That
        one is not kept: a command that is refused leaves nothing."""
        entry = self.entries.get(name)
        if entry is None:
            return Entry() if self.complete else None
        return entry if entry.head is not None else None

    def head(self, name: str) -> str:
        entry = self.entries.get(name)
        if entry is None:
            assert self.complete, name
            return ""
        assert entry.head is not None, name
        return entry.head

    def id_record(self, text: str) -> IdRecord | None:
        """The record of a command id, if it was recorded at ``ids_from`` or later."""
        return self.recent.get(text)

    def remembered(self, text: str, cached: IdRecord | None) -> IdRecord | None:
        """The record of a command id here, or else in the cache, if it is in the window now."""
        found = self.id_record(text) or cached
        return found if found is not None and self.state.window.holds(found, self.next, self.time) else None

    def remembers(self, started_at: IdRecord, now: IdRecord) -> bool:
        """Whether a command id that came on record after ``started_at`` is in the window at ``now``."""
        return self.state.window.holds(started_at, now.offset, now.time)

    def keep(self, name: str, entry: Entry) -> None:
        entries = self.entries
        if (before := entries.get(name)) is not None:
            self._snapshots -= len(before.snapshot) + len(before.process)
            entries.move_to_end(name)
        self._snapshots += len(entry.snapshot) + len(entry.process)
        entries[name] = entry
        if entry.fault or self.quarantine.reported:
            self.quarantine.update(name, entry)

    def mark_touched(self, name: str, offset: int) -> None:
        """Others applied a record that has written the aggregate, so only the cache has its new entry."""
        entry = self.entries.get(name)
        if entry is None or entry.at <= offset:
            self.keep(name, Entry(head=None, at=offset + 1))

    def reconcile(self, name: str, reply: CacheReply) -> Entry | None:
        """The newer of the entry in the cache and the entry in the view, or None if neither is current.

        An entry that this instance could not fold is taken from the cache, where others may have healed it.
        """
        assert reply.watermark is not None
        mine, at = self.entries.get(name), reply.watermark.offset
        if mine is not None and (mine.at > at or (at <= self.next and mine.head is not None and not mine.fault)):
            return mine if mine.head is not None else None
        entry = self.decoded(name, reply.entry, at)
        self.keep(name, entry)
        return entry

    def decoded(self, name: str, entry: Entry | None, at: int) -> Entry:
        """An entry of the cache at offset ``at`` with its state decoded. Events that others could not fold are
        folded."""
        if entry is None:
            return Entry(at=at)
        entry.at = at
        contract = self._contract(name)
        if contract is None:
            return entry
        quarantined = self.quarantine.entries.get(name)
        if quarantined is not None and entry.unfolded and quarantined.offset == entry.unfolded_from:
            entry.fault = quarantined.reason  # the same snapshot, and the same event after it
            return entry
        try:
            entry.state = contract.model_decoder.decode(entry.snapshot) if entry.snapshot else None
            if entry.unfolded:
                entry.state, entry.snapshot = self.folded(name, entry, entry.events)
                entry.unfolded = b""
                self.quarantine.healed.add(name)
        except BaseException as error:  # an actor may raise whatever it likes
            entry.state, entry.fault = None, reason(error)
            entry.unfolded_from = entry.unfolded_from or at
        return entry

    def folded(self, name: str, entry: Entry, events: Sequence[msgspec.Raw]) -> tuple[Any, bytes]:
        """The state and the snapshot after these events, exactly as every reader of the log folds them. Raises what
        ``replay`` raises."""
        if not events:
            return entry.state, entry.snapshot
        return self._replayed(self._contracts[name.partition("/")[0]], name, entry, events)

    @staticmethod
    def _replayed(contract: Contract, name: str, entry: Entry, events: Sequence[msgspec.Raw]) -> tuple[Any, bytes]:
        state = contract.own_state(entry.state, entry.snapshot)
        replay, decode = contract.replay, contract.event_codec.decode
        assert replay is not None
        try:
            for event in events:
                state = replay(state, decode(event)[0])
        except Problem as problem:
            # It is no fault of the client: the events came from perform, and replay never refuses.
            raise TypeError(f"{name}: an event cannot be folded: {problem}") from problem
        # The snapshot is decoded again, so that a field with a wrong type is found before it reaches the log.
        snapshot = encode_json(state)
        return contract.model_decoder.decode(snapshot), snapshot

    def _contract(self, name: str) -> Contract | None:
        actor = name.partition("/")[0]
        contract = self._contracts.get(actor)
        if contract is None:
            self.quarantine.add_unknown_actor(actor)
        return contract

    def judge(self, message: LogRecord, record: Record, results: Mapping[str, Entry] | None = None) -> Effects:
        """Judge the record at ``next``, and fold it if it is accepted. The view must have all that the verdict needs.

        ``results`` are the entries of its aggregates after the record, where this instance has made them already.
        """
        offset, transaction = message.offset, message.key
        effects = step(self.state, offset, transaction, message.time, record, self)
        if effects.id is not None:
            text, id = effects.id
            self.recent[text] = id
        if effects.heads and results:
            for name, entry in results.items():
                entry.at = offset + 1
                # Only the verdict says at which time of the log the deadlines were scheduled on which it rests.
                self._advance(name, entry, self._before(name).process, effects.process)
                self.keep(name, entry)
        else:
            for name, events in effects.heads.items():
                self.replay(offset, name, transaction, events, effects.process)
        self.next = offset + 1
        self._verdicts.append(ACCEPTED if effects.verdict else VOID)
        return effects

    def pass_over(self, message: LogRecord, record: Record, verdict: bool | None) -> Effects:
        """Pass over the record at ``next``, which others have judged and applied. ``verdict`` is None where it is not
        on record any more."""
        offset = message.offset
        effects = adopt(self.state, offset, message.key, message.time, record, verdict)
        for name in effects.heads:
            self.mark_touched(name, offset)
        self.next = offset + 1
        if effects.id is not None:
            text, id = effects.id
            self.recent[text] = id
        elif effects.id_unknown:
            self.ids_from = self.next  # the cache says whether an id was recorded here
        self._verdicts.append(UNKNOWN if verdict is None else ACCEPTED if verdict else VOID)
        return effects

    def replay(
        self, offset: int, name: str, tx: str, events: Sequence[msgspec.Raw], process: ProcessEffect | None = None
    ) -> None:
        """Fold the events that an accepted record has for one aggregate; those that cannot be folded are kept as they
        are, next to the snapshot."""
        old = self._before(name)
        new = Entry(
            old.version + len(events),
            tx,
            old.state,
            old.snapshot,
            offset + 1,
            old.unfolded,
            old.unfolded_from,
            old.fault,
            old.process,
        )
        if events and (contract := self._contract(name)) is not None:
            if not new.fault:
                try:
                    new.state, new.snapshot = self._replayed(contract, name, old, events)
                except BaseException as error:  # an actor may raise whatever it likes
                    new.state, new.unfolded_from, new.fault = None, offset, reason(error)
            if new.fault:
                new.unfolded = b",".join([*([old.unfolded] if old.unfolded else []), *map(bytes, events)])
        if process is not None:
            self._advance(name, new, old.process, process)
        self.keep(name, new)

    def _before(self, name: str) -> Entry:
        """The aggregate before the record that is judged."""
        entry = self.entries.get(name)
        return entry if entry is not None else _NEVER  # otherwise it would have been loaded

    @staticmethod
    def _advance(name: str, entry: Entry, before: bytes, process: ProcessEffect | None) -> None:
        """What is kept of the process of an aggregate after an accepted record."""
        entry.process = before if process is None else process.after(name, before)
        if process is not None and process.ends(name):
            entry.end()

    def verdicts(self, first: int, end: int) -> str | None:
        """For each offset '1' (accepted), '0' (void) or '?' (unknown); None if they are no longer kept."""
        start = self._verdicts_from
        return self._verdicts[first - start : end - start].decode() if first >= start else None

    def trim(self, unapplied: Callable[[], Collection[str]], applied: int) -> None:
        """Keep the bounds. Entries that the cache does not have yet stay, and those that say that its entry is
        stale."""
        over, size, most = len(self.entries) - AGGREGATES, self.size, self._bounds.view
        if over > 0 or size > most:
            self.complete = False
            needed, gone = unapplied(), list[str]()
            for looked, (name, entry) in enumerate(self.entries.items()):
                if looked >= over and (size <= most or looked >= LOOKED_AT):
                    break
                if name not in needed and entry.at <= applied:
                    gone.append(name)
                    size -= entry.folded_size + ENTRY_BYTES
            for name in gone:
                self._snapshots -= self.entries.pop(name).folded_size
        while len(self.recent) > min(RECENT, self._bounds.ids):
            _, oldest = self.recent.popitem(last=False)
            self.ids_from = max(self.ids_from, oldest.offset + 1)
        if len(self._verdicts) > 2 * VERDICTS:
            del self._verdicts[:VERDICTS]
            self._verdicts_from += VERDICTS
