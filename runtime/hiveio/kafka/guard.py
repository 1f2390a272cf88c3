"""Calls into the Kafka client where an error must not go on by itself: in its callbacks, and around a thread's work.

An error of the client is sometimes an object of a class without any base but ``object`` (KafkaError, where a callback
or an assignment failed): neither ``except Exception`` nor ``except BaseException`` catches it, and it ends a thread.
"""

import random
import sys
from collections.abc import Callable

from confluent_kafka import KafkaError, KafkaException

FIRST_S, LONGEST_S = 0.25, 10.0  # between two attempts


def tried(work: Callable[[], object]) -> object | None:
    """Do it. What it raised, whatever that is; None when it went well.

    The error is given and not raised again: Python must not chain another exception to one that is none.
    """
    try:
        work()
    except:  # noqa: E722 (see above)
        return sys.exc_info()[1]
    return None


def error_of(failure: object) -> KafkaError | None:
    """The client's error in what was raised; a callback into which it came is a SystemError, caused by it."""
    while isinstance(failure, BaseException) and not isinstance(failure, KafkaException):
        failure = failure.__cause__
    if isinstance(failure, KafkaException) and failure.args:
        failure = failure.args[0]
    return failure if isinstance(failure, KafkaError) else None


def text(failure: object) -> str:
    """An error, in words."""
    error = error_of(failure)
    return error.str() if error is not None else f"{type(failure).__name__}: {failure}"


class Pauses:
    """The pauses between attempts: they double, with jitter, up to LONGEST_S."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def reset(self) -> None:
        """The attempt has succeeded: begin with the shortest pause again."""
        self._next_s = FIRST_S

    def next_s(self) -> float:
        pause_s, self._next_s = self._next_s, min(LONGEST_S, self._next_s * 2)
        return pause_s * random.uniform(0.5, 1.0)
