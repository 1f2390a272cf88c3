"""The states of a pipeline, and which follows which.

::

            open            locked, read          void
    IDLE ─────────▶ OPENING ─────────────▶ OPEN ───────▶ BROKEN
      │              ▲    │ locked elsewhere │ │ must yield │ all read back
      │              │    ▼                  │ ▼            │
      │              └── PAUSED ◀────────────┼─┴────────────┘
      ▼                    │                 │
    CLOSED ◀───────────────┴─────────────────┘

An OPEN pipeline without anything to do is closed when its last record is applied, a PAUSED one at the end of its pause.
An IDLE one that was made only to know of a command is closed when that is answered without it.
"""

from enum import Enum


class State(Enum):
    IDLE = "idle"
    OPENING = "being locked and read"
    OPEN = "open"
    BROKEN = "being performed again"
    PAUSED = "locked by another instance"
    CLOSED = "closed"


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
    """``after``, if a pipeline may go there. Raises AssertionError."""
    if after not in TRANSITIONS[before]:
        raise AssertionError(f"a pipeline never goes from {before.name} to {after.name}")
    return after
