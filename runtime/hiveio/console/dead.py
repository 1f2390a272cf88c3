"""The open dead letters of a group, for pages; and what is done about them."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

from hiveio.config import Settings
from hiveio.consumer.dead_letters.format import mark
from hiveio.consumer.dead_letters.opened import DeadLetter, OpenDeadLetters
from hiveio.errors import NotFound
from hiveio.kafka import Message
from hiveio.kafka.reader import Reader

KEPT = 10_000  # that are known of one group
GROUPS = 20  # of which the dead letters are kept in memory


class Found(NamedTuple):
    """``total`` may be more than those that are listed. ``failed`` says why a retry failed, by the record."""

    listed: list[DeadLetter]
    total: int
    failed: dict[str, str]


class _Group:
    def __init__(self, settings: Settings, name: str) -> None:
        self.reader = Reader(settings, name)
        self.opened = OpenDeadLetters(self.reader, name, most=KEPT)


class DeadLetters:
    """Calls block, and raise Unavailable. A later look reads only what is new."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._groups: dict[str, _Group] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            for group in self._groups.values():
                group.reader.close()
            self._groups = {}

    def look(self, name: str) -> Found:
        with self._lock:
            return self._look(name)

    def original(self, name: str, dead: DeadLetter) -> Message | None:
        """The dead letter as it lies in its topic, with its value."""
        with self._lock:
            at = dead.message.offset() or 0
            return next(self._group(name).reader.read(dead.topic, dead.partition, at, at + 1), None)

    def write(self, name: str, kind: str, chosen: Sequence[DeadLetter]) -> int:
        """Write a mark, ``retry`` or ``dropped``, on those of them that are still open. Their number."""
        with self._lock:
            still = {(each.topic, each.partition, each.message.offset()) for each in self._look(name).listed}
            marked = [each for each in chosen if (each.topic, each.partition, each.message.offset()) in still]
            self._group(name).reader.write([(each.topic, each.partition, mark(kind, each.message)) for each in marked])
            return len(marked)

    def _look(self, name: str) -> Found:
        opened = self._group(name).opened
        listed = list(opened.open())
        return Found(listed, opened.count, dict(opened.failed))

    def _group(self, name: str) -> _Group:
        group = self._groups.pop(name, None)
        if group is None:
            with Reader(self._settings) as reader:
                if not any(topic.endswith(f".{name}.dead") for topic in reader.topics()):
                    raise NotFound(f"The group {name} has no dead letters.")
            group = _Group(self._settings, name)
        self._groups[name] = group  # the last one is the one that was used last
        while len(self._groups) > GROUPS:
            self._groups.pop(next(iter(self._groups))).reader.close()
        return group


def by_key(listed: Sequence[DeadLetter]) -> list[list[DeadLetter]]:
    """Those of one key and partition together, in order: the first one has failed, and the others wait behind it."""
    found: dict[tuple[str, int, bytes | int], list[DeadLetter]] = {}
    for each in listed:
        found.setdefault((each.topic, each.partition, each.key), []).append(each)
    return list(found.values())


def of_key(listed: Sequence[DeadLetter], dead: DeadLetter) -> list[DeadLetter]:
    return [e for e in listed if (e.topic, e.partition, e.key) == (dead.topic, dead.partition, dead.key)]
