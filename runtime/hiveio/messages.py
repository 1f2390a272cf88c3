"""The messages of actors, and the state that they lead to: the classes from which users derive theirs."""

import typing
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

# The decorators tell type checkers that the classes derived from these are frozen, as they are.


@typing.dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Command(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks an actor for something. Comes from outside and refuses unknown fields; a class may relax that."""


@typing.dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Query(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks an actor for an answer that changes nothing: decoded from path and query string of a ``GET``.

    A query may name a ``path`` of its own; otherwise it has that of its actor.
    """

    path: ClassVar[str] = ""


@typing.dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Event(Struct, frozen=True):
    """Says what happened. Comes from the log, so fields it does not know are ignored."""


class Tombstone(Event, frozen=True):
    """A record without a value. On a compacted topic it deletes its key, which is in ``context``.

    A consumer passes tombstones to a ``perform`` that takes this class, and skips them otherwise.
    """


class Deadline(Event, frozen=True):
    """Says to a process that a time is over. It comes from no topic: ``tx.schedule`` asks for it."""


class CommandRefused(Event, frozen=True):
    """Says to a process that a command which it has sent was refused, so nothing has happened.

    ``service`` and ``id`` are those to which it was sent, ``command`` is its type, and ``problem`` the problem document
    of the refusal (RFC 9457) with ``status``, ``title`` and ``detail``.
    """

    service: str
    id: str
    command: str
    problem: dict[str, Any]


class CommandAccepted(Event, frozen=True):
    """Says on an event topic that a command which a process has sent was executed and has led to no event."""

    service: str
    id: str
    command: str


@typing.dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Model(Struct, frozen=True):
    """The state of an aggregate, folded from its events: the snapshot."""
