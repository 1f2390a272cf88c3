"""The open dead letters of a consumer group, for people who look at them and retry or drop them."""

from collections.abc import Iterator
from typing import NamedTuple

from hiveio.consumer.dead_letters.fold import Fold
from hiveio.consumer.dead_letters.format import EXCEPTION, MARK, Key, headers_of, origin_of, parking_key
from hiveio.kafka import Message
from hiveio.kafka.reader import Reader


class DeadLetter(NamedTuple):
    """An open dead letter. ``topic`` and ``partition`` are those of the dead-letter topic."""

    topic: str
    partition: int
    key: Key
    origin: str
    message: Message
    headers: dict[str, bytes]


class OpenDeadLetters:
    """The open dead letters of a group, as far as its dead-letter topics were read.

    With ``most`` only so many are kept, without their values, so that memory stays bounded; all are counted.
    """

    def __init__(self, reader: Reader, group: str, topic: str | None = None, most: int | None = None) -> None:
        suffix = f".{group}.dead"
        names = [f"{topic}{suffix}"] if topic else [n for n in reader.topics() if n.endswith(suffix)]
        self._reader, self._suffix, self._most = reader, suffix, most
        self._bounds = {at: reader.bounds(*at) for name in names for at in reader.partitions(name)}
        self.failed: dict[str, str] = {}  # origin → why it failed when it was tried again
        self._folds = {partition: Fold(bounds[0]) for partition, bounds in self._bounds.items()}
        self._dead_letters: dict[tuple[str, int], dict[int, Message]] = {partition: {} for partition in self._bounds}
        self._left_out = False  # there was no room for some of them

    def asked(self, dead_letter: DeadLetter) -> bool:
        entry = self._folds[dead_letter.topic, dead_letter.partition].entries.get(dead_letter.key)
        return entry is not None and entry.asked

    @property
    def count(self) -> int:
        """The number of open dead letters."""
        return sum(fold.count for fold in self._folds.values())

    @property
    def keys(self) -> int:
        """The number of keys that wait behind them."""
        return sum(len(fold.entries) for fold in self._folds.values())

    @property
    def void(self) -> int:
        """The number of dead letters that are void because they came late."""
        return sum(len(fold.void) for fold in self._folds.values())

    def open(self) -> Iterator[DeadLetter]:
        """Read to the end, and yield what is open, in order."""
        # An owner commits its claim before it writes a dead letter. So the end offsets are read before the owners.
        ends = {partition: self._reader.bounds(*partition)[1] for partition in self._folds}
        sources = {partition: (partition[0].removesuffix(self._suffix), partition[1]) for partition in self._folds}
        owners = self._reader.owners(list(sources.values()))
        for partition, fold in self._folds.items():
            fold.owned(owners.get(sources[partition]))
            for message in self._reader.read(*partition, fold.next, ends[partition]):
                headers = headers_of(message)
                fold.add(message)
                if MARK not in headers:
                    self._keep(message, self._dead_letters[partition])
                elif headers[MARK] == b"failed" and (origin := origin_of(headers)):
                    self.failed["/".join(map(str, origin))] = headers.get(EXCEPTION, b"").decode("utf-8", "replace")
        self._drop_closed()
        if self._left_out and self._kept <= (self._most or 0) // 2:
            self._refill()
        failed = {}
        for partition, dead_letters in self._dead_letters.items():
            for _, message in sorted(dead_letters.items()):
                headers = headers_of(message)
                key, origin = parking_key(message, headers), origin_of(headers)
                if key is not None and origin is not None:
                    where = "/".join(map(str, origin))
                    if where in self.failed:
                        failed[where] = self.failed[where]
                    yield DeadLetter(*partition, key, where, message, headers)
        if self._most is not None:
            self.failed = failed

    @property
    def _kept(self) -> int:
        return sum(map(len, self._dead_letters.values()))

    def _keep(self, message: Message, dead_letters: dict[int, Message]) -> None:
        at = message.offset()
        if at is None:
            return
        if self._most is not None:
            if self._kept >= self._most:
                self._left_out = True
                return
            message.set_value(None)
        dead_letters[at] = message

    def _drop_closed(self) -> None:
        for partition, dead_letters in self._dead_letters.items():
            for at, message in list(dead_letters.items()):
                if not _is_open(message, self._folds[partition]):
                    del dead_letters[at]

    def _refill(self) -> None:
        """Read again what there was no room for, now that it is known which are open."""
        self._left_out = False
        for partition, fold in self._folds.items():
            first = min((entry.first for entry in fold.entries.values()), default=fold.next)
            for message in self._reader.read(*partition, first, fold.next):
                if MARK not in headers_of(message) and _is_open(message, fold):
                    self._keep(message, self._dead_letters[partition])


def _is_open(message: Message, fold: Fold) -> bool:
    key, at = parking_key(message, headers_of(message)), message.offset()
    entry = fold.entries.get(key) if key is not None else None
    return entry is not None and at is not None and entry.open(at)
