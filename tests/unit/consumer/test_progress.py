"""The consumer's rule against publishers that are killed, overlap and repeat, and against one that loses an event."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiveio.consumer.progress import Progress
from hiveio.consumer.reading import parse_position
from hiveio.errors import Corrupt, Invalid

Event = tuple[bytes, bytes | None]  # position, previous


def log(length: int) -> list[Event]:
    """Events of a log: some transactions with several, some offsets without any."""
    positions = [f"3:{offset * 2}:{index}".encode() for offset in range(length) for index in range(1 + offset % 3)]
    return list(zip(positions, [None, *positions], strict=False))


@st.composite
def topics(draw: st.DrawFn) -> tuple[list[Event], list[Event]]:
    """A log and what publishers made of it: each session resumes after the last record, then sends in order."""
    events = log(draw(st.integers(1, 8)))
    topic: list[Event] = []
    sessions: list[int] = []  # what each would send next
    for _ in range(draw(st.integers(1, 40))):
        if not sessions or draw(st.integers(0, 4)) == 0:
            sessions.append(events.index(topic[-1]) + 1 if topic else 0)
        session = draw(st.integers(0, len(sessions) - 1))
        if sessions[session] < len(events):
            topic.append(events[sessions[session]])
            sessions[session] += 1
    return events, topic


def accepted(progress: Progress, topic: Iterable[Event]) -> list[Event]:
    return [event for event in topic if progress.take(*event)]


@given(topics(), st.data())
def test_each_event_once_in_order_over_any_restart(made: tuple[list[Event], list[Event]], data: st.DataObject) -> None:
    events, topic = made
    restart = data.draw(st.integers(0, len(topic)))
    first = Progress()
    before = accepted(first, topic[:restart])
    after = accepted(Progress(first.last), topic[restart:])  # what a commit's note keeps
    assert [*before, *after] == events[: len(before) + len(after)]
    assert len(before) + len(after) == len(set(topic))


@given(st.integers(3, 9), st.data())
def test_a_missing_event_stops(length: int, data: st.DataObject) -> None:
    events = log(length)
    missing = data.draw(st.integers(1, len(events) - 2))
    progress = Progress()
    with pytest.raises(Corrupt, match="events are missing"):
        accepted(progress, [*events[:missing], *events[missing + 1 :]])
    assert progress.last == events[missing - 1][0], "nothing after the gap counts as seen"


def test_what_comes_first_is_taken_whatever_its_position() -> None:
    assert Progress().take(b"3:7:0", b"3:6:1")


def test_a_position_of_another_log_concerns_its_record_alone() -> None:
    progress = Progress(b"3:7:0")
    with pytest.raises(Invalid, match="of another log"):
        progress.take(b"2:9:0", b"2:8:0")
    assert progress.last == b"3:7:0"


@pytest.mark.parametrize(
    "text", [b"", b"1:2", b"1:2:3:4", b"a:b:c", b"\xff", b"-1:2:3", b"1:2: 3", b"1:%b:0" % (b"9" * 5000)]
)
def test_no_position(text: bytes) -> None:
    with pytest.raises(Invalid, match="must look like"):
        parse_position(text)
    with pytest.raises(Invalid):
        Progress(text)
    progress = Progress(b"3:7:0")
    with pytest.raises(Invalid, match="must look like"):
        progress.take(text, b"3:7:0")
    assert progress.last == b"3:7:0", "it does not become the last one seen, also where it names the one before"


def test_what_is_not_to_be_handled_stops_nothing() -> None:
    progress = Progress(b"3:7:0")
    for position, previous in [(b"none", None), (b"2:9:0", b"2:8:0"), (b"3:9:0", b"3:8:0")]:
        progress.observe(position, previous)
    assert progress.last == b"3:9:0"
