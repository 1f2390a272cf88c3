"""Following one scope: verdicts by the rule, snapshots by ``replay``, the cache moved forward.

An instance holds a *view* of the scope: entries that are exact at ``next``, the offset up to which it has judged every
record. The view is a pure function of the log, so it is right whatever the cache does. Entries it lacks come from the
cache at the same watermark. Where another instance has applied past ``next``, its verdicts are taken from the bits on
record, and the aggregates it touched are marked for reading again.
"""

import asyncio
import logging
import os
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from hiveio.actor import Contract
from hiveio.envelope import encode_json
from hiveio.errors import Corrupt, HiveError, Unavailable
from hiveio.kafka.tail import LogReader, LogRecord, Tail
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache, Entry, Watermark, known
from hiveio.transaction.record import Barrier, Commit, Format, Record
from hiveio.transaction.rule import Known, Window, accepts

log = logging.getLogger("hiveio.scope")

CHUNK = 1_000  # records judged at once; the loop turns between
UNAPPLIED = 4_000  # records judged and not applied, beyond which judging waits
VIEW = 50_000  # aggregates kept in memory
RECENT = 50_000  # command ids kept in memory
VERDICTS = 100_000  # kept in memory, for the publisher
PROGRESS = 100_000  # records between two lines of progress while catching up

Settled = Callable[["Pending", bool | None, int], None]


class Pending:
    """A record that this instance appended and has not read back. ``entries`` is what it makes of its aggregates."""

    __slots__ = ("begun", "entries", "owner", "record", "settled", "text", "tx")

    def __init__(
        self,
        tx: str,
        record: Commit | Barrier,
        entries: dict[str, Entry],
        begun: int,
        settled: Settled,
        owner: Any = None,
    ) -> None:
        self.tx, self.record, self.entries, self.begun, self.settled, self.owner = (
            tx,
            record,
            entries,
            begun,
            settled,
            owner,
        )
        self.text = record.command.text if record.command else ""


class Judged(NamedTuple):
    offset: int
    tx: str
    time: int
    verdict: bool
    touched: tuple[str, ...]
    id: tuple[str, Known] | None


