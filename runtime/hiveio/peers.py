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
        """In the master: a slot for a new worker, next to those that are taken."""
        return min(set(range(len(self._healths))).difference(taken))

    def leave(self, slot: int) -> None:
        """In the master: this worker has ended."""
        self.report(slot, Health.NOT_READY)

    def report(self, slot: int, health: Health) -> None:
        self._healths[slot] = health

    def others(self, slot: int) -> list[Health]:
        """How the other workers are."""
        return [Health(byte) for at, byte in enumerate(self._healths[:]) if at != slot]
