"""Aggregates of one scope that this version cannot fold. Their commands and reads are refused; all others are served.

A verdict depends on heads and never on states, so records of such an aggregate are judged, applied and published like
all others. Its entry in the cache keeps the events that could not be folded next to the last snapshot. So the entry is
the same whichever instance has applied it, and any instance that can fold the events heals it.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from hiveio.errors import Problem, Quarantined, text_of
from hiveio.transaction.entry import Entry

logger = logging.getLogger("hiveio.quarantine")

MAX_AGGREGATES = 10_000  # in quarantine, beyond which the scope stops
MAX_EVENT_BYTES = 4_000_000  # of events that are not folded, beyond which the scope stops
MAX_UNKNOWN_ACTORS = 1_000  # names that are kept and reported
REASON = 300  # the most characters of a reason
SHOWN = 20  # aggregates in /readyz?verbose


class QuarantinedAggregate(NamedTuple):
    """An aggregate in quarantine: the offset of the first record that could not be folded, the bytes of its events from
    there on, and why they could not be folded."""

    offset: int
    size: int
    reason: str


class Quarantine:
    """The aggregates of a scope that this instance cannot fold, and the actors that it does not have.

    ``entries`` are these aggregates by name. ``healed`` are aggregates that were folded here and perhaps not yet in the
    cache. ``reported`` are those whose quarantine this process has logged.
    """

    def __init__(self, topic: str, partition: int, stop: Callable[[str], None] = lambda reason: None) -> None:
        """``stop`` is called with the reason when the quarantine exceeds its bounds."""
        self._topic, self._partition, self._stop = topic, partition, stop
        self.entries: dict[str, QuarantinedAggregate] = {}
        self.healed: set[str] = set()
        self.unknown_actors: set[str] = set()
        self.reported: set[str] = set()
        self._size = 0

    def clear(self) -> None:
        """The scope starts again. An aggregate that is found in quarantine again is not reported again; one that is not
        is reported as folded again."""
        self.entries.clear()
        self.healed.clear()
        self._size = 0

    def update(self, name: str, entry: Entry) -> None:
        """Take note of the new entry of an aggregate."""
        if entry.head is None:
            return  # others have written it; whether it can be folded is found out when it is read
        before = self.entries.pop(name, None)
        self._size -= before.size if before else 0
        if not entry.fault:
            if name in self.reported:
                self.reported.discard(name)
                logger.warning("%s is folded again: its quarantine ends", name, extra=self._fields(name))
            return
        self.entries[name] = found = QuarantinedAggregate(entry.unfolded_from, len(entry.unfolded), entry.fault)
        self._size += found.size
        if name not in self.reported:
            if len(self.reported) > 2 * MAX_AGGREGATES:
                self.reported.clear()
            self.reported.add(name)
            logger.critical(
                "%s is quarantined: this version cannot fold its event at %s/%s/%s (%s). Its requests are answered 503 "
                "until a version runs that can fold it; all other aggregates are served",
                name,
                self._topic,
                self._partition,
                found.offset,
                found.reason,
                extra=self._fields(name) | {"offset": found.offset, "reason": found.reason},
            )
        if len(self.entries) > MAX_AGGREGATES or self._size > MAX_EVENT_BYTES:
            self._stop(
                f"{self._topic}/{self._partition}: this version cannot fold {len(self.entries)} aggregates with "
                f"{self._size} bytes of events, the last one {name} at offset {found.offset}; at most {MAX_AGGREGATES} "
                f"aggregates and {MAX_EVENT_BYTES} bytes are set aside. Nothing is lost: start a version that can fold "
                "them"
            )

    def add_unknown_actor(self, actor: str) -> None:
        """The log has an aggregate of an actor that this service does not have. Its heads are kept; nobody needs its
        state."""
        if actor not in self.unknown_actors and len(self.unknown_actors) < MAX_UNKNOWN_ACTORS:
            self.unknown_actors.add(actor)
            logger.warning(
                "the log has aggregates of %s and no actor of that name: they are left as they are. If the actor was "
                'renamed, give it name = "%s"',
                actor,
                actor,
                extra={"topic": self._topic, "partition": self._partition, "actor": actor},
            )

    def summary(self) -> list[dict[str, Any]]:
        """The first of them, for those who operate the service."""
        return [
            self._fields(name) | {"offset": found.offset, "reason": found.reason}
            for name, found in list(self.entries.items())[:SHOWN]
        ]

    def _fields(self, name: str) -> dict[str, Any]:
        return {"aggregate": name, "topic": self._topic, "partition": self._partition}


def refusal(name: str) -> Quarantined:
    """The answer to a command or a read of such an aggregate."""
    id = name.partition("/")[2]
    return Quarantined(
        f"{id} cannot be used for now, because this version of the service cannot read its latest events. Nothing was "
        "changed. Try again later."
    )


def refusal_of_another() -> Quarantined:
    """The answer to a command that needs such an aggregate in addition to its own."""
    return Quarantined(
        "Another aggregate that this command needs cannot be used for now. Nothing was changed. Try again later."
    )


def reason(error: BaseException) -> str:
    """The error in one line that can be encoded, whatever an actor has raised."""
    if isinstance(error.__cause__, Problem):
        error = error.__cause__  # it says what is wrong with the event; the view has added only the aggregate
    text = f"{type(error).__name__}: {text_of(error)}"
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:REASON]