class Scope:
    """One partition of the transaction log, as this instance sees it."""

    def __init__(
        self, partition: int, topic: str, topic_id: str, cache: Cache, tail: Tail, reader: LogReader,
        contracts: Mapping[str, Contract], window: Window,
    ) -> None:  # fmt: skip
        self.partition, self.topic, self._topic_id = partition, topic, topic_id
        self._cache, self._tail, self._reader = cache, tail, reader
        self._contracts, self._window = contracts, window
        self.next = 0
        self.failed = ""
        self.published = 0  # offset up to which events are published, as far as this instance knows
        self.pending: dict[str, Pending] = {}
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self.recent: OrderedDict[str, Known] = OrderedDict()
        self.since = 0  # ``recent`` has every id recorded in [since, next)
        self.stands = Watermark(0, 0, topic_id, "", "")  # the latest watermark of the cache that we were told
        self.time = 0
        self.on_barrier: Callable[[Barrier], None] = lambda record: None
        self.on_state: Callable[[], None] = lambda: None
        self._verdicts, self._verdicts_from = bytearray(), 0
        self._following = False
        self._goal: int | None = None  # where it is caught up
        self._inbox: deque[LogRecord] = deque()
        self._unapplied: deque[Judged] = deque()
        self._when_applied: deque[tuple[int, Callable[[], None]]] = deque()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._news, self._work, self._applied = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._lost = True  # the cache is not known to match the log
        self._tasks: list[asyncio.Task[None]] = []

    # -- life

    def start(self) -> None:
        self._tasks = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._apply())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def ready(self) -> bool:
        """Caught up with the end that the log had when it began, or fell back."""
        return not self.failed and not self._lost and self._goal is not None and self.next >= self._goal

    @property
    def state(self) -> str:
        if self.failed:
            return self.failed
        if not self.ready:
            return f"{self.topic}/{self.partition} is at offset {self.next} of {self._goal or '?'}"
        return ""

    def saw(self, stands: bytes) -> bool:
        """Take note of the watermark that came with a reply. False if the cache does not match the log any more."""
        watermark = Watermark.parse(stands)
        if (
            watermark is None
            or watermark.generation != self.stands.generation
            or watermark.topic != self._topic_id
            or watermark.offset < self.stands.offset
        ):
            if not self._lost:
                log.warning("the cache of %s/%s fell back: %r", self.topic, self.partition, stands)
                self._lost = True
                self._news.set()
                self._work.set()
            return False
        if watermark.offset > self.stands.offset:
            self.stands = watermark
            self._done_applying()
        return True

    # -- what commands ask

    def entry(self, name: str) -> Entry | None:
        """The aggregate as it stands at ``next``; None if the view does not know."""
        entry = self.entries.get(name)
        return entry if entry is not None and entry.head is not None else None

    def reconcile(self, name: str, at: int, text: bytes | None) -> Entry | None:
        """The newer of what the cache gave at watermark ``at`` and what the view has; None if neither is current."""
        mine = self.entries.get(name)
        if mine is not None and (mine.at > at or (at <= self.next and mine.head is not None)):
            return mine if mine.head is not None else None
        entry = self._parsed(name, at, text)
        self._keep(name, entry)
        return entry

    def knows(self, text: str) -> Known | None:
        """The command id, if it was recorded since ``since``."""
        return self.recent.get(text)

    async def reach(self, offset: int) -> None:
        """Wait until every record below ``offset`` is judged."""
        if self.next < offset:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((offset, future))
            await future

    async def current(self) -> None:
        """Wait until everything acknowledged before this call is judged: the read index. Raises Unavailable."""
        await self.reach(await self._reader.end(self.partition))

    def when_applied(self, offset: int, done: Callable[[], None]) -> None:
        """Call back once the cache stands beyond this offset."""
        if self.stands.offset > offset:
            done()
        else:
            self._when_applied.append((offset, done))

    async def verdicts(self, first: int, end: int) -> str:
        """For each offset judged '1' accepted or '0' void; '?' where neither this instance nor the cache knows."""
        start = self._verdicts_from
        if first >= start:
            return self._verdicts[first - start : end - start].decode()
        stands, verdicts = await self._cache.verdicts(self.partition, first, end)
        self.saw(stands)
        return verdicts

    # -- following

    def _arrived(self, batch: list[LogRecord]) -> None:
        self._inbox.extend(batch)
        self._news.set()

    def _broken(self, reason: str) -> None:
        self.fail(f"{self.topic}/{self.partition} cannot be read from offset {self.next}: {reason}")

    def fail(self, reason: str) -> None:
        if not self.failed:
            self.failed = reason
            log.critical("the scope stops: %s", reason)
            self.on_state()

    async def _follow(self) -> None:
        pause = 0.05
        while not self.failed:
            try:
                if self._lost:
                    await self._synchronise()
                if not self._inbox:
                    self._news.clear()
                    await self._news.wait()
                    continue
                await self._judge()
                pause = 0.05
            except Unavailable as error:
                log.warning("%s/%s waits: %s", self.topic, self.partition, error)
                await asyncio.sleep(pause * (1 + random.random()))
                pause = min(2 * pause, 2.0)
            except asyncio.CancelledError:
                raise
            except Corrupt as error:
                self.fail(str(error))
            except Exception as error:
                log.exception("a fault while following %s/%s", self.topic, self.partition)
                self.fail(f"{self.topic}/{self.partition}/{self.next}: {type(error).__name__}: {error}")

    async def _synchronise(self) -> None:
        """Start and loss are the same: find the watermark, check it against the log, go on from there."""
        while True:
            found, _ = await self._cache.begin(self.partition)
            watermark = Watermark.parse(found)
            end = await self._reader.end(self.partition)
            if watermark is None or not await self._matches(watermark, end):
                if watermark is not None:
                    log.error(
                        "the cache of %s/%s says %s, which is not in the log (end %s): it is folded anew",
                        self.topic, self.partition, watermark.text, end,
                    )  # fmt: skip
                fresh = Watermark(0, 0, self._topic_id, os.urandom(5).hex(), "")
                moved, _ = await self._cache.reset(self.partition, found, fresh)
                if not moved:
                    continue  # another instance was faster
                if watermark is not None:
                    await self._cache.forget(self.partition, watermark.generation)
                watermark = fresh
            break
        self.stands, self._goal = watermark, end
        if not self._following or watermark.offset < self.next:
            self._refold(watermark)
        self._lost = False
        self._done_applying()
        self._work.set()
        self._progressed(0)

    async def _matches(self, watermark: Watermark, end: int) -> bool:
        if watermark.topic != self._topic_id or watermark.offset > end:
            return False
        if watermark.offset == 0:
            return True
        last = await self._reader.read(self.partition, watermark.offset - 1)
        return last is not None and last.key == watermark.transaction

    def _refold(self, watermark: Watermark) -> None:
        log.info("%s/%s: from offset %s to %s", self.topic, self.partition, watermark.offset, self._goal)
        self.next, self.since, self.time = watermark.offset, watermark.offset, watermark.time
        self._verdicts, self._verdicts_from = bytearray(), watermark.offset
        self.entries.clear()
        self.recent.clear()
        self._unapplied.clear()
        self._tail.taken(len(self._inbox))
        self._inbox.clear()
        self._tail.follow(self.partition, watermark.offset, self._arrived, self._broken)
        self._following = True

    async def _judge(self) -> None:
        batch = [self._inbox.popleft() for _ in range(min(CHUNK, len(self._inbox)))]
        before = self.next
        index = 0
        try:
            while index < len(batch) and not self._lost:
                rest = batch[index:] if index else batch
                if rest[0].offset < self.next:
                    index += 1
                elif rest[0].offset > self.next:
                    raise Corrupt(
                        f"{self.topic}/{self.partition}: the records from {self.next} to {rest[0].offset - 1} are gone"
                    )
                elif self.stands.offset > self.next:
                    index += await self._skip(rest)
                elif len(self._unapplied) >= UNAPPLIED:
                    await self._apply_all(UNAPPLIED // 2)
                elif await self._load(rest):
                    index += self._fold(rest)
        finally:  # what was not judged is judged next time
            self._inbox.extendleft(reversed(batch[index:]))
            self._tail.taken(index)
        self._progressed(before)
        await asyncio.sleep(0)

    def _progressed(self, before: int) -> None:
        if self._goal and before < self._goal and self.next // PROGRESS > before // PROGRESS:
            log.info("%s/%s: %s of %s records", self.topic, self.partition, self.next, self._goal)
        if self._waiting:
            still = []
            for offset, future in self._waiting:
                if self.next < offset:
                    still.append((offset, future))
                elif not future.done():
                    future.set_result(None)
            self._waiting = still
        if self.ready and self._goal and before < self._goal <= self.next:
            log.info("%s/%s: caught up at offset %s", self.topic, self.partition, self.next)
        self.on_state()

    def _decoded(self, message: LogRecord) -> Record:
        pending = self.pending.get(message.key)
        if pending is not None:
            return pending.record
        try:
            return records.decode(message.value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Corrupt(f"{self.topic}/{self.partition}/{message.offset} is no transaction record: {error}") from None

    # -- judging what nobody has applied yet

    async def _load(self, batch: Sequence[LogRecord]) -> bool:
        """Bring what the verdicts of the batch need into the view. False if the cache has moved meanwhile."""
        names: dict[str, None] = {}
        ids: dict[str, None] = {}
        for message in batch:
            pending = self.pending.get(message.key)
            record = self._decoded(message)
            if isinstance(record, Format):
                continue
            for name in records.touched(record):
                if self.entry(name) is None:
                    names[name] = None
            if isinstance(record, Commit):
                for read in record.reads:
                    if self.entry(read.aggregate) is None:
                        names[read.aggregate] = None
            if record.command is None or (pending is not None and pending.begun >= self.since):
                continue
            text = record.command.text
            covered = not record.keyed and message.offset - self.since > self._window.count
            if text not in self.recent and not covered and self.since > 0:
                ids[text] = None
        if not names and not ids:
            return True
        await self._apply_all(0)
        if self._lost:
            return False
        wanted = [*((name, "") for name in names), *(("", text) for text in ids)]
        replies = await asyncio.gather(*[self._cache.begin(self.partition, *pair) for pair in wanted])
        if any([not self.saw(stands) or self.stands.offset != self.next for stands, _ in replies]):
            return False
        for (name, text), (_, (entry, id)) in zip(wanted, replies, strict=True):
            if name:
                self._keep(name, self._parsed(name, self.next, entry))
            elif (found := known(id)) is not None:
                self.recent[text] = found
        return True

    def _fold(self, batch: Sequence[LogRecord]) -> int:
        """Judge the batch and fold what is accepted. The number of records judged."""
        for count, message in enumerate(batch):
            if message.offset != self.next:
                return count
            self._judge_one(message)
        self._work.set()
        self._trim()
        return len(batch)

    def _judge_one(self, message: LogRecord) -> None:
        offset, tx = message.offset, message.key
        pending = self.pending.pop(tx, None)
        record = pending.record if pending is not None else self._decoded(message)
        time = self.time = max(self.time, message.time)
        if isinstance(record, Format):
            verdict, touched, id = True, (), None
        else:
            text = pending.text if pending is not None else record.command.text if record.command else ""
            found = self.recent.get(text) if text else None
            is_known = found is not None and self._window.holds(found, offset, time)
            verdict = accepts(record, self._head, is_known)
            touched = records.touched(record) if verdict else ()
            id = (text, Known(offset, time, record.keyed)) if verdict and text and not is_known else None
            if verdict:
                if pending is not None and isinstance(record, Commit):
                    for name, entry in pending.entries.items():
                        entry.at = offset + 1
                        self._keep(name, entry)
                else:
                    self._replay(offset, tx, record)
                if id is not None:
                    self.recent[text] = id[1]
        self.next = offset + 1
        self._verdicts.append(49 if verdict else 48)
        self._unapplied.append(Judged(offset, tx, time, verdict, touched, id))
        if pending is not None:
            pending.settled(pending, verdict, offset)
        if isinstance(record, Barrier):
            self.on_barrier(record)

    def _head(self, name: str) -> str:
        entry = self.entries[name]
        assert entry.head is not None, name
        return entry.head

    def _replay(self, offset: int, tx: str, record: Record) -> None:
        if isinstance(record, Barrier):
            for name in record.aggregates:
                old = self.entries[name]
                self._keep(name, Entry(old.version, tx, old.state, old.snapshot, offset + 1))
        elif isinstance(record, Commit):
            for write in record.writes:
                old = self.entries[write.aggregate]
                try:
                    state, snapshot = self.folded(write.aggregate, old, write.events)
                except Exception as error:
                    raise Corrupt(
                        f"{self.topic}/{self.partition}/{offset}: {write.aggregate} cannot be folded: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                self._keep(write.aggregate, Entry(old.version + len(write.events), tx, state, snapshot, offset + 1))

    def folded(self, name: str, entry: Entry, events: Sequence[bytes | msgspec.Raw]) -> tuple[Any, bytes]:
        """The state and the snapshot of an aggregate after these events, exactly as every reader of the log folds them."""
        if not events:
            return entry.state, entry.snapshot
        contract = self._contracts.get(name.partition("/")[0])
        if contract is None:
            raise HiveError(f"no actor of this service is named {name.partition('/')[0]!r}")
        state, replay = entry.state, contract.replay
        for event in events:
            message, _ = contract.event_codec.decode(event)  # type: ignore[arg-type]
            if replay is not None:
                state = replay(state, message)
        # Decoded again, so that what a field was given by mistake is found before it reaches the log.
        snapshot = encode_json(state)
        return contract.model_decoder.decode(snapshot), snapshot

    # -- what others have applied

    async def _skip(self, batch: Sequence[LogRecord]) -> int:
        end = min(self.stands.offset, batch[-1].offset + 1)
        stands, verdicts = await self._cache.verdicts(self.partition, self.next, end)
        if not self.saw(stands):
            return 0
        count = 0
        for message, verdict in zip(batch, verdicts, strict=False):
            if message.offset != self.next:
                break
            self._skip_one(message, verdict)
            count += 1
        while self._unapplied and self._unapplied[0].offset < self.stands.offset:
            self._unapplied.popleft()
        self._trim()
        return count

    def _skip_one(self, message: LogRecord, verdict: str) -> None:
        offset = message.offset
        record = self._decoded(message)
        pending = self.pending.pop(message.key, None)
        self.time = max(self.time, message.time)
        self.next = offset + 1
        self._verdicts.append(ord(verdict))
        if not isinstance(record, Format) and verdict != "0":
            mine = pending.entries if pending is not None and verdict == "1" else {}
            for name in records.touched(record):
                entry = mine.get(name) or Entry(head=None)
                held = self.entries.get(name)
                if held is None or held.at <= offset:
                    entry.at = offset + 1
                    self._keep(name, entry)
            if isinstance(record, Barrier) and record.command is not None:
                self.since = self.next  # whether it was on record before is told by the cache
            elif record.command is not None and verdict == "1":
                text = record.command.text
                found = self.recent.get(text)
                if found is None or not self._window.holds(found, offset, self.time):
                    self.recent[text] = Known(offset, self.time, record.keyed)
        if verdict == "?":
            self.since = self.next  # an id may have been recorded here
        if pending is not None:
            pending.settled(pending, None if verdict == "?" else verdict == "1", offset)
        if isinstance(record, Barrier):
            self.on_barrier(record)

    # -- moving the cache

    async def _apply(self) -> None:
        pause = 0.05
        while not self.failed:
            if self._lost or not self._unapplied:
                self._applied.set()
                self._work.clear()
                await self._work.wait()
                continue
            self._applied.clear()
            try:
                await self._apply_once()
                pause = 0.05
            except HiveError as error:
                log.warning("the cache of %s/%s is not moved: %s", self.topic, self.partition, error)
                await asyncio.sleep(pause * (1 + random.random()))
                pause = min(2 * pause, 2.0)

    async def _apply_once(self) -> None:
        base = self.stands
        while self._unapplied and self._unapplied[0].offset < base.offset:
            self._unapplied.popleft()
        if not self._unapplied:
            return
        if self._unapplied[0].offset != base.offset:
            self._lost = True  # a record is missing between the cache and the view
            self._news.set()
            return
        judged = tuple(self._unapplied)
        last = judged[-1]
        to = Watermark(last.offset + 1, last.time, self._topic_id, base.generation, last.tx)
        names = dict.fromkeys(name for j in judged for name in j.touched)
        entries = [(name, self.entries[name].text) for name in names]
        ids = [(j.id[0], j.id[1].text) for j in judged if j.id is not None]
        verdicts = "".join(["1" if j.verdict else "0" for j in judged])
        moved, stands = await self._cache.apply(
            self.partition, base, to, verdicts, entries, ids, self._window, self.published
        )
        self.saw(stands)

    def _done_applying(self) -> None:
        offset = self.stands.offset
        while self._unapplied and self._unapplied[0].offset < offset:
            self._unapplied.popleft()
        while self._when_applied and self._when_applied[0][0] < offset:
            self._when_applied.popleft()[1]()
        self._applied.set()

    async def _apply_all(self, down_to: int) -> None:
        """Wait until no more than this many records are judged and not applied."""
        while len(self._unapplied) > down_to and not self._lost:
            self._applied.clear()
            self._work.set()
            await self._applied.wait()

    # -- the view

    def _keep(self, name: str, entry: Entry) -> None:
        self.entries[name] = entry
        self.entries.move_to_end(name)

    def _parsed(self, name: str, at: int, text: bytes | None) -> Entry:
        if not text:
            return Entry(at=at)
        version, head, snapshot = text.split(b" ", 2)
        contract = self._contracts.get(name.partition("/")[0])
        if contract is None:
            raise Corrupt(f"{self.topic}/{self.partition}: no actor of this service folds {name}")
        state = contract.model_decoder.decode(snapshot) if snapshot else None
        return Entry(int(version), head.decode(), state, snapshot, at)

    def _trim(self) -> None:
        if len(self.entries) > VIEW:
            unapplied = {name for j in self._unapplied for name in j.touched}
            for name in list(self.entries)[: len(self.entries) - VIEW]:
                # What the cache does not have yet, and what only the view knows to be stale there, stays.
                if name not in unapplied and self.entries[name].at <= self.stands.offset:
                    del self.entries[name]
        if len(self._verdicts) > 2 * VERDICTS:
            del self._verdicts[:VERDICTS]
            self._verdicts_from += VERDICTS
        while len(self.recent) > RECENT:
            _, oldest = self.recent.popitem(last=False)
            self.since = max(self.since, oldest.offset + 1)
