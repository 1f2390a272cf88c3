"""What an instance has appended to a scope and not read back."""

import itertools
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from hiveio.errors import Unavailable
from hiveio.transaction.journal import Journal, fresh_ids
from hiveio.transaction.pending import Pending


@pytest.fixture
def appended() -> Mock:
    """Called with each append."""
    return Mock()


@pytest.fixture
async def journal(appended: Mock) -> Journal:
    view: Any = SimpleNamespace(next=5)
    made = Journal(0, view, fresh_ids(), appended)
    appender: Any = SimpleNamespace(append=lambda *record, in_flight: None, read_back=lambda partition, in_flight: None)
    made.start(appender)
    return made


async def test_the_numbers_of_a_writer_rise_in_all_its_scopes() -> None:
    first, second, other = *itertools.islice(fresh_ids(), 2), next(fresh_ids())
    writer, number = first.split("-")
    assert second == f"{writer}-{int(number, 16) + 1:x}"
    assert other.split("-")[0] != writer


async def test_whoever_reads_the_log_is_told_of_an_append(journal: Journal, appended: Mock) -> None:
    journal.append_barrier("Account/a")
    appended.assert_called_once()


async def test_the_barrier_under_way_of_an_aggregate_is_known(journal: Journal) -> None:
    first = journal.append_barrier("Account/a", "Account/b")
    second = journal.append_barrier("Account/b")
    assert journal.has_barrier("Account/a")
    assert journal.take(first) is not None
    assert not journal.has_barrier("Account/a")
    assert journal.has_barrier("Account/b"), "a later one is under way"
    assert journal.take(second) is not None
    assert not journal.has_barrier("Account/b")
    assert journal.take(second) is None


async def test_what_is_pending_when_the_scope_fails_is_released_and_nothing_follows(journal: Journal) -> None:
    settled: list[tuple[str, bool | None]] = []

    def settle(pending: Pending, verdict: bool | None, offset: int) -> None:
        settled.append((pending.tx, verdict))

    tx = journal.append_barrier("Account/a", settled=settle)
    journal.end()
    with pytest.raises(Unavailable, match="has stopped"):
        journal.append_barrier("Account/a")
    journal.release()
    assert settled == [(tx, None)]
    assert not journal.pending
    assert not journal.has_barrier("Account/a")
