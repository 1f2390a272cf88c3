"""The transaction log and its cache in memory, behind the real engine, scopes and rule.

Each class here replaces the class from which it derives, so mypy finds differences. Only the clients of Kafka and Redis
are replaced. All decisions are made by the code that runs in production, and the contract tests run over both.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.kafka.appender import Appender
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.tail import LogRecord, OnError, OnRecords, Tail
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.engine import Engine
from hiveio.transaction.entry import CacheReply, Watermark, WatermarkReply
from hiveio.transaction.journal import fresh_ids
from hiveio.transaction.lock import TURNS, Locked, Redlock
from hiveio.transaction.placement import Placement
from hiveio.transaction.process import NEVER, unmarked
from hiveio.transaction.rebuild import Rebuilds
from hiveio.transaction.record import FORMAT, Format, Record
from hiveio.transaction.rule import HASH, IdRecord, IdWindow, ReferenceFold, Writer
from hiveio.transaction.scope import Scope
from hiveio.transaction.scopes import Scopes

T = TypeVar("T")
MEMORY = "memory"  # the topic id
FORGET = 1_000  # command ids: with fewer of them none is forgotten
LOCK_S = 3600.0  # no instance dies here, so a lock lasts until it is released


class MemoryLog:
    """The records of a log, by partition. It is plain data, so it outlives the event loops that read and write it."""

    def __init__(self, settings: Settings, clock: Callable[[], int] = lambda: int(time.time() * 1000)) -> None:
        """``clock`` gives the timestamps of records, in milliseconds."""
        s = self.settings = settings
        self._clock = clock
        pinned = Format(FORMAT, s.partitions, HASH, s.idempotency_count, s.idempotency_time_s * 1000)
        self.partitions: list[list[LogRecord]] = [[] for _ in range(s.partitions)]
        self.folds = [ReferenceFold() for _ in range(s.partitions)]
        self.readers: list[MemoryTail] = []
        for partition in range(s.partitions):
            self.append(partition, f"format-{partition}", records.encode(pinned))

    def append(self, partition: int, key: str, value: bytes) -> None:
        written = self.partitions[partition]
        message = LogRecord(len(written), key, value, self._clock())
        written.append(message)
        self.folds[partition].append(key, records.decode(value), message.time)
        for tail in self.readers:
            tail.wake()

    def judged(self, partition: int, first: int = 0) -> list[tuple[int, Record, bool]]:
        """The offset, the record and the verdict (by the rule alone) of the records from ``first`` on."""
        verdicts = self.folds[partition].verdicts
        return [(m.offset, records.decode(m.value), verdicts[m.offset]) for m in self.partitions[partition][first:]]


class MemoryTail(Tail):
    def __init__(self, log: MemoryLog) -> None:
        self._log, self._loop = log, asyncio.get_running_loop()
        self._at: dict[int, tuple[int, OnRecords]] = {}
        self._woken = self._holds = False
        log.readers.append(self)

    def start(self) -> None:
        self.wake()

    async def stop(self) -> None:
        self._log.readers.remove(self)

    def alive(self) -> bool:
        return True

    def follow(self, partition: int, offset: int, on_records: OnRecords, on_error: OnError) -> None:
        self._at[partition] = (offset, on_records)
        self.wake()

    def unfollow(self, partition: int) -> None:
        self._at.pop(partition, None)

    def consumed(self, partition: int, count: int) -> None:
        pass

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._pass_on)

    def pause(self, partition: int, pause_s: float) -> None:
        pass

    def resume(self, partition: int) -> None:
        pass

    def hold(self) -> None:
        """Pass no records on, until ``release`` is called: the instance does not read back what it appends."""
        self._holds = True

    def release(self) -> None:
        self._holds = False
        self.wake()

    def _pass_on(self) -> None:
        self._woken = False
        if self._holds:
            return
        for partition, (offset, on_records) in list(self._at.items()):
            if found := self._log.partitions[partition][offset:]:
                self._at[partition] = (offset + len(found), on_records)
                on_records(found)


class MemoryReader(LogReader):
    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def end(self, partition: int) -> int:
        return len(self._log.partitions[partition])

    async def read(self, partition: int, offset: int, *, end: bool = False) -> LogRecord | None:
        found = self._log.partitions[partition]
        return found[-1] if end and found else found[offset] if 0 <= offset < len(found) else None

    def close(self) -> None:
        pass


class MemoryAppender(Appender):
    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def append(self, partition: int, key: str, value: bytes, *, in_flight: int = 0) -> None:
        self._log.append(partition, key, value)

    def read_back(self, partition: int, in_flight: int) -> None:
        pass

    async def stop(self, timeout_s: float) -> None:
        pass


class _Generation:
    """One generation of the cache of a scope."""

    def __init__(self, watermark: Watermark) -> None:
        self.watermark = watermark
        self.entries: dict[str, bytes] = {}
        self.unfolded: set[str] = set()
        self.ids: dict[str, str] = {}
        self.forget_at = FORGET  # with this number of ids, those that have left the window are forgotten
        self.writers: dict[str, str] = {}
        self.verdicts: dict[int, str] = {}
        self.processes: dict[str, int] = {}


class MemoryCache(Cache):
    """A cache that does what the scripts in ``transaction/lua`` do: only ``apply`` makes changes that count, and it
    compares the watermark first.

    Calls run one after the other in a later turn of the event loop and are answered in that order, as on a connection.
    """

    def __init__(self, settings: Settings, meaning: str) -> None:
        self._topic, self.topic_id, self._meaning = settings.log_topic, MEMORY, meaning
        self.scopes: dict[int, _Generation] = {}
        self.locks: dict[tuple[str, str], str] = {}
        self.questions: dict[tuple[int, str], str] = {}
        self.folds: dict[int, tuple[str, float]] = {}  # who folds a scope, and until when
        self.waiting: dict[tuple[str, str], set[str]] = {}
        self.tips: dict[tuple[str, str], str] = {}

    def away(self, partition: int | None = None) -> str:
        return ""

    def forget_all(self) -> None:
        """Forget everything, as after FLUSHALL."""
        self.scopes.clear()
        for kept in (self.locks, self.folds, self.waiting, self.tips):
            kept.clear()

    def _call(self, script: Callable[[], T]) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            if not future.done():
                future.set_result(script())

        loop.call_soon(run)
        return future

    def _watermark(self, partition: int) -> Watermark | None:
        scope = self.scopes.get(partition)
        return scope.watermark if scope else None

    def _reply(self, partition: int, aggregate: str, command: str) -> CacheReply:
        scope = self.scopes.get(partition)
        if scope is None:
            return CacheReply(None)
        id = scope.ids.get(command)
        return CacheReply(scope.watermark, scope.entries.get(aggregate), id.encode() if id else None)

    def read(self, partition: int, aggregate: str = "", command: str = "") -> "asyncio.Future[CacheReply]":
        return self._call(lambda: self._reply(partition, aggregate, command))

    async def load(self, partition: int, pairs: Sequence[tuple[str, str]]) -> list[CacheReply]:
        return await self._call(lambda: [self._reply(partition, *pair) for pair in pairs])

    async def watermark(self, partition: int) -> WatermarkReply:
        def script() -> WatermarkReply:
            scope = self.scopes.get(partition)
            if scope is None:
                return WatermarkReply(b"", None, {})
            writers = {name: Writer.parse(text) for name, text in scope.writers.items()}
            return WatermarkReply(scope.watermark.text.encode(), scope.watermark, writers)

        return await self._call(script)

    async def prepare(
        self, partition: int, token: str, ttl_ms: int, heads: Sequence[tuple[str, str]]
    ) -> tuple[Watermark | None, bool]:
        def script() -> tuple[Watermark | None, bool]:
            scope = self.scopes.get(partition)
            entries = scope.entries if scope else {}
            unchanged = all(entries.get(name, b"0 ").split(b" ")[1].decode() == head for name, head in heads)
            return self._watermark(partition), unchanged

        return await self._call(script)

    async def apply(
        self,
        partition: int,
        base: Watermark,
        to: Watermark,
        verdicts: str,
        entries: Sequence[tuple[str, bytes]],
        ids: Sequence[tuple[str, str]],
        window: IdWindow,
        published: int,
        unfolded: Sequence[str],
        writers: Sequence[tuple[str, str]],
        processes: Sequence[tuple[str, int]],
    ) -> Watermark | None:
        def script() -> Watermark | None:
            scope = self.scopes.get(partition)
            if scope is None or scope.watermark != base:
                return self._watermark(partition)
            scope.entries.update(entries)
            scope.unfolded = scope.unfolded - dict(entries).keys() | set(unfolded)
            scope.ids.update(ids)
            scope.writers.update(writers)
            for name in [name for name, text in writers if not text]:
                del scope.writers[name]
            scope.verdicts.update(enumerate(verdicts, base.offset))
            scope.processes.update(processes)
            for name in [name for name, place in processes if place == NEVER]:
                del scope.processes[name]
            if len(scope.ids) >= scope.forget_at:
                kept = [
                    (text, id) for text, id in scope.ids.items() if window.holds(IdRecord.parse(id), to.offset, to.time)
                ]
                scope.ids, scope.forget_at = dict(kept), max(FORGET, 2 * len(kept))
            scope.watermark = to
            return self._watermark(partition)

        return await self._call(script)

    async def lease_fold(self, partition: int, holder: str, ttl_ms: int) -> tuple[Watermark | None, str]:
        def script() -> tuple[Watermark | None, str]:
            has, until = self.folds.get(partition, (holder, 0.0))
            if has == holder or until < time.monotonic():
                self.folds[partition] = (holder, time.monotonic() + ttl_ms / 1000)
            return self._watermark(partition), self.folds[partition][0]

        return await self._call(script)

    async def verdicts(self, partition: int, first: int, end: int) -> tuple[Watermark | None, str]:
        def script() -> tuple[Watermark | None, str]:
            scope = self.scopes.get(partition)
            verdicts = scope.verdicts if scope else {}
            return self._watermark(partition), "".join([verdicts.get(offset, "?") for offset in range(first, end)])

        return await self._call(script)

    async def due(
        self, partition: int, first: int, count: int, by: int
    ) -> tuple[Watermark | None, int, list[tuple[str, int]]]:
        def script() -> tuple[Watermark | None, int, list[tuple[str, int]]]:
            scope = self.scopes.get(partition)
            found = sorted(scope.processes.items(), key=lambda each: (each[1], each[0])) if scope else []
            return self._watermark(partition), sum(at <= by for _, at in found), found[first : first + count]

        return await self._call(script)

    async def processes(self, partition: int, part: int, first: int, count: int) -> tuple[int, list[tuple[str, int]]]:
        scope = self.scopes.get(partition)
        listed = sorted((place, name) for name, place in scope.processes.items()) if scope else []
        found = [(unmarked(name), place - part) for place, name in listed if part <= place < 2 * part]
        return len(found), found[first : first + count]

    async def ask(self, partition: int, name: str, what: str) -> None:
        self.questions[partition, name] = what

    async def asked(self, partition: int) -> dict[str, str]:
        return {name: what for (of, name), what in self.questions.items() if of == partition}

    async def answered(self, partition: int, name: str) -> None:
        self.questions.pop((partition, name), None)

    async def reset(self, partition: int, found: bytes, to: Watermark) -> bool:
        def script() -> bool:
            watermark = self._watermark(partition)
            unchanged = found == (watermark.text.encode() if watermark else b"")
            if unchanged:
                self.scopes[partition] = _Generation(to)
            return unchanged

        return await self._call(script)

    async def forget(self, partition: int, generation: str) -> None:
        pass  # its _Generation is gone already

    async def unfolded(self, partition: int, generation: str) -> set[str]:
        scope = self.scopes.get(partition)
        return set(scope.unfolded) if scope else set()


class MemoryLock(Redlock):
    """The locks of one instance. The cache, which all instances of a cluster share, has the token of each lock, those
    that wait for it, and its tip."""

    def __init__(self, token: str, cache: MemoryCache) -> None:
        self.token, self.turn_s = token, LOCK_S / TURNS
        self._owners, self._waiting, self._tips = cache.locks, cache.waiting, cache.tips
        self._loop = asyncio.get_running_loop()

    def acquire(
        self, scope: str, aggregates: Sequence[str], done: Callable[[Locked], None], waited_s: float = 0.0
    ) -> None:
        names = [(scope, name) for name in aggregates]
        taken = [name for _, name in names if self._owners.get((scope, name), self.token) != self.token]
        if taken:
            for each in names:
                self._waiting.setdefault(each, set()).add(self.token)
            locked = Locked(0.0, reason=f"{', '.join(taken)} is locked by another instance")
        else:
            self._owners.update(dict.fromkeys(names, self.token))
            for each in names:
                self._waiting.get(each, set()).discard(self.token)
            contended = any(self._waiting.get(each) for each in names)
            after = tuple([self._tips[each] for each in names if each in self._tips])
            locked = Locked(time.monotonic() + LOCK_S, contended, after=after)
        self._loop.call_soon(done, locked)

    def release(self, scope: str, aggregates: Sequence[str], tip: str = "") -> None:
        for name in aggregates:
            if self._owners.get((scope, name)) == self.token:
                del self._owners[scope, name]
                if tip:
                    self._tips[scope, name] = tip


class MemoryTransactionLog(TransactionLog):
    """The transaction log of one instance in memory. Instances that share ``log`` and ``cache`` are one cluster."""

    def __init__(self, contracts: Sequence[Contract], log: MemoryLog, cache: MemoryCache) -> None:
        super().__init__(log.settings, contracts)
        self.log, self.cache = log, cache
        self._cache = cache

    async def start(self) -> None:
        s = self.settings
        self.tail, reader = MemoryTail(self.log), MemoryReader(self.log)
        by_name = {contract.name: contract for contract in self.contracts}
        window = IdWindow(s.idempotency_count, s.idempotency_time_s * 1000)
        placement = Placement(by_name, s.log_topic, s.partitions)
        common, ids = (s.log_topic, MEMORY, self.cache, self.tail, reader, by_name, window, placement), fresh_ids()
        holder = f"{id(self):x}"
        rebuilds = Rebuilds(holder)
        self.scopes = Scopes(
            s.partitions, lambda partition: Scope(partition, *common, ids, rebuilds, needs_format=self._needs_format)
        )
        lock = MemoryLock(holder, self.cache)
        self.engine = Engine(s, self.contracts, self.scopes, self.cache, reader, lock)
        self.engine.start(MemoryAppender(self.log))
        for partition in range(s.partitions):
            self.scopes.open(partition)
        while not all(scope.ready or scope.failed for scope in self.scopes):
            await asyncio.sleep(0)
        self._started = True

    async def stop(self) -> None:
        if self._started:
            await self.engine.drain(self.settings.drain_timeout_ms / 1000)
            for scope in self.scopes:
                await scope.stop()
            await self.tail.stop()

    async def ready(self) -> str | None:
        return next((scope.state for scope in self.scopes if scope.state), None)

    def alive(self) -> bool:
        return True
