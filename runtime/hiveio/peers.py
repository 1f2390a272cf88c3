"""What the workers of one process know of each other.

A client asks the process, and whichever worker takes the connection answers. So each answers for all of them: a load
balancer that was told "ready" by one would send requests to another that is folding its log still.
"""

import mmap
from enum import IntEnum


class Health(IntEnum):
    """Of one worker. NONE: there is no worker in this place."""

    NONE = 0
    READY = 1
    NOT_READY = 2
    STUCK = 3


class Peers:
    """A byte for each worker, in memory that the master makes before it forks."""

    def __init__(self) -> None:
        self._healths = mmap.mmap(-1, mmap.PAGESIZE)

    def enter(self) -> int:
        """In the master: the place of a new worker, which is not ready until it says so."""
        place = self._healths.find(b"\0")
        self._healths[place] = Health.NOT_READY
        return place

    def tell(self, place: int, health: Health) -> None:
        """``NONE`` gives the place to another."""
        self._healths[place] = health

    def others(self, place: int | None) -> list[Health]:
        """How the other workers are."""
        return [Health(byte) for at, byte in enumerate(self._healths[:].rstrip(b"\0")) if byte and at != place]
