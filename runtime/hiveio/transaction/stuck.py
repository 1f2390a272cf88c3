"""What is said of a process that cannot go on."""

from hiveio.errors import Conflict, Refused, Stuck, Unavailable, Unknown, text_of
from hiveio.transaction.command import InFlight
from hiveio.transaction.lock import LockBusy

MOST_WHY = 1_000  # characters of why a process is stuck


def sticks(command: InFlight, error: Exception | None) -> bool:
    """Whether a process cannot go on because of an error of its actor: its input waits until somebody looks at it."""
    if error is None or command.input is None or not command.input.of_process:
        return False
    return not isinstance(error, Unavailable | Conflict | Unknown | LockBusy)


def why(error: Exception | None) -> str:
    text = text_of(error) if error is not None else ""
    return (text if isinstance(error, Stuck) else f"{type(error).__name__}: {text}")[:MOST_WHY]


def traceback_of(error: Exception | None) -> Exception | None:
    """Of a fault; what the actor says itself needs none."""
    return None if isinstance(error, Stuck | Refused) else error
