"""The view of a scope: its bounds, and what keeping them costs."""

from collections import OrderedDict
from collections.abc import Iterator

import pytest
from msgspec import Raw

from hiveio.kafka.tail import LogRecord
from hiveio.transaction import view
from hiveio.transaction.bounds import Bounds
from hiveio.transaction.entry import Entry
from hiveio.transaction.quarantine import Quarantine
from hiveio.transaction.record import CommandId, Commit, Write
from hiveio.transaction.rule import IdWindow
from hiveio.transaction.view import View


class Counting(OrderedDict[str, Entry]):
    """Counts the names that are looked at."""

    seen = 0

    def __iter__(self) -> Iterator[str]:
        for name in super().__iter__():
            self.seen += 1
            yield name


def test_the_oldest_are_forgotten_and_only_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "AGGREGATES", 1_000)
    scope = View({}, Quarantine("log", 0), IdWindow(10, 0))
    scope.entries = entries = Counting()
    for number in range(1_010):
        scope.keep(f"Tally/{number}", Entry(at=number))
    scope.trim(lambda: {"Tally/3"}, applied=1_005)
    assert len(entries) == 1_001
    assert scope.entry("Tally/3") is not None  # the cache does not have it yet
    assert scope.entry("Tally/2") is None
    assert entries.seen <= 11  # a look at all of them cost 14 ms a batch


def test_large_snapshots_are_forgotten_before_there_are_many() -> None:
    scope = View({}, Quarantine("log", 0), IdWindow(10, 0), Bounds(view=50_000))
    for number in range(100):
        scope.keep(f"Tally/{number}", Entry(at=number, snapshot=b"x" * 9_500))
    scope.keep("Tally/99", Entry(at=99, snapshot=b"y" * 9_500))
    assert scope.size == 1_000_000
    scope.trim(lambda: {"Tally/7"}, applied=100)
    assert list(scope.entries) == ["Tally/7", *(f"Tally/{number}" for number in range(96, 100))]
    assert scope.size == sum(entry.size for entry in scope.entries.values()) == 50_000
    scope.begin(0, scope.state)
    assert scope.size == 0


def test_a_void_record_of_an_aggregate_that_has_never_existed_leaves_no_entry() -> None:
    scope = View({}, Quarantine("log", 0), IdWindow(10, 0))
    scope.begin(0, scope.state)
    for offset, head in enumerate(["", "elsewhere"]):
        name = f"Tally/{offset}"
        record = Commit(CommandId(name, "k"), (Write(name, head, 0, (Raw(b"{}"),)),))
        effects = scope.judge(LogRecord(offset, f"w-{offset}", b"", 1), record)
        assert effects.verdict is (head == "")
    assert list(scope.entries) == ["Tally/0"]
    assert scope.known("Tally/1") == Entry()
