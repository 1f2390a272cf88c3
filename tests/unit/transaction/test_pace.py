"""When the log of a scope is read with pauses: while its commands are forwarded and nothing of it is needed."""

from unittest.mock import Mock, call

import pytest

from hiveio.transaction.pace import NEEDED_S, PAUSE_S, READS_S, Pace

TICK_S = 0.05


class Forwarder:
    """The pace of a scope that nothing was needed of when the test began, and by what a tail was told."""

    def __init__(self) -> None:
        self.now, self.tail, self.may_pause = 100.0, Mock(), True
        self.pace = Pace(self.tail, 3, lambda: self.now)
        self.look(0, forwarded=False)

    def look(self, after_s: float = TICK_S, *, forwarded: bool = True) -> None:
        self.now += after_s
        if forwarded:
            self.pace.forwarded()
        self.pace.look(lambda: self.may_pause)

    def pauses(self) -> int:
        return len(self.tail.pause.mock_calls)


@pytest.fixture
def forwarder() -> Forwarder:
    return Forwarder()


def test_it_pauses_once_nothing_was_needed_for_a_while(forwarder: Forwarder) -> None:
    forwarder.look(NEEDED_S / 2)
    assert not forwarder.pauses()
    forwarder.look(NEEDED_S / 2 + TICK_S)
    assert forwarder.tail.mock_calls == [call.pause(3, PAUSE_S)]


def test_it_does_not_pause_where_nothing_is_forwarded(forwarder: Forwarder) -> None:
    """The next command would find that it is behind."""
    forwarder.look(10, forwarded=False)
    assert not forwarder.pauses()


def test_it_does_not_pause_while_something_waits_for_the_log(forwarder: Forwarder) -> None:
    forwarder.may_pause = False
    forwarder.look(10)
    assert not forwarder.pauses()
    forwarder.may_pause = True
    forwarder.look()
    assert forwarder.pauses() == 1


def test_it_reads_for_a_moment_between_two_pauses(forwarder: Forwarder) -> None:
    forwarder.look(10)
    for _ in range(int((PAUSE_S + READS_S) / TICK_S) - 1):
        forwarder.look()
    assert forwarder.pauses() == 1
    forwarder.look(2 * TICK_S)
    assert forwarder.pauses() == 2


def test_a_need_ends_the_pause_and_keeps_off_the_next_one(forwarder: Forwarder) -> None:
    forwarder.look(10)
    forwarder.pace.need()
    forwarder.pace.need()
    assert forwarder.tail.mock_calls == [call.pause(3, PAUSE_S), call.resume(3)]
    forwarder.look()
    forwarder.look(NEEDED_S)
    assert forwarder.pauses() == 1
    forwarder.look()
    assert forwarder.pauses() == 2
