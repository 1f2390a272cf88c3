"""The intake of a partition: which of its records are to be handled, and which are repeats or empty."""

from collections.abc import Iterator
from typing import Any

from hiveio.cloudevents import MARK as CLOUD_EVENT
from hiveio.cloudevents import is_structured
from hiveio.consumer.envelopes import NewRecord
from hiveio.consumer.progress import Progress, RecentKeys
from hiveio.consumer.reading import JSON, MAX_VERSION_DIGITS, event_of, read, undecoded
from hiveio.consumer.routing import Routing
from hiveio.errors import Invalid
from hiveio.kafka import Message
from hiveio.kafka.headers import UNREADABLE, repaired
from hiveio.messages import Tombstone

# Headers that show a repeat, or a form other than an action.
_MARKS = frozenset(
    (
        "hive-position",
        "hive-previous",
        "hive-version",
        "hive-key",
        "hive-outcome",
        "content-type",
        CLOUD_EVENT,
        UNREADABLE,
    )
)


class Intake:
    """Separates new records of one partition from repeats. Records before ``start`` only show what was seen."""

    def __init__(self, start: int, progress: Progress, keys: RecentKeys, routing: Routing) -> None:
        self._start, self._progress, self._is_new_key = start, progress, keys.take
        self._counts, self._codec, self._tombstones = routing.counts, routing.codec, Tombstone in routing.by_type
        self._outcomes = routing.outcomes

    @property
    def last(self) -> bytes | None:
        """The last position of a publisher that was seen; while ``new`` iterates, up to the record that it gave."""
        return self._progress.last

    def new(self, chunk: list[Message]) -> Iterator[NewRecord]:
        """The records to be handled. Repeats and empty records are counted."""
        start, counts, progress, is_new_key = self._start, self._counts, self._progress, self._is_new_key
        codec, decode, tombstones = self._codec, self._codec.decode, self._tombstones
        all_headers = map(Message.headers, chunk)  # a map takes no short cut: see hiveio.kafka.headers
        for message in chunk:
            try:
                headers: Any = next(all_headers)
            except SystemError:
                headers = repaired(message)
            position = previous = key = outcome = wrong = None
            new, odd, keyed, versioned = True, False, False, False
            if headers is not None:
                for name, text in headers:
                    if name in _MARKS:
                        if name == "content-type":
                            if text != JSON and text is not None and is_structured(text):
                                odd = True
                        elif name == "hive-position":
                            position = text
                        elif name == "hive-previous":
                            previous = text
                        elif name == "hive-version":
                            versioned = True
                            if text is not None and not (text.isdigit() and len(text) <= MAX_VERSION_DIGITS):
                                odd = True
                        elif name == "hive-key":
                            keyed, key = True, text
                        elif name == "hive-outcome":
                            outcome = text
                        else:
                            odd = True
                if key is not None:
                    new = is_new_key(message.key(), key, headers)
            offset: Any = message.offset()
            if offset < start:
                if position is not None:
                    progress.observe(position, previous)
                continue
            if position is not None:
                try:
                    new = progress.take(position, previous)
                except Invalid as error:
                    wrong = error
            value: Any = message.value()
            if not new:
                counts.repeated += 1
                continue
            if outcome is not None and outcome not in self._outcomes:
                counts.skipped += 1  # it answers a command of a process, and is no event
                continue
            event: Any
            try:
                if wrong is not None:
                    raise wrong
                if odd or (value is None and tombstones):
                    event, meta = event_of(read(headers or [], value, codec))
                elif value is None:
                    counts.skipped += 1
                    continue
                else:
                    event, meta = decode(value, headers or ())
            except BaseException as error:
                event, meta = undecoded(error), None
            yield NewRecord(message, offset, event, meta, headers, position, keyed, versioned)
