"""The open dead letters that people see: bounded in memory, and none of them forgotten for good."""

from collections.abc import Iterator
from typing import Any

from confluent_kafka import Message

from hiveio.consumer.dead_letters.format import mark
from hiveio.consumer.dead_letters.opened import OpenDeadLetters
from tests.unit.consumer.dead_letters.test_fold import Partition

TOPIC, GROUP = "t.g.dead", "g"


class Reader:
    """Reads one partition in memory."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.read_from: list[int] = []

    def topics(self) -> list[str]:
        return [TOPIC, "t"]

    def partitions(self, topic: str) -> list[tuple[str, int]]:
        return [(topic, 0)]

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return 0, len(self._partition.messages)

    def owners(self, sources: Any) -> dict[Any, Any]:
        return {}

    def read(self, topic: str, partition: int, offset: int, end: int) -> Iterator[Message]:
        self.read_from.append(offset)
        yield from self._partition.messages[offset:end]


def keys(opened: OpenDeadLetters) -> list[Any]:
    return [each.key for each in opened.open()]


def test_only_so_many_are_kept_and_all_are_counted() -> None:
    partition = Partition()
    written = [partition.dead_letter("one", at, b"%d" % at) for at in range(10)]
    reader = Reader(partition)
    opened = OpenDeadLetters(reader, GROUP, most=4)  # type: ignore[arg-type]
    assert (keys(opened), opened.count, opened.keys) == ([b"0", b"1", b"2", b"3"], 10, 10)
    partition.write(mark("dropped", written[0]))
    assert keys(opened) == [b"1", b"2", b"3"]
    partition.write(mark("dropped", written[1]))
    assert keys(opened) == [b"2", b"3", b"4", b"5"]  # there is room for half of them, so it reads again
    assert keys(opened) == [b"2", b"3", b"4", b"5"]
    assert reader.read_from == [0, 10, 11, 2, 12]


def test_what_is_closed_takes_no_room() -> None:
    partition = Partition()
    for at in range(10):
        partition.write(mark("done", partition.dead_letter("one", at, b"%d" % at)))
    partition.dead_letter("one", 10, b"open")
    opened = OpenDeadLetters(Reader(partition), GROUP, most=1)  # type: ignore[arg-type]
    assert (keys(opened), opened.count) == ([b"open"], 1)
    assert keys(opened) == [b"open"]


def test_why_a_retry_failed_is_known_until_it_is_closed() -> None:
    partition = Partition()
    dead = partition.dead_letter("one", 3)
    partition.write(mark("failed", dead, "KeyError: still"))
    opened = OpenDeadLetters(Reader(partition), GROUP, most=4)  # type: ignore[arg-type]
    (found,) = opened.open()
    assert opened.failed == {found.origin: "KeyError: still"}
    partition.write(mark("dropped", dead))
    assert (list(opened.open()), opened.failed) == ([], {})
