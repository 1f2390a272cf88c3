"""A transaction to its events: on a topic that has some of them twice, too."""

from collections.abc import Iterator, Sequence

import pytest
from msgspec import Raw

from hiveio.config import Settings
from hiveio.console import records as judged
from hiveio.console import trace
from hiveio.console.records import ScopeRecords
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.record import CommandId, Commit, Write, encode


class Event:
    """A record of the event topic."""

    def __init__(self, at: int, position: tuple[int, int]) -> None:
        self._at, self._position = at, position

    def offset(self) -> int:
        return self._at

    def headers(self) -> list[tuple[str, bytes]]:
        offset, index = self._position
        return [("hive-position", b"0:%d:%d" % (offset, index)), ("hive-id", b"a-%d.%d" % (offset, index))]


@pytest.mark.parametrize("repeated", [(0, 0), (30, 10), (100, 10), (150, 60), (199, 150)])
def test_the_events_that_consumers_take_are_the_first_ones(
    repeated: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records have two events each. After the event number ``repeated[0]`` as many as ``repeated[1]`` come again."""
    positions = [divmod(number, 2) for number in range(400)]
    after, many = repeated
    topic = [*positions[:after], *positions[after - many : after], *positions[after:]]

    class Topic:
        def __init__(self, settings: Settings) -> None:
            pass

        def __enter__(self) -> "Topic":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def bounds(self, topic: str, partition: int) -> tuple[int, int]:
            return 0, len(positions) + many

        def read(self, name: str, partition: int, first: int, end: int) -> Iterator[Event]:
            yield from (Event(at, topic[at]) for at in range(first, end))

    class Log(ScopeRecords):
        def rows(self, first: int, end: int) -> list[judged.Row]:
            return self.rows_at(range(first, end))

        def rows_at(self, offsets: Sequence[int]) -> list[judged.Row]:
            event = Raw(b'{"type":"Opened","payload":{}}')
            commit = Commit(CommandId("Account/a", "k"), (Write("Account/a", "", 0, (event, event)),))
            return [judged.Row(LogRecord(at, f"a-{at}", encode(commit), 1), commit, True, "") for at in offsets]

        @property
        def judged(self) -> int:
            return 200

    monkeypatch.setattr(judged, "Reader", Topic)
    monkeypatch.setattr(trace, "Reader", Topic)
    scope = Log(Settings(topic="bank"), 0)
    for offset in range(200):
        found = trace.find(Settings(topic="bank"), [scope], f"0:{offset}")
        assert found is not None
        assert found.events == [topic.index((offset, 0)), topic.index((offset, 1))]
