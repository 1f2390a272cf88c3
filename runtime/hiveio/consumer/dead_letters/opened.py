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
        self._folds = {partition: Fold(bounds[0]) for partition, bounds in self._bounds.items()}
        self._dead_letters: dict[tuple[str, int], dict[int, Message]] = {partition: {} for partition in self._bounds}
        self.failed: dict[str, str] = {}  # origin → why it failed when it was tried again

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
            dead_letters = self._dead_letters[partition]
            fold.owned(owners.get(sources[partition]))
            for message in self._reader.read(*partition, fold.next, ends[partition]):
                headers, at = headers_of(message), message.offset()
                if MARK not in headers and at is not None:
                    if self._most is None:
                        dead_letters[at] = message
                    elif sum(map(len, self._dead_letters.values())) < self._most:
                        message.set_value(None)
                        dead_letters[at] = message
                elif headers.get(MARK) == b"failed" and (origin := origin_of(headers)):
                    self.failed["/".join(map(str, origin))] = headers.get(EXCEPTION, b"").decode("utf-8", "replace")
                fold.add(message)
            for at in list(dead_letters):
                headers = headers_of(dead_letters[at])
                key, origin = parking_key(dead_letters[at], headers), origin_of(headers)
                entry = fold.entries.get(key) if key is not None else None
                if entry is None or key is None or origin is None or not entry.open(at):
                    del dead_letters[at]
                    continue
                yield DeadLetter(*partition, key, "/".join(map(str, origin)), dead_letters[at], headers)
