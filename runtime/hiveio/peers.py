"""What the workers of one process know of each other.

A client asks the process, and whichever worker takes the connection answers. So each answers for all of them: a load
balancer that gets "ready" from one would send requests to another one that still folds its log.
"""

import mmap
from collections.abc import Iterable
from enum import IntEnum


class Health(IntEnum):
    """The health of one worker. One that has not started yet, or has ended, is NOT_READY too."""

    NOT_READY = 0
    READY = 1
    STUCK = 2


class Peers:
    """A byte for each worker, in memory that the master makes before it forks."""

    def __init__(self, size: int = 1) -> None:
        self._healths = mmap.mmap(-1, size)

    def enter(self, taken: Iterable[int]) -> int:
        """In the master: the place of a new worker, beside those of the others."""
        return min(set(range(len(self._healths))).difference(taken))

    def leave(self, place: int) -> None:
        """In the master: this worker has ended."""
        self.report(place, Health.NOT_READY)

    def report(self, place: int, health: Health) -> None:
        self._healths[place] = health

    def others(self, place: int) -> list[Health]:
        """How the other workers are."""
        return [Health(byte) for at, byte in enumerate(self._healths[:]) if at != place]
