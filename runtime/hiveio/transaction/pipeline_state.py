"""The states of a pipeline, and the transitions between them.

::

            open            locked, read          void
    IDLE ─────────▶ OPENING ─────────────▶ OPEN ───────▶ BROKEN
      │              ▲    │ locked elsewhere │ │ must yield │ all read back
      │              │    ▼                  │ ▼            │
      │              └── PAUSED ◀────────────┼─┴────────────┘
      ▼                    │                 │
    CLOSED ◀───────────────┴─────────────────┘

An OPEN pipeline without work is closed when its last record is read back, and a PAUSED one at the end of its pause. An
IDLE one that was made for a command is closed if that is answered without entering the queue.
"""

from enum import Enum


class State(Enum):
    IDLE = "idle"
    OPENING = "being locked and read"
    OPEN = "open"
    BROKEN = "being performed again"
    PAUSED = "locked by another instance"
    CLOSED = "closed"

    __hash__ = object.__hash__  # that of Enum is a Python function, and a command makes six look-ups


IDLE, OPENING, OPEN, BROKEN, PAUSED, CLOSED = State

TRANSITIONS: dict[State, frozenset[State]] = {
    IDLE: frozenset({OPENING, CLOSED}),
    OPENING: frozenset({OPEN, PAUSED}),
    OPEN: frozenset({BROKEN, PAUSED, CLOSED}),
    BROKEN: frozenset({PAUSED}),
    PAUSED: frozenset({OPENING, CLOSED}),
    CLOSED: frozenset(),
}


def transition(before: State, after: State) -> State:
    """Returns ``after`` if the transition is allowed. Raises AssertionError."""
    if after not in TRANSITIONS[before]:
        raise AssertionError(f"a pipeline never goes from {before.name} to {after.name}")
    return after
