"""Aggregates of one scope that this version cannot fold: their commands and reads are refused, all others go on.

A verdict rests on heads and never on states, so records of such an aggregate are judged, applied and published like any
other. Its entry in the cache keeps the events that could not be folded beside the last snapshot, so it says the same
whoever has applied it, and whoever can fold them heals it.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from hiveio.errors import Problem, Quarantined, text_of
from hiveio.transaction.cache import Entry

logger = logging.getLogger("hiveio.quarantine")

MAX_AGGREGATES = 10_000  # in quarantine, and
MAX_EVENT_BYTES = 4_000_000  # of events beside their snapshots, beyond which the scope stops
MAX_UNKNOWN_ACTORS = 1_000  # names that are kept and reported
REASON = 300  # most characters of a reason
SHOWN = 20  # of them in /readyz?verbose


class QuarantinedAggregate(NamedTuple):
    """An aggregate in quarantine: the first record that could not be folded, and the bytes of events from there on."""

    offset: int
    size: int
    reason: str


class Quarantine:
    """The aggregates of a scope that this instance cannot fold, and the actors that it does not have.

    ``entries`` are those aggregates by name. ``healed`` are aggregates that were folded here, and perhaps not in the
    cache yet. ``reported`` are those whose quarantine is in the log of this process.
    """

    def __init__(self, topic: str, partition: int, stop: Callable[[str], None] = lambda reason: None) -> None:
        """``stop`` is called with the reason when there is more in quarantine than the bounds allow."""
        self._topic, self._partition, self._stop = topic, partition, stop
        self.entries: dict[str, QuarantinedAggregate] = {}
        self.healed: set[str] = set()
        self.unknown_actors: set[str] = set()
        self.reported: set[str] = set()
        self._size = 0

    def clear(self) -> None:
        """The scope begins anew. What is found in quarantine again is not reported again; of what is not, it is
        reported that its quarantine has ended."""
        self.entries.clear()
        self.healed.clear()
        self._size = 0

    def update(self, name: str, entry: Entry) -> None:
        """Take note of what an aggregate is now."""
        if entry.head is None:
            return  # others have written it: whether it can be folded is known when it is looked at
        before = self.entries.pop(name, None)
        self._size -= before.size if before else 0
        if not entry.fault:
            if name in self.reported:
                self.reported.discard(name)
                logger.warning("%s is folded again: its quarantine ends", name, extra=self._fields(name))
            return
        self.entries[name] = held = QuarantinedAggregate(entry.unfolded_from, len(entry.unfolded), entry.fault)
        self._size += held.size
        if name not in self.reported:
            if len(self.reported) > 2 * MAX_AGGREGATES:
                self.reported.clear()
            self.reported.add(name)
            logger.critical(
                "%s is quarantined: this version cannot fold its event at %s/%s/%s (%s). It is answered 503 until a "
                "version that can fold it runs; everything else goes on",
                name,
                self._topic,
                self._partition,
                held.offset,
                held.reason,
                extra=self._fields(name) | {"offset": held.offset, "reason": held.reason},
            )
        if len(self.entries) > MAX_AGGREGATES or self._size > MAX_EVENT_BYTES:
            self._stop(
                f"{self._topic}/{self._partition}: this version cannot fold {len(self.entries)} aggregates with "
                f"{self._size} bytes of events since then, the last one {name} at offset {held.offset}; at most "
                f"{MAX_AGGREGATES} and {MAX_EVENT_BYTES} are set aside. Nothing is lost: start a version that can fold "
                "them"
            )

    def add_unknown_actor(self, actor: str) -> None:
        """The log has an aggregate of an actor that is not here. Its heads are kept, and nobody needs its states."""
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
            self._fields(name) | {"offset": held.offset, "reason": held.reason}
            for name, held in list(self.entries.items())[:SHOWN]
        ]

    def _fields(self, name: str) -> dict[str, Any]:
        return {"aggregate": name, "topic": self._topic, "partition": self._partition}


def refusal(name: str) -> Quarantined:
    """The answer to a command or a read of such an aggregate."""
    id = name.partition("/")[2]
    return Quarantined(
        f"{id} cannot be used for now, because this version of the service cannot read its latest events. Nothing was "
        "changed; try again later"
    )


def refusal_of_another() -> Quarantined:
    """The answer to a command that needs such an aggregate beside its own."""
    return Quarantined("something that this command needs cannot be used for now. Nothing was changed; try again later")


def reason(error: BaseException) -> str:
    """One line that can be encoded, whatever an actor has raised."""
    if isinstance(error.__cause__, Problem):
        error = error.__cause__  # what the event lacks; the view has only said whose it is
    text = f"{type(error).__name__}: {text_of(error)}"
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:REASON]
