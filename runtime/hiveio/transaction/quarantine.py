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

AGGREGATES = 10_000  # in quarantine, and
EVENTS_BYTES = 4_000_000  # of events beside their snapshots, beyond which the scope stops
STRANGERS = 1_000  # names of actors that are not here, and are told
REASON = 300  # most characters of a reason
SHOWN = 20  # of them in /readyz?verbose


class Held(NamedTuple):
    """An aggregate in quarantine: the first record that could not be folded, and the bytes of events from there on."""

    offset: int
    size: int
    reason: str


class Quarantine:
    """What of a scope this instance cannot fold. It holds what the view has met, and what the cache lists."""

    def __init__(self, topic: str, partition: int, stop: Callable[[str], None] = lambda reason: None) -> None:
        """``stop`` is told when there is more of it than the bounds."""
        self._topic, self._partition, self._stop = topic, partition, stop
        self.held: dict[str, Held] = {}
        self.healed: set[str] = set()  # folded here, and perhaps not so in the cache yet
        self.strangers: set[str] = set()  # names of actors that the log has and this service has not
        self.told: set[str] = set()  # in quarantine, as the log says
        self._size = 0

    def forget(self) -> None:
        """The scope is begun anew. What is found again in quarantine is not told again; what is not, has ended."""
        self.held.clear()
        self.healed.clear()
        self._size = 0

    def note(self, name: str, entry: Entry) -> None:
        """The aggregate stands like this now."""
        if entry.head is None:
            return  # others have written it: whether it can be folded is known when it is looked at
        before = self.held.pop(name, None)
        self._size -= before.size if before else 0
        if not entry.fault:
            if name in self.told:
                self.told.discard(name)
                logger.warning("%s is folded again: its quarantine ends", name, extra=self._fields(name))
            return
        self.held[name] = held = Held(entry.since, len(entry.tail), entry.fault)
        self._size += held.size
        if name not in self.told:
            if len(self.told) > 2 * AGGREGATES:
                self.told.clear()
            self.told.add(name)
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
        if len(self.held) > AGGREGATES or self._size > EVENTS_BYTES:
            self._stop(
                f"{self._topic}/{self._partition}: this version cannot fold {len(self.held)} aggregates with "
                f"{self._size} bytes of events since then, the last one {name} at offset {held.offset}; at most "
                f"{AGGREGATES} and {EVENTS_BYTES} are set aside. Nothing is lost: start a version that can fold them"
            )

    def meet(self, actor: str) -> None:
        """The log has an aggregate of an actor that is not here. Its heads are kept, and nobody needs its states."""
        if actor not in self.strangers and len(self.strangers) < STRANGERS:
            self.strangers.add(actor)
            logger.warning(
                "the log has aggregates of %s and no actor of that name: they are left as they are. If the actor was "
                'renamed, give it name = "%s"',
                actor,
                actor,
                extra={"topic": self._topic, "partition": self._partition, "actor": actor},
            )

    def listed(self) -> list[dict[str, Any]]:
        """The first of them, for those who operate the service."""
        return [
            self._fields(name) | {"offset": held.offset, "reason": held.reason}
            for name, held in list(self.held.items())[:SHOWN]
        ]

    def _fields(self, name: str) -> dict[str, Any]:
        return {"aggregate": name, "topic": self._topic, "partition": self._partition}


def refusal(name: str) -> Quarantined:
    """What the client of the aggregate itself is told."""
    id = name.partition("/")[2]
    return Quarantined(
        f"{id} cannot be used for now, because this version of the service cannot read its latest events. Nothing was "
        "changed; try again later"
    )


def refusal_of_another() -> Quarantined:
    """What the client of a command is told that needs a further aggregate."""
    return Quarantined("something that this command needs cannot be used for now. Nothing was changed; try again later")


def reason(error: BaseException) -> str:
    """One line that can be encoded, whatever an actor has raised."""
    if isinstance(error.__cause__, Problem):
        error = error.__cause__  # what the event lacks; the view has only said whose it is
    text = f"{type(error).__name__}: {text_of(error)}"
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:REASON]
