"""Proof that an instance has judged everything that was acknowledged before a request came.

How new a read, or a refusal without a record, has to be:

=============== =====================================================================================================
cached          As the cache is.
current         Everything below the end that Kafka names after the request has come is judged. That includes every
                write acknowledged before, unless the broker that answers was the leader until it was paused or cut
                off: until it learns of the new leader it names an old end.
linearizable    A record that this instance appends after the request has come is read back. That includes every write
                acknowledged before, whatever a broker says.
=============== =====================================================================================================

Modelled in the TLA+ module Reads.
"""

import asyncio
from collections.abc import Callable
from typing import Literal, get_args

from hiveio.errors import Problem

Consistency = Literal["cached", "current", "linearizable"]
CONSISTENCIES: tuple[Consistency, ...] = get_args(Consistency)


class Proofs:
    """Records of this instance's own in one scope, by which reads know that they are linearizable.

    Who waits is carried by the next record of this instance, whatever it is for; if there is none, a barrier on
    nothing is appended. One barrier at a time is under way, so those that come meanwhile share the next one.
    """

    def __init__(self, append: Callable[[], str]) -> None:
        """``append`` appends a barrier on nothing and returns its transaction id; what it raises, all who wait get."""
        self._append = append
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Future[bool] | None = None  # those who wait for a record that is not appended yet
        self.under_way: dict[str, asyncio.Future[bool]] = {}  # by the record that carries them
        self._barrier = ""  # the one under way

    async def proved(self) -> None:
        """Return once a record appended after this call is read back. Raises Unavailable; bounded by the caller."""
        while True:
            if self._next is None:
                self._next = self._loop.create_future()
                if not self._barrier:
                    self._loop.call_soon(self._send)
            if await asyncio.shield(self._next):
                return

    def _send(self) -> None:
        if self._next is None or self._barrier:
            return  # a command's record carries them, or the barrier under way is followed by another one
        try:
            self._barrier = self._append()
        except Exception as error:  # whatever it is: nobody is left waiting
            waiting, self._next = self._next, None
            waiting.set_exception(error)
            waiting.exception()  # whoever waited may have gone

    def appended(self, tx: str) -> None:
        """This instance has appended a record: it carries all who wait."""
        if self._next is not None:
            self.under_way[tx], self._next = self._next, None

    def over(self, tx: str, *, read_back: bool) -> None:
        """The record is read back, or its delivery failed and those it carried need another one."""
        waiting = self.under_way.pop(tx, None)
        if waiting is not None:
            waiting.set_result(read_back)
        self._done(tx)

    def refused(self, tx: str, problem: Problem) -> None:
        """The record will never be in the log, nor would another one now: those it carried get the problem."""
        waiting = self.under_way.pop(tx, None)
        if waiting is not None:
            waiting.set_exception(problem)
            waiting.exception()  # whoever waited may have gone
        self._done(tx)

    def _done(self, tx: str) -> None:
        if tx == self._barrier:
            self._barrier = ""
            self._loop.call_soon(self._send)
