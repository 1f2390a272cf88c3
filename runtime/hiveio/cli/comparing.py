"""What ``hiveio verify`` compares: the fold of one scope, its cache, its event topic."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import msgspec

from hiveio.actor import Contract
from hiveio.cli.judging import Partition, Progress, decoded
from hiveio.config import Settings
from hiveio.errors import Corrupt, Unavailable
from hiveio.kafka import Message
from hiveio.kafka.headers import headers_of
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.cache import Cache
from hiveio.transaction.entry import CacheReply, Entry, Watermark
from hiveio.transaction.process import NEVER, listed
from hiveio.transaction.publisher import Origin, outgoing
from hiveio.transaction.quarantine import Quarantine
from hiveio.transaction.record import Format, Record, named
from hiveio.transaction.rule import IdWindow
from hiveio.transaction.view import View

BATCH = 500  # aggregates or ids that are asked for at once
LISTED = 10_000  # processes whose deadlines are compared
VERDICTS = 10_000  # verdicts that are asked for at once
PUBLISHED_S = 10.0  # that a publisher has to catch up with the log


class Differences:
    """The number of differences, and the lines of the first ones."""

    def __init__(self, shown: int = 20) -> None:
        self.count, self.lines, self._shown = 0, list[str](), shown

    def add(self, line: str) -> None:
        self.count += 1
        if self.count <= self._shown:
            self.lines.append(line)


class Fold:
    """The fold of a scope by the rule and by ``replay``, in memory, up to any offset that is asked for."""

    def __init__(self, settings: Settings, partition: int, contracts: Mapping[str, Contract]) -> None:
        self.log = Partition(settings, settings.log_topic, partition)
        self.voids = 0
        first = next(self.log.records(min(1, self.log.end())), None)
        record = decoded(self.log.where, first) if first else None
        if first is None or not isinstance(record, Format):
            raise Corrupt(f"{self.log.where} does not begin with a format record, so it is not a transaction log")
        window = IdWindow.of(record)
        self.quarantine = Quarantine(settings.log_topic, partition)
        self.view = View(contracts, self.quarantine, window)
        self.view.judge(first, record)
        self._window, self._progress = window, Progress(self.log.where)

    def to(self, end: int) -> Iterator[tuple[LogRecord, Record, bool]]:
        """Fold on to this offset, and give each record with its verdict."""
        view = self.view
        for message in self.log.records(end):
            record = decoded(self.log.where, message)
            for name in named(record):
                view.entries.setdefault(name, Entry())
            accepted = bool(view.judge(message, record).verdict)
            self.voids += not accepted
            self._progress.at(message.offset + 1, end)
            while view.recent and not self._window.holds(next(iter(view.recent.values())), view.next, view.time):
                view.recent.popitem(last=False)
            yield message, record, accepted


class Events:
    """Compares the event topic of a scope with the accepted events in their order. Repeats count once."""

    def __init__(self, settings: Settings, partition: int, differences: Differences) -> None:
        self._origin = Origin(settings.written_topic, "", partition)
        self._topic = Partition(settings, settings.written_topic, partition)
        self._partition, self._differences = partition, differences
        self._stream: Iterator[Message] = iter(())
        self._next: tuple[tuple[int, int], Message] | None = None
        self._last = (-1, -1)
        self.published = self.missing = 0  # events that are on the topic, and that are missing at its end

    def expect(self, message: LogRecord, record: Record) -> None:
        """The events of an accepted record come next."""
        for index, expected in enumerate(outgoing(self._origin, message, record)):
            key, position = (message.offset, index), f"{self._partition}:{message.offset}:{index}"
            if self.missing or not self._arrives():
                if not self.missing:
                    self._differences.add(f"{self._topic.where}: it ends before the event {position}")
                self.missing += 1
                continue
            event = self._skip_to(key)
            if event is None or event[0] > key:
                self._differences.add(f"{self._topic.where}: the event {position} is missing")
                continue
            self._take()
            self.published += 1
            found = event[1]
            headers = headers_of(found)
            same = (found.key(), found.value()) == (str(expected.key).encode(), expected.value)
            if not same or any((name, _bytes(value)) not in headers for name, value in expected.headers):
                self._differences.add(
                    f"{self._topic.where}/{found.offset()}: this record is not the event {position} of the log"
                )

    def _arrives(self) -> bool:
        """Whether the topic has one more event; it waits for PUBLISHED_S at most."""
        until = time.monotonic() + PUBLISHED_S
        while self._peek() is None:
            if time.monotonic() > until:
                return False
            time.sleep(0.2)
        return True

    def _peek(self) -> tuple[tuple[int, int], Message] | None:
        while self._next is None:
            message = next(self._stream, None)
            if message is None:
                self._stream = self._topic.messages(self._topic.end())
                if (message := next(self._stream, None)) is None:
                    return None
            try:
                _, offset, index = _headers(message).get("hive-position", b"").split(b":")
                key = int(offset), int(index)
            except ValueError:
                where = f"{self._topic.where}/{message.offset()}"
                self._differences.add(f"{where}: this record has no hive-position, so hiveio did not write it")
                continue
            if key > self._last:  # else it is a repeat
                self._next = (key, message)
        return self._next

    def _skip_to(self, key: tuple[int, int]) -> tuple[tuple[int, int], Message] | None:
        """Go on to the first event at this offset and index or after it. Those before it do not come from the log."""
        while (event := self._peek()) is not None and event[0] < key:
            where = f"{self._topic.where}/{event[1].offset()}"
            self._differences.add(f"{where}: no accepted event has the position of this record")
            self._take()
        return event

    def _take(self) -> None:
        if self._next is not None:
            self._last, self._next = self._next[0], None

    def close(self) -> None:
        self._topic.close()

    def rest(self, offset: int) -> None:
        """No more events of records below this offset are expected."""
        self._skip_to((offset, 0))


class CacheCheck:
    """Compares the cache of a scope with its fold, each answer of the cache at the watermark that it carries."""

    def __init__(self, cache: Cache, partition: int, fold: Fold, events: Events, differences: Differences) -> None:
        self._cache, self._partition, self._fold, self._events = cache, partition, fold, events
        self._differences = differences
        self._generation = ""
        self.offset = 0

    async def start(self) -> None:
        """Raises Unavailable if there is no cache to compare."""
        found = (await self._cache.read(self._partition)).watermark
        if found is None:
            raise Unavailable(
                f"{self._fold.log.where} has no cache for this version of the models: start a service, then verify"
            )
        self._generation = found.generation
        self._reach(found)

    def _reach(self, watermark: Watermark) -> None:
        end = self._fold.log.end()
        if watermark.generation != self._generation or watermark.offset < self._fold.view.next:
            raise Unavailable(f"the cache of {self._fold.log.where} is being rebuilt: verify again later")
        if watermark.offset > end:
            raise Corrupt(f"the cache is at offset {watermark.offset}, and {self._fold.log.where} ends at {end}")
        last = None
        for message, record, accepted in self._fold.to(watermark.offset):
            last = message
            if accepted:
                self._events.expect(message, record)
        if last is not None:
            expected = watermark.moved(watermark.offset, self._fold.view.state, last.key)
            expected = expected._replace(known=watermark.known)  # of which the log says nothing
            if watermark != expected:
                self._differences.add(f"the watermark is {watermark.text} in the cache, and {expected.text} by the log")
        self.offset = watermark.offset

    async def writers(self) -> None:
        _, watermark, found = await self._cache.watermark(self._partition)
        self._fold_to(watermark)
        mine = self._fold.view.state.writers
        for name in sorted(found.keys() | mine.keys()):
            if (there := found.get(name)) != (here := mine.get(name)):
                text = f"the writer {name} is at {there and there.text} in the cache, and at {here and here.text}"
                self._differences.add(f"{text} by the log at offset {self.offset}")

    async def entries(self) -> None:
        view = self._fold.view
        for names in _groups(list(view.entries)):
            async for name, reply in self._ask(names):
                mine, stored = view.entries[name], reply.stored_entry
                expected = mine.text if mine.head else None
                if stored != expected and not (stored and expected and self._same(name, reply, mine)):
                    text = f"{name} is {_short(stored)} in the cache, and {_short(expected)} by the log"
                    self._differences.add(f"{text} at offset {self.offset}")

    def _same(self, name: str, reply: CacheReply, mine: Entry) -> bool:
        """Whether states and heads are the same. The bytes may differ if a model holds a set, or if only some instances
        can fold an event."""
        try:
            found = self._fold.view.decoded(name, reply.entry, mine.at)
        except (ValueError, msgspec.MsgspecError):
            return False
        same = (found.version, found.head, found.process) == (mine.version, mine.head, mine.process)
        return same and (bool(mine.fault) or (not found.fault and found.state == mine.state))

    async def processes(self) -> None:
        """Compare the list of processes, with the deadlines that are due first: all, where there are not very many."""
        watermark, _, found = await self._cache.due(self._partition, 0, LISTED, 0)
        self._fold_to(watermark)
        entries = self._fold.view.entries.items()
        mine = [pair for name, entry in entries if entry.process for pair in listed(name, entry.process)]
        mine = sorted([pair for pair in mine if pair[1] != NEVER], key=lambda pair: (pair[1], pair[0].encode()))
        there, here = dict(found), dict(mine[:LISTED])
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                text = f"the list of processes has {name} at {there.get(name, 'no place')} in the cache"
                self._differences.add(f"{text}, and at {here.get(name, 'no place')} by the log at offset {self.offset}")

    async def ids(self) -> None:
        view = self._fold.view
        for texts in _groups(list(view.recent)):
            async for text, reply in self._ask(texts, ids=True):
                mine, stored = view.recent.get(text), reply.stored_id
                if mine is not None and stored != mine.text.encode():
                    difference = f"command id {text} is {_short(stored)} in the cache, and {mine.text} by the log"
                    self._differences.add(difference)

    async def verdicts(self) -> None:
        for first in range(0, self.offset, VERDICTS):
            end = min(first + VERDICTS, self.offset)
            _, found = await self._cache.verdicts(self._partition, first, end)
            mine = self._fold.view.verdicts(first, end) or ""
            for at, (verdict, expected) in enumerate(zip(found, mine, strict=True), first):
                if verdict not in ("?", expected):
                    self._differences.add(
                        f"the verdict of offset {at} is {verdict} in the cache, and {expected} by the log"
                    )

    async def unknown_entries(self) -> None:
        """Find aggregates that the cache has and the log does not."""
        entries = self._fold.view.entries
        async for name in self._cache.aggregates(self._partition, self._generation):
            if name not in entries or not entries[name].head:
                async for _, reply in self._ask([name]):  # it may be new
                    if reply.stored_entry is not None and (name not in entries or not entries[name].head):
                        self._differences.add(f"{name} is in the cache, and the log has no record of it")

    async def _ask(self, names: Sequence[str], *, ids: bool = False) -> AsyncIterator[tuple[str, CacheReply]]:
        """The answers of the cache for aggregates, or for command ids. Each one comes when the fold has reached its
        watermark."""
        pairs = [("", name) if ids else (name, "") for name in names]
        replies = await asyncio.gather(*[self._cache.read(self._partition, *pair) for pair in pairs])
        for name, reply in zip(names, replies, strict=True):  # asked in this order, so the watermarks ascend
            self._fold_to(reply.watermark)
            yield name, reply

    def _fold_to(self, watermark: Watermark | None) -> None:
        """Fold on to the watermark of an answer."""
        if watermark is None:
            raise Unavailable(f"the cache of {self._fold.log.where} was lost: verify again later")
        if watermark.offset != self.offset or watermark.generation != self._generation:
            self._reach(watermark)


def _bytes(value: str | bytes | None) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _headers(message: Message) -> dict[str, bytes]:
    return {name: value for name, value in headers_of(message) if isinstance(value, bytes)}


def _groups(items: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _short(text: bytes | None) -> str:
    if text is None:
        return "nothing"
    return repr(text.decode("utf-8", "replace")[:200])
