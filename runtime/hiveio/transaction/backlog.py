"""What of one scope is accepted and not on its event topic, as far as was looked."""

from typing import NamedTuple

from hiveio.kafka.end_offsets import age_s


class RecordWithEvents(NamedTuple):
    """A record of the log that has events. ``sure``: it is accepted; else it is not judged yet."""

    offset: int
    time: int
    last: int  # index of its last event
    sure: bool = False


class Backlog:
    """PublisherLag looks, and says here what it has found."""

    def __init__(self) -> None:
        self.end = 0  # of the log
        self.events_end = -1  # of the event topic
        self.published = (-1, -1)  # position of the last event there: offset and index
        self.clean = 0  # what stands between it and this offset has no events
        self.first: RecordWithEvents | None = None  # after it

    def log_ends_at(self, end: int) -> None:
        self.end = end

    def moved(self, position: tuple[int, int], events_end: int) -> None:
        """The last event on the topic, which ends there, has this position."""
        if position < self.published:  # a repeat, or a topic made anew
            self.clean = 0
        self.published, self.clean = position, max(self.clean, position[0], 0)
        self.events_end = events_end

    def passed(self, offset: int) -> None:
        """The records below have no events that are not published."""
        self.clean = offset

    def waits_for(self, first: RecordWithEvents | None) -> None:
        """This record is the first whose events are not published, as far as was looked; or there is none."""
        self.first = first

    @property
    def first_is_current(self) -> bool:
        """Whether ``first`` is still what it was found to be."""
        return self.first is not None and self.first.sure and (self.first.offset, self.first.last) > self.published

    def records(self, judged: int) -> int:
        return max(self.end, judged) - self.first.offset if self.first else 0

    @property
    def age_s(self) -> float:
        return age_s(self.first.time) if self.first else 0.0
