"""What counts as not published: the first accepted event after the last one on the event topic."""

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hiveio.errors import Unavailable
from hiveio.transaction import lag
from hiveio.transaction.backlog import Backlog
from hiveio.transaction.lag import PublisherLag


class Message:
    """As confluent-kafka gives it."""

    def __init__(self, offset: int, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        self._all = offset, value, headers

    def offset(self) -> int:
        return self._all[0]

    def key(self) -> bytes:
        return b"tx"

    def value(self) -> bytes:
        return self._all[1]

    def headers(self) -> list[tuple[str, bytes]]:
        return self._all[2]

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_000 * self._all[0]

    def topic(self) -> str:
        return "events"

    def partition(self) -> int:
        return 0


class Marks:
    """Two topics: ``log`` has for each record how many events it writes, ``events`` the positions published."""

    def __init__(self, *log: int) -> None:
        self.log, self.events, self.read_records = list(log), list[tuple[int, int]](), 0
        self.away = False

    def publish(self, *positions: tuple[int, int]) -> None:
        self.events += positions

    def ends(self, places: Any) -> dict[tuple[str, int], int]:
        if self.away:
            raise Unavailable("away")
        return {("log", 0): len(self.log), ("events", 0): len(self.events)}

    def reader(self, topic: str) -> Any:
        """A LogReader."""
        written = self.events if topic == "events" else self.log

        async def bounds(partition: int) -> tuple[int, int]:
            return 0, len(written)

        async def read_each(partition: int, offset: int, end: int, made: Callable[[Any], Any]) -> list[Any]:
            return [made(self._message(topic, at)) for at in range(offset, end)]

        return SimpleNamespace(bounds=bounds, read_each=read_each)

    def _message(self, topic: str, at: int) -> Message:
        self.read_records += 1
        if topic == "events":
            position = "0:{}:{}".format(*self.events[at]).encode()
            return Message(at, b"{}", [("hive-position", position), ("hive-id", b"tx.0")])
        events = [{"type": "Added"}] * self.log[at]
        body = {"kind": "commit", "command": ["A/a", "k"], "writes": [["A/a", "", 0, events]]}
        return Message(at, json.dumps(body).encode(), [])


class Scene:
    """A scope of ``log`` whose verdicts are ``verdicts``; what is beyond them is not judged."""

    def __init__(self, marks: Marks, verdicts: str) -> None:
        self.marks, self.verdicts, self.backlog = marks, verdicts, Backlog()
        scope: Any = SimpleNamespace(topic="log", partition=0, backlog=self.backlog, verdicts=self._verdicts, view=self)
        scope.reader = marks.reader("log")
        self._lag = PublisherLag([scope], marks, marks.reader("events"), "events")  # type: ignore[arg-type]

    @property
    def next(self) -> int:
        return len(self.verdicts)

    async def _verdicts(self, first: int, end: int) -> str:
        return self.verdicts[first:end]

    async def looked(self) -> tuple[int, int]:
        """How many records behind, and when the first of them was stored (s)."""
        await self._lag.look()
        return self.backlog.records(self.next), self.backlog.first.time // 1000 if self.backlog.first else 0


async def test_void_records_and_records_without_events_are_no_lag() -> None:
    marks = Marks(0, 1, 0, 1, 0)
    scene = Scene(marks, "11101")
    assert await scene.looked() == (4, 1)
    marks.publish((1, 0))
    assert await scene.looked() == (0, 0)
    before = marks.read_records
    assert await scene.looked() == (0, 0)
    assert marks.read_records == before, "nothing is read where nothing moves"
    marks.log += [0, 0, 2, 1]
    scene.verdicts += "1111"
    assert await scene.looked() == (2, 7)


async def test_a_record_is_published_with_its_last_event() -> None:
    marks = Marks(0, 3, 1)
    scene = Scene(marks, "111")
    for place, behind in ((0, 2), (1, 2), (2, 1)):
        marks.publish((1, place))
        assert (await scene.looked())[0] == behind
    marks.publish((2, 0))
    assert await scene.looked() == (0, 0)
    marks.publish((1, 2))  # a repeat: the next session goes on from there
    assert await scene.looked() == (1, 2)


async def test_what_is_not_judged_counts_until_it_is_known_to_be_void() -> None:
    scene = Scene(Marks(0, 1, 1), "1")
    assert await scene.looked() == (2, 1)
    scene.verdicts = "10"
    assert await scene.looked() == (1, 2)
    scene.verdicts = "100"
    assert await scene.looked() == (0, 0)


async def test_many_void_records_are_passed_in_bounded_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "STRETCH", 50)
    marks = Marks(0, *[1] * 119, 1)
    scene = Scene(marks, "1" + "0" * 119 + "1")
    behind = [await scene.looked() for _ in range(4)]
    assert all(records for records, _ in behind), "it is not 0 while it is not known"
    assert behind[-2:] == [(1, 120), (1, 120)]
    assert marks.read_records <= 121 + 3


async def test_while_kafka_is_away_the_age_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = Marks(0, 1)
    scene = Scene(marks, "11")
    await scene.looked()
    marks.away = True
    monkeypatch.setattr("hiveio.kafka.end_offsets.time.time", lambda: 61.0)
    with pytest.raises(Unavailable):
        await scene.looked()
    assert (scene.backlog.records(2), scene.backlog.age_s) == (1, 60.0)


async def test_what_goes_wrong_with_each_look_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lag, "LOOK_S", 0.0)
    scene = Scene(Marks(0, 1), "11")
    looks: list[Exception | None] = [ZeroDivisionError(), ZeroDivisionError(), Unavailable("a"), Unavailable("b"), None]
    left, over = looks * 3, list[bool]()

    async def look() -> None:
        if not left:
            over.append(True)
        elif (error := left.pop(0)) is not None:
            raise error

    monkeypatch.setattr(scene._lag, "look", look)
    scene._lag.start()
    async with asyncio.timeout(5):
        while not over:
            await asyncio.sleep(0)
    await scene._lag.stop()
    assert [line.levelname for line in caplog.records] == ["ERROR", "WARNING"] * 3
