"""How an instance reads the log of a scope: at once, or with pauses while it needs nothing that is in there.

An instance that forwards all its commands of a scope reads the log to see who works there, and to go on by itself where
the leader is silent. To follow each record at once would cost it a wake, and Kafka a request, for a few records. With
pauses it reads many at a time, and is a second behind. Nothing rests on that: the protocol bears an instance that is
behind by any number of records.
"""

import time
from collections.abc import Callable

from hiveio.kafka.tail import Tail

PAUSE_S = 1.0
READS_S = 0.1  # between two pauses, at least
NEEDED_S = 1.0  # after the last need, for which the log is read at once


class Pace:
    """That of one scope."""

    def __init__(self, tail: Tail, partition: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._tail, self._partition, self._clock = tail, partition, clock
        self._needed, self._forwarded = True, False  # since the last look
        self._needed_at = self._paused_until = 0.0

    def need(self) -> None:
        """Somebody waits for what is in the log, or will wait soon: read it at once."""
        self._needed = True
        if self._paused_until:
            self._paused_until = 0.0
            self._tail.resume(self._partition)

    def forwarded(self) -> None:
        """A command of the scope was forwarded, which needs nothing of the log."""
        self._forwarded = True

    def look(self, may_pause: Callable[[], bool]) -> None:
        """Pause, where commands were forwarded since the last look, and nothing was needed for a while."""
        now, needed, forwarded = self._clock(), self._needed, self._forwarded
        self._needed = self._forwarded = False
        if needed:
            self._needed_at = now
        elif forwarded and now > max(self._needed_at + NEEDED_S, self._paused_until + READS_S) and may_pause():
            self._paused_until = now + PAUSE_S
            self._tail.pause(self._partition, PAUSE_S)
