"""The accepted events of one scope that are not on its event topic yet, as far as is known."""

from typing import NamedTuple

from hiveio.kafka.end_offsets import age_s


class RecordWithEvents(NamedTuple):
    """A record of the log that has events. ``sure`` says that it is accepted; otherwise it is not judged yet."""

    offset: int
    time: int
    last: int  # the index of its last event
    sure: bool = False


class Backlog:
    """What PublisherLag has found out about one scope."""

    def __init__(self) -> None:
        self.end = 0  # of the log
        self.events_end = -1  # of the event topic
        self.published = (-1, -1)  # the position of the last event there: offset and index
        self.clean = 0  # the records between it and this offset have no events to publish
        self.first: RecordWithEvents | None = None  # the first record with events after it

    def log_ends_at(self, end: int) -> None:
        self.end = end

    def moved(self, position: tuple[int, int], events_end: int) -> None:
        """The event topic ends at ``events_end``, and its last event has this position."""
        if position < self.published:  # a repeat, or a recreated topic
            self.clean = 0
        self.published, self.clean = position, max(self.clean, position[0], 0)
        self.events_end = events_end

    def passed(self, offset: int) -> None:
        """The records below this offset have no events to publish."""
        self.clean = offset

    def waits_for(self, first: RecordWithEvents | None) -> None:
        """``first`` is the first record whose events are not published; None says that there is none."""
        self.first = first

    @property
    def first_is_current(self) -> bool:
        """Whether ``first`` is still the first record with events to publish."""
        return self.first is not None and self.first.sure and (self.first.offset, self.first.last) > self.published

    def records(self, judged: int) -> int:
        return max(self.end, judged) - self.first.offset if self.first else 0

    @property
    def age_s(self) -> float:
        return age_s(self.first.time) if self.first else 0.0
