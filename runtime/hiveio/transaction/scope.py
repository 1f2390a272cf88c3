"""Following one scope: verdicts by the rule, snapshots by ``replay``, the cache moved forward.

Records that nobody has applied yet are judged and folded here, and the cache is moved behind. Where another instance
has applied past ``next``, its verdicts are taken from the bits on record, and what it touched is read again when it is
needed. Start and loss of the cache are one path: ``_synchronise``.
"""

import asyncio
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from hiveio.actor import Contract
from hiveio.errors import Corrupt, HiveError, Unavailable
from hiveio.kafka.tail import LogReader, LogRecord, Tail
from hiveio.transaction import faults
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache, Entry, Watermark, known
from hiveio.transaction.record import Barrier, Commit, Format, Record
from hiveio.transaction.rule import Known, Window, accepts
from hiveio.transaction.view import View

log = logging.getLogger("hiveio.scope")

CHUNK = 1_000  # most records judged at once, and
TURN_S = 0.02  # the time after which the loop turns between
UNAPPLIED = 4_000  # records judged and not applied, beyond which judging waits
PROGRESS = 100_000  # records between two lines of progress while catching up
PAUSE_S = (0.05, 2.0)  # first and longest pause while a backend is away

Settled = Callable[["Pending", bool | None, int], None]


class Pending:
    """A record that this instance appended and has not read back. ``entries`` is what it makes of its aggregates,
    ``begun`` an offset from which on its command id is known not to be on record."""

    __slots__ = ("begun", "entries", "owner", "record", "settled", "text", "tx")

    def __init__(
        self, tx: str, record: Commit | Barrier, entries: dict[str, Entry], begun: int, settled: Settled, owner: Any
    ) -> None:
        self.tx, self.record, self.entries, self.begun = tx, record, entries, begun
        self.settled, self.owner = settled, owner
        self.text = record.command.text if record.command else ""


class Judged(NamedTuple):
    """A record that was judged here and is not applied to the cache."""

    offset: int
    tx: str
    time: int
    verdict: bool
    touched: tuple[str, ...]
    id: tuple[str, Known] | None


