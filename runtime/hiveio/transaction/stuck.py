"""What is said of a process that cannot go on."""

from hiveio.errors import Conflict, Refused, Stuck, Unavailable, Unknown, text_of
from hiveio.transaction.command import InFlight
from hiveio.transaction.lock import LockBusy
from hiveio.transaction.process import Process

MOST_WAITING = 1_000  # inputs of a process
MOST_WHY = 1_000  # characters of why a process is stuck


def check_room(name: str, process: bytes) -> None:
    """Raises Unavailable where so many inputs wait that no more may: then those that come wait on their topics."""
    kept = Process.of(process)
    if len(kept.waiting) >= MOST_WAITING:
        why = f", and it is stuck: {kept.stuck}" if kept.stuck else ""
        raise Unavailable(
            f"{MOST_WAITING} inputs wait for the process {name}{why}; `hiveio saga` retries or skips them"
        )


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
