"""The records that those who had a lock before have under way: who has it now waits for them.

An instance gives up a lock as soon as its turn is over, while its last records are on their way into the log. A command
that the next holder performed without them would be void. Every instance reads the log, so the next holder has them as
soon as the one that wrote them.
"""

import asyncio
from collections.abc import Callable, Sequence

from hiveio.transaction.rule import writer_of
from hiveio.transaction.view import View

WAIT_S = 0.1  # at most: a record that never comes into the log holds up nobody for longer


class _Waiting:
    """Who waits for these records."""

    __slots__ = ("done", "records", "timer")

    def __init__(self, records: Sequence[str], done: Callable[[], None]) -> None:
        self.records, self.done = records, done
        self.timer: asyncio.TimerHandle


class Predecessors:
    """Those that wait for records of others in one scope."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._waiting: list[_Waiting] = []

    def wait(self, records: Sequence[str], done: Callable[[], None]) -> None:
        """Call ``done`` once these records are judged, at the latest after WAIT_S."""
        if self._judged(records):
            done()
            return
        each = _Waiting(records, done)
        each.timer = asyncio.get_running_loop().call_later(WAIT_S, self._end, each)
        self._waiting.append(each)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def moved(self) -> None:
        """The view has judged more records."""
        for each in [each for each in self._waiting if self._judged(each.records)]:
            self._end(each)

    def _judged(self, records: Sequence[str]) -> bool:
        """A writer's records come in the order of their numbers, so the latest one says which of them have come."""
        for record in records:
            name, number = writer_of(record)
            latest = self._view.state.writers.get(name)
            if latest is None or latest.number < number:
                return False
        return True

    def _end(self, each: _Waiting) -> None:
        self._waiting.remove(each)
        each.timer.cancel()
        each.done()