class Scope:
    """One partition of the transaction log, as this instance sees it."""

    def __init__(
        self,
        partition: int,
        topic: str,
        topic_id: str,
        cache: Cache,
        tail: Tail,
        reader: LogReader,
        contracts: Mapping[str, Contract],
        window: Window,
    ) -> None:
        self.partition, self.topic, self._topic_id = partition, topic, topic_id
        self.where = f"{topic}/{partition}"
        self._cache, self._tail, self._reader, self._window = cache, tail, reader, window
        self.view = View(contracts, self.where)
        self.failed = ""
        self.late = False  # a record of ours is out for longer than a request may take: no new work is taken
        self.published = 0  # offset up to which events are published, as far as this instance knows
        self.pending: dict[str, Pending] = {}
        self.stands = Watermark(0, 0, topic_id, "", "")  # the latest watermark of the cache that we were told
        self.on_barrier: Callable[[Barrier, int], None] = lambda record, offset: None
        self._seen = b""  # the text of ``stands``, where a reply has brought it
        self._lost = True  # the cache is not known to match the log
        self._following = False
        self._goal: int | None = None  # where it is caught up
        self._inbox: deque[LogRecord] = deque()
        self._unapplied: deque[Judged] = deque()
        self._when_applied: deque[tuple[int, Callable[[], None]]] = deque()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._news, self._work, self._applied = asyncio.Event(), asyncio.Event(), asyncio.Event()
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
        return not self.failed and not self._lost and self._goal is not None and self.view.next >= self._goal

    @property
    def state(self) -> str:
        """Why it is not ready, or nothing."""
        if self.failed or self.ready:
            return self.failed
        return f"{self.where} is being folded: at offset {self.view.next} of {self._goal or '?'}"

    def saw(self, stands: bytes) -> bool:
        """Take note of the watermark that came with a reply. False if the cache does not match the log any more."""
        if stands == self._seen:  # as most replies of a batch
            return not self._lost
        watermark = Watermark.parse(stands)
        mine = self.stands
        if watermark is None or watermark[2:4] != mine[2:4] or watermark.offset < mine.offset:
            if not self._lost:
                log.warning("the cache of %s fell back from %s to %s", self.where, mine.text, stands.decode())
                self._lost = True
                self._news.set()
                self._work.set()
            return False
        if watermark.offset > mine.offset:
            self.stands = watermark
            self._moved()
        self._seen = stands
        return True

    def fail(self, reason: str) -> None:
        """Stop here, loudly: nothing goes past what cannot be judged."""
        if not self.failed:
            self.failed = reason
            log.critical("the scope stops: %s", reason)

    # -- what others wait for

    def remembered(self, text: str, cached: bytes | None) -> Known | None:
        """A command id on record, by the view or else the cache, if it is in the window now."""
        found = self.view.knows(text) or known(cached)
        holds = found is not None and self._window.holds(found, self.view.next, self.view.time)
        return found if holds else None

    def remembers(self, since: Known, now: Known) -> bool:
        """Whether a command id that came on record after ``since`` is in the window at ``now``."""
        return self._window.holds(since, now.offset, now.time)

    async def reach(self, offset: int) -> None:
        """Wait until every record below ``offset`` is judged."""
        if self.view.next < offset:
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
        mine = self.view.verdicts(first, end)
        if mine is not None:
            return mine
        stands, verdicts = await self._cache.verdicts(self.partition, first, end)
        self.saw(stands)
        return verdicts

    # -- following

    async def _follow(self) -> None:
        pause, longest = PAUSE_S
        while not self.failed:
            try:
                if self._lost:
                    await self._synchronise()
                if not self._inbox:
                    self._news.clear()
                    await self._news.wait()
                    continue
                await self._judge()
                pause = PAUSE_S[0]
            except Unavailable as error:
                log.warning("%s waits: %s", self.where, error)
                await asyncio.sleep(pause * (1 + random.random()))
                pause = min(2 * pause, longest)
            except Corrupt as error:
                self.fail(str(error))
            except Exception as error:
                log.exception("a fault while following %s", self.where)
                self.fail(f"{self.where}/{self.view.next}: {type(error).__name__}: {error}")

    def _arrived(self, batch: list[LogRecord]) -> None:
        self._inbox.extend(batch)
        self._news.set()

    def _broken(self, reason: str) -> None:
        self.fail(f"{self.where} cannot be read from offset {self.view.next}: {reason}")

    async def _synchronise(self) -> None:
        """Find the watermark, check it against the log, go on from there; if it does not match, begin anew."""
        while True:
            found, _ = await self._cache.begin(self.partition)
            watermark = Watermark.parse(found)
            end = await self._reader.end(self.partition)
            if watermark is not None and await self._matches(watermark, end):
                break
            if watermark is not None:
                text = "the cache of %s says %s, which is not in the log (end %s): it is folded anew"
                log.error(text, self.where, watermark.text, end)
            fresh = Watermark(0, 0, self._topic_id, os.urandom(5).hex(), "")
            moved, _ = await self._cache.reset(self.partition, found, fresh)
            if moved:
                if watermark is not None:
                    await self._cache.forget(self.partition, watermark.generation)
                watermark = fresh
                break  # otherwise another instance was faster: look again
        self.stands, self._seen, self._goal = watermark, b"", end
        if not self._following or watermark.offset < self.view.next:
            self._refold(watermark)
        self._lost = False
        self._moved()
        self._work.set()
        self._progressed(self.view.next)

    async def _matches(self, watermark: Watermark, end: int) -> bool:
        if watermark.topic != self._topic_id or watermark.offset > end:
            return False
        if watermark.offset == 0:
            return True
        last = await self._reader.read(self.partition, watermark.offset - 1)
        return last is not None and last.key == watermark.transaction

    def _refold(self, watermark: Watermark) -> None:
        log.info("%s: from offset %s to %s", self.where, watermark.offset, self._goal)
        self.view.begin(watermark.offset, watermark.time)
        self._unapplied.clear()
        self._tail.taken(len(self._inbox))
        self._inbox.clear()
        self._tail.follow(self.partition, watermark.offset, self._arrived, self._broken)
        self._following = True

    async def _judge(self) -> None:
        batch = [self._inbox.popleft() for _ in range(min(CHUNK, len(self._inbox)))]
        before = self.view.next
        index = 0
        try:
            while index < len(batch) and not self._lost:
                rest = batch[index:] if index else batch
                offset, following = rest[0].offset, self.view.next
                if offset < following:
                    index += 1
                elif offset > following:
                    raise Corrupt(f"{self.where}: the records from {following} to {offset - 1} are gone")
                elif self.stands.offset > following:
                    index += await self._skip(rest)
                elif len(self._unapplied) >= UNAPPLIED:
                    await self._apply_all(UNAPPLIED // 2)
                elif await self._load(rest):
                    index += self._fold(rest)
                    break
        finally:  # what was not judged is judged next time
            self._inbox.extendleft(reversed(batch[index:]))
            self._tail.taken(index)
        self._progressed(before)
        await asyncio.sleep(0)

    def _progressed(self, before: int) -> None:
        following, goal = self.view.next, self._goal or 0
        if before < goal and following // PROGRESS > before // PROGRESS:
            log.info("%s: %s of %s records", self.where, following, goal)
        if before < goal <= following:
            log.info("%s: caught up at offset %s", self.where, following)
        if self._waiting:
            for offset, future in self._waiting:
                if following >= offset and not future.done():
                    future.set_result(None)
            self._waiting = [wait for wait in self._waiting if not wait[1].done()]

    def _decoded(self, message: LogRecord) -> Record:
        pending = self.pending.get(message.key)
        if pending is not None:
            return pending.record
        try:
            return records.decode(message.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Corrupt(f"{self.where}/{message.offset} is no transaction record: {error}") from None

    # -- judging what nobody has applied yet

    async def _load(self, batch: Sequence[LogRecord]) -> bool:
        """Bring what the verdicts of the batch need into the view. False if the cache has moved meanwhile."""
        view = self.view
        names: dict[str, None] = {}
        ids: dict[str, None] = {}
        for message in batch:
            record = self._decoded(message)
            if isinstance(record, Format):
                continue
            reads = [read.aggregate for read in record.reads] if isinstance(record, Commit) else ()
            names.update((name, None) for name in (*records.touched(record), *reads) if view.entry(name) is None)
            pending = self.pending.get(message.key)
            if record.command is None or (pending is not None and pending.begun >= view.since) or not view.since:
                continue
            text = record.command.text
            covered = not record.keyed and message.offset - view.since > self._window.records
            if not covered and text not in view.recent:
                ids[text] = None
        if not names and not ids:
            return True
        await self._apply_all(0)
        if self._lost:
            return False
        wanted = [*((name, "") for name in names), *(("", text) for text in ids)]
        replies = await asyncio.gather(*[self._cache.begin(self.partition, *pair) for pair in wanted])
        for stands, _ in replies:
            if not self.saw(stands) or self.stands.offset != view.next:
                return False
        for (name, text), (_, (entry, id)) in zip(wanted, replies, strict=True):
            if name:
                view.keep(name, view.parsed(name, view.next, entry))
            elif (found := known(id)) is not None:
                view.recent[text] = found
        return True

    def _fold(self, batch: Sequence[LogRecord]) -> int:
        """Judge the batch and fold what is accepted. The number of records judged."""
        count, end = 0, time.monotonic() + TURN_S
        for message in batch:
            if message.offset != self.view.next or time.monotonic() > end:
                break
            self._judge_one(message)
            count += 1
        self._work.set()
        self._trim()
        return count

    def _judge_one(self, message: LogRecord) -> None:
        view, offset, tx = self.view, message.offset, message.key
        pending = self.pending.pop(tx, None)
        record = pending.record if pending is not None else self._decoded(message)
        now = view.time = max(view.time, message.time)
        verdict = True
        touched: tuple[str, ...] = ()
        id: tuple[str, Known] | None = None
        if not isinstance(record, Format):
            text = pending.text if pending is not None else record.command.text if record.command else ""
            found = view.recent.get(text) if text else None
            on_record = found is not None and self._window.holds(found, offset, now)
            verdict = accepts(record, view.head, on_record)
            if verdict:
                touched = records.touched(record)
                if text and not on_record:
                    view.recent[text] = noted = Known(offset, now, record.keyed)
                    id = (text, noted)
                if pending is not None and isinstance(record, Commit):
                    for name, entry in pending.entries.items():
                        entry.at = offset + 1
                        view.keep(name, entry)
                elif isinstance(record, Commit):
                    for write in record.writes:
                        view.replay(offset, write.aggregate, tx, write.events)
                else:
                    for name in record.aggregates:
                        view.replay(offset, name, tx, ())
        view.next = offset + 1
        view.judged("1" if verdict else "0")
        self._unapplied.append(Judged(offset, tx, now, verdict, touched, id))
        self._told(record, pending, verdict, offset)

    def _told(self, record: Record, pending: Pending | None, verdict: bool | None, offset: int) -> None:
        if pending is not None:
            if faults.armed and isinstance(record, Commit):
                faults.hit("judged", record.command.target)
            pending.settled(pending, verdict, offset)
        if isinstance(record, Barrier):
            self.on_barrier(record, offset)

    # -- what others have applied

    async def _skip(self, batch: Sequence[LogRecord]) -> int:
        end = min(self.stands.offset, batch[-1].offset + 1)
        stands, verdicts = await self._cache.verdicts(self.partition, self.view.next, end)
        if not self.saw(stands):
            return 0
        count = 0
        for message, verdict in zip(batch, verdicts, strict=False):
            if message.offset != self.view.next:
                break
            self._skip_one(message, verdict)
            count += 1
        self._moved()
        self._trim()
        return count

    def _skip_one(self, message: LogRecord, verdict: str) -> None:
        view, offset = self.view, message.offset
        record = self._decoded(message)
        pending = self.pending.pop(message.key, None)
        view.time = max(view.time, message.time)
        view.next = offset + 1
        view.judged(verdict)
        if not isinstance(record, Format) and verdict != "0":
            for name in records.touched(record):
                view.mark_touched(name, offset)
            if isinstance(record, Commit) and verdict == "1":
                view.recent[record.command.text] = Known(offset, view.time, record.keyed)
            else:
                view.since = view.next  # whether an id was recorded here is told by the cache
        self._told(record, pending, None if verdict == "?" else verdict == "1", offset)

    # -- moving the cache

    async def _apply(self) -> None:
        pause, longest = PAUSE_S
        while not self.failed:
            if self._lost or not self._unapplied:
                self._applied.set()
                self._work.clear()
                await self._work.wait()
                continue
            try:
                await self._apply_once()
                pause = PAUSE_S[0]
            except HiveError as error:
                log.warning("the cache of %s is not moved: %s", self.where, error)
                await asyncio.sleep(pause * (1 + random.random()))
                pause = min(2 * pause, longest)
            except Exception as error:
                log.exception("a fault while moving the cache of %s", self.where)
                self.fail(f"{self.where}: {type(error).__name__}: {error}")

    async def _apply_once(self) -> None:
        base = self.stands
        if self._unapplied[0].offset != base.offset:
            raise AssertionError(
                f"{self.where}: judged from {self._unapplied[0].offset}, the cache is at {base.offset}"
            )
        judged = tuple(self._unapplied)
        last = judged[-1]
        to = Watermark(last.offset + 1, last.time, self._topic_id, base.generation, last.tx)
        names = dict.fromkeys([name for j in judged for name in j.touched])
        entries = [(name, self.view.entries[name].text) for name in names]
        ids = [(j.id[0], j.id[1].text) for j in judged if j.id is not None]
        verdicts = "".join(["1" if j.verdict else "0" for j in judged])
        if faults.armed:
            for name in names:
                faults.hit("applying", name)
        stands = await self._cache.apply(self.partition, base, to, verdicts, entries, ids, self._window, self.published)
        self.saw(stands)
        if faults.armed:
            for name in names:
                faults.hit("applied", name)

    def _moved(self) -> None:
        """The cache stands further on: what is applied needs no applying, and those who wait for it are told."""
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

    def _trim(self) -> None:
        self.view.trim(lambda: {name for judged in self._unapplied for name in judged.touched}, self.stands.offset)
