"""The view of a scope: its bounds, and what keeping them costs."""

from collections import OrderedDict
from collections.abc import Iterator

import pytest

from hiveio.transaction import view
from hiveio.transaction.cache import Entry
from hiveio.transaction.quarantine import Quarantine
from hiveio.transaction.rule import Window
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
    scope = View({}, Quarantine("log", 0), Window(10, 0))
    scope.entries = entries = Counting()
    for number in range(1_010):
        scope.keep(f"Tally/{number}", Entry(at=number))
    scope.trim(lambda: {"Tally/3"}, applied=1_005)
    assert len(entries) == 1_001
    assert scope.entry("Tally/3") is not None  # the cache does not have it yet
    assert scope.entry("Tally/2") is None
    assert entries.seen <= 11  # a look at all of them cost 14 ms a batch
