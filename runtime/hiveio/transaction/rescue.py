"""Records whose append failed: where its outcome is unknown, a barrier makes it definite."""

import logging
import random
from typing import TYPE_CHECKING

from hiveio.errors import Problem, backend_away
from hiveio.outages import EVERY_S
from hiveio.transaction.pending import Pending
from hiveio.transaction.record import Barrier
from hiveio.transaction.scope import Scope

if TYPE_CHECKING:
    from hiveio.transaction.engine import Engine

logger = logging.getLogger("hiveio.engine")

BARRIER_AGAIN_S = 0.5  # until a barrier that could not be appended is tried again


class Rescue:
    """Makes room for what waits behind records that do not come back."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._told_at = -EVERY_S  # that Kafka refuses records

    def failed(self, tx: str, reason: str, definite: bool) -> None:
        """An append failed: the record may be in the log, or come later. Make it definite, if it is not."""
        for scope in self._engine.scopes:
            pending = scope.pending.get(tx)
            if pending is not None and definite:
                self._refused(scope, pending, reason)
                continue
            scope.proofs.over(tx, read_back=False)
            if pending is None:
                continue
            logger.warning("an append to %s has an unknown outcome: %s", scope.where, reason)
            if isinstance(pending.record, Barrier):  # it is not waited for any more; if it comes, it does no harm
                self._leave(scope, pending, pending.record)
            else:
                self.rescue(scope, pending.owner.target)

    def _leave(self, scope: Scope, pending: Pending, barrier: Barrier) -> None:
        """This barrier is not waited for any more; those that need one get another one, after a pause."""
        del scope.pending[pending.tx]
        pending.settled(pending, None, -1)
        for name in barrier.aggregates:
            self._later(scope, name)

    def _refused(self, scope: Scope, pending: Pending, reason: str) -> None:
        """It is not in the log, and will not be. What is chained behind it is void, and performed again."""
        problem = backend_away(f"Kafka refuses records of {scope.where}: {reason}")
        if (now := self._engine.loop.time()) - self._told_at > EVERY_S:
            self._told_at = now
            logger.error("%s; commands are answered 503, and nothing of them has happened", problem)
        scope.proofs.refused(pending.tx, problem)
        if isinstance(pending.record, Barrier):
            self._leave(scope, pending, pending.record)
        else:
            del scope.pending[pending.tx]
            self._engine.fail(pending.owner, problem)
            self._engine.settled(pending, False, -1)

    def rescue(self, scope: Scope, name: str) -> None:
        """Records of this aggregate do not come back: a barrier makes room for those that wait behind them."""
        run = self._engine.runs.get(name)
        if run is None or not run.in_flight:
            return
        if any(isinstance(p.record, Barrier) and name in p.record.aggregates for p in scope.pending.values()):
            return
        try:
            self._engine.append_barrier(scope, name)
        except Problem as problem:
            logger.warning("no barrier for %s: %s", name, problem)
            self._later(scope, name)

    def _later(self, scope: Scope, name: str) -> None:
        self._engine.loop.call_later(BARRIER_AGAIN_S * (1 + random.random()), self.rescue, scope, name)

    def barriered(self, scope: Scope, barrier: Barrier, offset: int, verdict: bool) -> None:
        """A barrier has moved these heads: what was performed on the state before and has not come by now is void for
        ever. What the cache gave from beyond the barrier, which this instance may read late, is not. One of our own
        that is void (a later record of ours was faster), or of unknown verdict, is followed by another."""
        for name in barrier.aggregates:
            if not verdict:
                self.rescue(scope, name)
                continue
            run = self._engine.runs.get(name)
            for pending in list(run.in_flight.values()) if run is not None else ():
                before = pending.owner.target == name and pending.entries[name].at <= offset
                if before and pending.owner.scope.pending.pop(pending.tx, None):
                    self._engine.settled(pending, False, -1)
