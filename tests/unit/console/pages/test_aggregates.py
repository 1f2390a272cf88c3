"""Aggregates on a page: however many there are, and however large they are, a page has a part of them."""

from typing import cast

from hiveio.console.html import joined
from hiveio.console.pages.aggregates import PAGE, STEPS, aggregate, aggregates
from hiveio.console.records import Row, ScopeRecords
from hiveio.console.states import Step
from hiveio.kafka.tail import LogRecord


class Scope:
    """A scope with 5,000 aggregates."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.touched = {f"Account/{2 * at + partition:05}": [at] for at in range(5_000)}


SCOPES = [cast(ScopeRecords, Scope(0)), cast(ScopeRecords, Scope(1))]


def test_they_are_listed_a_page_at_a_time_by_name() -> None:
    page = joined(aggregates(SCOPES, "", ""))
    assert "1 to 100 of 10,000" in page
    assert page.count("<tr>") == PAGE + 1
    assert "after=Account%2F00099" in page
    assert "101 to 200 of 10,000" in joined(aggregates(SCOPES, "", "Account/00099"))
    assert "1 to 100 of 1,000" in joined(aggregates(SCOPES, "Account/01", ""))
    assert "There are none." in joined(aggregates(SCOPES, "Nothing/", ""))


def test_a_history_is_shown_a_page_at_a_time_and_large_states_are_cut() -> None:
    row = Row(LogRecord(7, "a-1", b"", 1), None, True, "")
    large = b'{"text": "%s"}' % (b"x" * 100_000)
    steps = [Step(row, version, large, large, "") for version in range(1, 2_001)]
    page = joined(aggregate("Account/1", SCOPES[0], steps, len(steps), None))
    assert "events 1,901 to 2,000 of 2,000" in page
    assert "more characters" in page
    assert len(page) < STEPS * 10_000
    assert "events 1 to 50 of 2,000" in joined(aggregate("Account/1", SCOPES[0], steps, len(steps), 50))
