"""One scope as an instance follows it: the rule gives verdicts, ``replay`` gives snapshots, and the cache is moved on.

Records that nobody has applied yet are judged and folded here, and then applied to the cache. Where another instance
has applied records beyond ``next``, its verdicts are read from the cache, and the aggregates that it has touched are
read again when they are needed. The start and the loss of the cache take one path: ``_synchronise``, from where the
Anchor says.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from hiveio.actor import Contract
from hiveio.errors import Corrupt, Unavailable
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.tail import LogRecord, OnError, Tail
from hiveio.transaction import faults, metrics, rebuild
from hiveio.transaction.anchor import Anchor
from hiveio.transaction.applier import PAUSE_S, Applier
from hiveio.transaction.backlog import Backlog
from hiveio.transaction.bounds import Bounds
from hiveio.transaction.cache import Cache
from hiveio.transaction.contention import Contention
from hiveio.transaction.entry import CacheReply, Entry, Watermark
from hiveio.transaction.journal import STOPPED, Journal
from hiveio.transaction.loading import Loader
from hiveio.transaction.mirror import Mirror
from hiveio.transaction.pace import Pace
from hiveio.transaction.pending import Pending
from hiveio.transaction.placement import Placement
from hiveio.transaction.predecessors import Predecessors
from hiveio.transaction.proof import Consistency
from hiveio.transaction.quarantine import Quarantine
from hiveio.transaction.rebuild import Rebuild, Rebuilds
from hiveio.transaction.record import FIRST_FORMAT, Barrier, Commit, Foreign, Record, decode, too_old
from hiveio.transaction.review import Review
from hiveio.transaction.rule import Effects, IdWindow, Writer
from hiveio.transaction.view import View
from hiveio.transaction.waiting import Waiting

logger = logging.getLogger("hiveio.scope")

CHUNK = 1_000  # the most records that are judged at once
TURN_S = 0.02  # after which judging lets the event loop turn
PROGRESS = 100_000  # records between two lines of progress while catching up

OnBarrier = Callable[[Barrier, int, bool], None]
OnJudged = Callable[[LogRecord, Record, Effects], None]


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
        window: IdWindow,
        placement: Placement,
        ids: Iterator[str],
        rebuilds: Rebuilds,
        bounds: Bounds | None = None,
        needs_format: int = FIRST_FORMAT,
    ) -> None:
        """``ids`` gives the ids for the records of this instance: see ``fresh_ids``. ``rebuilds`` are those of all its
        scopes. ``needs_format`` is the oldest format of the log with which this service works."""
        self.partition, self.topic, self.where = partition, topic, f"{topic}/{partition}"
        self._cache, self._tail, self.reader, self._window = cache, tail, reader, window
        self.quarantine = Quarantine(topic, partition, self.fail)
        self.bounds = bounds or Bounds()
        self.view = View(contracts, self.quarantine, window, self.bounds)
        self._placement, self._needs_format = placement, needs_format
        self.pace = Pace(tail, partition)
        self.journal = Journal(partition, self.view, ids, self.pace.need)
        self.contention, self.predecessors = Contention(), Predecessors(self.view)
        self.mirror = mirror = Mirror(self.where, topic_id)
        self._news = asyncio.Event()
        mirror.subscribe(on_loss=self._news.set)
        self.applier = applier = Applier(partition, self.view, mirror, cache, window, self.bounds.unapplied, self.fail)
        self._loader = Loader(partition, self.view, mirror, cache, applier, window, self.journal.pending, self.decoded)
        self._review = Review(partition, self.view, mirror, cache, applier, self.reconcile, lambda: self.ready)
        self._anchor = Anchor(cache, reader, partition, self.where, topic_id)
        self._rebuild, self._following = Rebuild(partition, cache, rebuilds), False
        self.failed = ""
        self.stopped = False  # it has failed, and takes no more records
        self._on_barrier: OnBarrier = lambda barrier, offset, verdict: None
        self._on_judged: list[OnJudged] = []
        self.backlog, self._lags = Backlog(), metrics.LagGauges(partition)
        self._foreign = metrics.ForeignRecords(self.where, "no record of hiveio, so it is void for every reader")
        self._goal: int | None = None  # the offset at which it has caught up
        self._inbox, self.waiting = deque[LogRecord](), Waiting(self.pace.need)
        self.opened_at = self.used_at = asyncio.get_running_loop().time()  # used: by a command or a read
        self._live = False  # what is judged was appended just now, and is no history
        self._judging = False  # meanwhile the view keeps what was loaded for it
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.ensure_future(run()) for run in (self._follow, self.applier.run, self._review.run)]

    def notify_barriers(self, on_barrier: OnBarrier) -> None:
        """Call ``on_barrier`` with each barrier that has moved heads and with each one of this instance, with its
        offset and its verdict."""
        self._on_barrier = on_barrier

    def notify_judged(self, on_judged: OnJudged) -> None:
        """Call ``on_judged`` with each record that is judged from now on and its effects, until ``stop_judged``."""
        self._on_judged.append(on_judged)

    def stop_judged(self, on_judged: OnJudged) -> None:
        if on_judged in self._on_judged:
            self._on_judged.remove(on_judged)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tail.unfollow(self.partition)
        self._rebuild.end()
        self._lags.clear()
        self.waiting.end(self.unavailable)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def ready(self) -> bool:
        """Whether it has caught up with the end that the log had when it started to follow it."""
        return not self.failed and not self.mirror.lost and self._goal is not None and self.view.next >= self._goal

    @property
    def opening(self) -> bool:
        """Whether it has not been ready yet, and may still be."""
        return self.waiting.opening

    @property
    def folded_elsewhere(self) -> bool:
        """Whether it waits for another instance that folds it."""
        return self._rebuild.waits_at is not None

    @property
    def applied(self) -> bool:
        """Whether everything that this instance has judged is applied."""
        return not self.applier.judged and self.mirror.watermark.offset == self.view.next

    @property
    def state(self) -> str:
        """Why it is not ready, or ""."""
        if self.failed or self.ready:
            return self.failed
        at, by = self._rebuild.waits_at, " by another instance"
        at, by = (self.view.next, "") if at is None else (at, by)
        return f"{self.where} is being folded{by}: at offset {at} of {self._goal or '?'}"

    def unavailable(self) -> Unavailable:
        """What clients get while it is not ready. Only operators are given the reason."""
        if self.failed:
            return Unavailable(STOPPED)
        return Unavailable("This part of the service is catching up with its log. Try again in a moment.")

    def show_lags(self) -> None:
        """Set the gauges that say how far this instance is behind."""
        following, backlog = self.view.next, self.backlog
        behind, unapplied = (self._goal or 0) - following, following - self.mirror.watermark.offset
        self._lags.set(behind, unapplied, backlog.records(following), backlog.age_s, len(self.quarantine.entries))

    def fail(self, reason: str) -> None:
        """Stop this scope for good and log why: nothing is judged beyond a record that cannot be judged."""
        if not self.failed:
            self.failed = reason
            logger.critical("the scope stops: %s", reason)
            self.journal.end()
            self.waiting.end_opening()
            self._rebuild.end()
            self._news.set()
            self.applier.end()

    def reconcile(self, name: str, reply: CacheReply) -> Entry | None:
        """The newer entry of an aggregate, of the view or of the cache. None if neither is current."""
        entry = self.view.reconcile(name, reply)
        if not self._judging:
            self._trim()
        return entry

    def uncontended(self, names: Iterable[str]) -> bool:
        """Whether a command on these aggregates is tried without locks: nobody else has written them lately. While the
        cache does not get on, the locks say so before anything is appended."""
        return not self.applier.behind and self.contention.isdisjoint(names)

    def known(self, name: str) -> Entry | None:
        """The aggregate as it is at the end of what is judged, if this instance knows it."""
        entry = self.view.known(name) if self.ready else None
        return None if entry is None or entry.fault else entry

    def _trim(self) -> None:
        self.view.trim(self.applier.touched, self.mirror.watermark.offset)

    async def reach(self, offset: int) -> None:
        """Wait until every record below ``offset`` is judged. Raises Unavailable if the scope has failed."""
        if self.view.next < offset:
            if self.failed:
                raise self.unavailable()
            await self.waiting.reach(offset)

    async def caught_up(self, consistency: Consistency) -> None:
        """Wait until every record that was acknowledged before this call is judged. Raises Unavailable."""
        if consistency == "linearizable":
            await self.journal.proofs.proved()
        else:
            await self.reach(await self.reader.end(self.partition))

    async def verdicts(self, first: int, end: int) -> str:
        """For each judged offset '1' (accepted) or '0' (void); '?' where neither this instance nor the cache knows."""
        if (mine := self.view.verdicts(first, end)) is not None:
            return mine
        watermark, verdicts = await self._cache.verdicts(self.partition, first, end)
        self.mirror.observe_watermark(watermark)
        return verdicts

    # -- following

    async def _follow(self) -> None:
        pause, longest = PAUSE_S
        while not self.failed:
            try:
                if self.mirror.lost:
                    await self._synchronise()
                    continue
                if not self._inbox:
                    self._news.clear()
                    await self._news.wait()
                    continue
                await self._judge()
                pause = PAUSE_S[0]
            except Unavailable as error:
                logger.warning("%s waits: %s", self.where, error)
                await asyncio.sleep(pause * (1 + random.random()))
                pause = min(2 * pause, longest)
            except Corrupt as error:
                self.fail(str(error))
            except Exception as error:
                logger.exception("following %s failed with an unexpected error", self.where)
                self.fail(f"{self.where}/{self.view.next}: {type(error).__name__}: {error}")
        # Records that nobody takes any more must not delay the other scopes, which the same tail reads.
        self._tail.unfollow(self.partition)
        self._inbox.clear()
        self.journal.release()
        self.waiting.end(self.unavailable)
        self.stopped = True

    def _arrived(self, batch: list[LogRecord]) -> None:
        self._inbox.extend(batch)
        self._news.set()

    async def _synchronise(self) -> None:
        """Find the watermark, check it against the log and go on from there; if it does not match, fold from the
        start."""
        while True:
            watermark, writers, self._goal = await self._anchor.find()
            needed = self.view.next if self._following else self._goal
            if needed - watermark.offset <= rebuild.FAR or self._rebuild.folds:
                break
            await self._rebuild.turn(needed - rebuild.FAR)
            if self.failed:
                return
        self.mirror.anchor(watermark)
        if not self._following or watermark.offset < self.view.next:
            self._refold(watermark, writers)
        self.applier.moved()
        self.applier.wake()
        await self._review.learn()
        self._progressed(self.view.next)

    def _refold(self, watermark: Watermark, writers: Mapping[str, Writer]) -> None:
        logger.info("%s is folded from offset %s to %s", self.where, watermark.offset, self._goal)
        self.view.begin(watermark.offset, watermark.log_state(self._window, writers.items()))
        self.applier.forget()
        self._inbox.clear()
        broken = f"{self.where} cannot be read from offset"
        on_error: OnError = lambda reason: self.fail(f"{broken} {self.view.next}: {reason}")  # noqa: E731
        self._tail.follow(self.partition, watermark.offset, self._arrived, on_error)
        self._following = True

    async def _judge(self) -> None:
        batch = [self._inbox.popleft() for _ in range(min(CHUNK, len(self._inbox)))]
        before, index = self.view.next, 0
        self._judging, self._live = True, self.ready
        try:
            while index < len(batch) and not (self.mirror.lost or self.failed):
                rest = batch[index:] if index else batch
                offset, following = rest[0].offset, self.view.next
                if offset < following:
                    index += 1
                elif offset > following:
                    raise Corrupt(f"{self.where}: the records from {following} to {offset - 1} are missing")
                elif self.mirror.watermark.offset > following:
                    index += await self._skip(rest)
                elif self.applier.full:
                    await self.applier.wait(0.5)
                elif (found := await self._loader.load(rest)) is not None:
                    index += await self._fold(rest, found)
        finally:  # the next call judges the rest
            self._judging = False
            self._inbox.extendleft(reversed(batch[index:]))
            self._tail.consumed(self.partition, index)
        self._progressed(before)
        if self._rebuild.folds:
            await self._rebuild.progressed(self.mirror.watermark.offset)
        await asyncio.sleep(0)

    def _progressed(self, before: int) -> None:
        following, goal, format = self.view.next, self._goal or 0, self.view.state.format
        if format < self._needs_format and self.ready:
            self.fail(too_old(self.where, format, self._needs_format))
        if before < goal and following // PROGRESS > before // PROGRESS:
            logger.info("%s: %s of %s records are folded", self.where, following, goal)
        if before < goal <= following:
            logger.info("%s: caught up at offset %s", self.where, following)
        if following >= goal:
            self._rebuild.over()
            if self.opening and self.ready:
                self.waiting.end_opening()
        self.waiting.reached(following)
        self.predecessors.moved()

    def decoded(self, message: LogRecord) -> Record:
        """Raises Corrupt."""
        if (pending := self.journal.pending) and (mine := pending.get(message.key)) is not None:
            return mine.record
        try:
            record = decode(message.value)
        except Corrupt as error:
            raise Corrupt(f"{self.where}/{message.offset}: {error}") from None
        if isinstance(record, Foreign):
            self._foreign.met(message.offset)
        self._placement.check(self.partition, message.offset, record, self.view.entries)
        return record

    # -- judging records that nobody has applied yet

    async def _fold(self, batch: Sequence[LogRecord], found: Sequence[Record]) -> int:
        """Judge the batch, as far as nobody else has applied it, and let the event loop turn now and then. Returns how
        many records were judged."""
        view, applier, mirror, journal = self.view, self.applier, self.mirror, self.journal
        clock, end, count = time.monotonic, time.monotonic() + TURN_S, 0
        for message, record in zip(batch, found, strict=False):
            if clock() > end:
                applier.wake()
                await asyncio.sleep(0)
                if mirror.lost or mirror.watermark.offset > view.next:
                    break
                end = clock() + TURN_S
            pending = journal.take(message.key) if journal.pending else None
            effects = view.judge(message, record, pending.entries if pending is not None else None)
            applier.add(message, effects, view.entries, own=pending is not None)
            self._settle(message, record, pending, effects)
            count += 1
            if self.failed or applier.large:  # it fails where too many events cannot be folded
                break
        applier.wake()
        self._trim()
        return count

    def _settle(self, message: LogRecord, record: Record, pending: Pending | None, effects: Effects) -> None:
        verdict = effects.verdict
        if self._live and (pending is None or verdict is False):
            self.contention.met(record)
        if pending is not None:
            if faults.armed and isinstance(record, Commit):
                faults.hit("judged", record.command.target)
            pending.settled(pending, verdict, message.offset)
        if (proofs := self.journal.proofs).under_way:
            proofs.over(message.key, read_back=True)
        if isinstance(record, Barrier) and (verdict or pending is not None):
            self._on_barrier(record, message.offset, bool(verdict))
        if self._on_judged:
            for on_judged in tuple(self._on_judged):  # a call may end itself
                on_judged(message, record, effects)

    # -- passing over records that others have applied

    async def _skip(self, batch: Sequence[LogRecord]) -> int:
        first, end = self.view.next, min(self.mirror.watermark.offset, batch[-1].offset + 1)
        watermark, verdicts = await self._cache.verdicts(self.partition, first, end)
        if not self.mirror.observe_watermark(watermark):
            return 0
        for message, verdict in zip(batch, verdicts, strict=False):
            if message.offset != self.view.next:
                break
            record = self.decoded(message)
            pending = self.journal.take(message.key)
            effects = self.view.pass_over(message, record, None if verdict == "?" else verdict == "1")
            self._settle(message, record, pending, effects)
        self.applier.moved()
        self._trim()
        return self.view.next - first
