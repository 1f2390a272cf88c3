"""The proof that an instance has judged every record that was acknowledged before a request came.

It has to be as new as the consistency of a read, or of a refusal without a record, asks for:

=============== =====================================================================================================
cached          As the cache is.
current         Everything below the end that Kafka names after the request has come is judged. That includes every
                write acknowledged before, unless the broker that answers was the leader until it was paused or cut
                off: until it learns of the new leader it names an old end.
linearizable    A record that this instance appends after the request has come is read back. That includes every write
                acknowledged before, whatever a broker says.
=============== =====================================================================================================

It is modelled in the TLA+ module Reads.
"""

import asyncio
from collections.abc import Callable
from typing import Literal, get_args

from hiveio.errors import Problem

Consistency = Literal["cached", "current", "linearizable"]
CONSISTENCIES: tuple[Consistency, ...] = get_args(Consistency)


class Proofs:
    """Records of this instance in one scope which prove that reads are linearizable.

    The next record of this instance is the proof for all that wait, whatever it is for; if there is none, a barrier
    without aggregates is appended. One such barrier is in flight at a time, so all that come meanwhile share the next.
    """

    def __init__(self, append: Callable[[], str]) -> None:
        """``append`` appends a barrier without aggregates and returns its transaction id. All that wait get what it
        raises."""
        self._append = append
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Future[bool] | None = None  # for those that wait for a record which is not appended yet
        self.under_way: dict[str, asyncio.Future[bool]] = {}  # by the id of the record that is their proof
        self._barrier = ""  # the id of the one in flight

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
            return  # a command's record is the proof, or another barrier follows the one in flight
        try:
            self._barrier = self._append()
        except Exception as error:  # whatever it is, all that wait get it
            waiting, self._next = self._next, None
            waiting.set_exception(error)
            waiting.exception()  # if nobody waits any more, the loop must not report it

    def appended(self, tx: str) -> None:
        """This instance has appended a record, which is the proof for all that wait."""
        if self._next is not None:
            self.under_way[tx], self._next = self._next, None

    def over(self, tx: str, *, read_back: bool) -> None:
        """The record is read back; or its delivery failed, and those that wait for it need another one."""
        waiting = self.under_way.pop(tx, None)
        if waiting is not None:
            waiting.set_result(read_back)
        self._done(tx)

    def refused(self, tx: str, problem: Problem) -> None:
        """The record will never be in the log, nor would another one now. Those that wait for it get the problem."""
        waiting = self.under_way.pop(tx, None)
        if waiting is not None:
            waiting.set_exception(problem)
            waiting.exception()  # if nobody waits any more, the loop must not report it
        self._done(tx)

    def _done(self, tx: str) -> None:
        if tx == self._barrier:
            self._barrier = ""
            self._loop.call_soon(self._send)
