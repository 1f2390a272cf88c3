"""Redlock: a lock over one or several independent Redis nodes.

It prevents wasted work and nothing more. The order of the log decides, so a lock that is lost or held twice costs
retries and never an update. It follows Redlock (the algorithm of the Redis documentation) and node-redlock: an instance
holds a lock when a quorum of nodes has granted it, for ``ttl - elapsed - drift``. The drift is ``drift factor * ttl +
2 ms``, and the time counts from before the first request on a monotonic clock.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from hiveio.config import Settings
from hiveio.errors import HiveError
from hiveio.redis import Argument, Redis, Script

_LOCK = Script("lock")
_RELEASE = -1
DRIFT_MS = 2
TURNS = 20  # in the time to live of a lock
LOCKED = "What this command needs is locked by another instance. Try again later."
GRACE_S = 0.02  # that the other nodes have to say their reasons when a quorum is no longer possible


class Locked(NamedTuple):
    """The result of an attempt to lock. ``until`` is the monotonic time up to which the lock is surely held, or 0 if it
    is not. ``contended`` says that another instance waits for it. ``reason`` names each node that refused, and why.
    ``away`` says that too few nodes answered. ``waiters_ahead`` counts the instances that have waited longer for it.
    ``after`` are the last records of those that had the locks before, which may be under way still."""

    until: float
    contended: bool = False
    reason: str = ""
    away: bool = False
    waiters_ahead: int = 0
    after: tuple[str, ...] = ()


UNLOCKED = Locked(math.inf)  # nobody is asked, and nothing expires


class LockBusy(HiveError):
    """An aggregate cannot be used at once: another instance has its lock, or it is being opened again."""


class Retries:
    """How often an instance tries to lock an aggregate again, and after which pauses."""

    def __init__(self, settings: Settings) -> None:
        self.count = settings.lock_retry_count
        self._delay_ms, self._jitter_ms = settings.lock_retry_delay_ms, settings.lock_retry_jitter_ms

    def delay_s(self) -> float:
        return (self._delay_ms + random.random() * self._jitter_ms) / 1000


class Turn:
    """How long the holder of a lock keeps it: until the lock expires, or until the end of its turn if others wait. It
    was told whether others wait when it locked, so it asks again at the end of its turn. Who is ``unlocked`` keeps
    nothing, so its turn does not end."""

    __slots__ = ("_contended", "_ends_at", "unlocked", "until")

    def __init__(self) -> None:
        self.until = 0.0  # the monotonic time up to which the lock is surely held
        self.unlocked = False
        self._ends_at = 0.0
        self._contended = False

    def begin(self, locked: "Locked", length_s: float) -> None:
        self.until, self._contended, self.unlocked = locked.until, locked.contended, locked is UNLOCKED
        self._ends_at = math.inf if self.unlocked else time.monotonic() + length_s

    def renewed(self, locked: "Locked", length_s: float) -> None:
        """The lock was renewed at the end of the turn. If nobody waits, another turn begins."""
        self.begin(locked, 0.0 if locked.contended else length_s)

    @property
    def holds(self) -> bool:
        """Whether there is a lock to release."""
        return self.until > 0 and not self.unlocked

    def end(self) -> None:
        """The lock is released."""
        self.until = 0.0

    def must_yield(self, now: float, renew: Callable[[], None]) -> bool:
        """Whether the lock is lost, or the turn is over while another instance waits. ``renew`` asks whether one
        waits."""
        if now < self._ends_at:
            return now >= self.until
        if not self._contended and now < self.until:
            renew()
        return self._contended or now >= self.until


class Redlock:
    """The locks of one instance, which its token owns. A call locks all its aggregates or none."""

    def __init__(self, nodes: Sequence[Redis], token: str, ttl_ms: int, drift_factor: float, remember_ms: int) -> None:
        self._nodes, self.token = nodes, token
        self._valid_s = (ttl_ms - drift_factor * ttl_ms - DRIFT_MS) / 1000
        self.turn_s = ttl_ms / 1_000 / TURNS  # for which a holder may keep a lock while others wait
        self._common = (ttl_ms, remember_ms, ttl_ms // TURNS)
        self._quorum = len(nodes) // 2 + 1

    def acquire(
        self, scope: str, aggregates: Sequence[str], done: Callable[[Locked], None], waited_s: float = 0.0
    ) -> None:
        """Lock these aggregates, or extend their locks, and call ``done`` with the result: as soon as a quorum has
        granted them, and else when every node has answered or has had its time.

        Of several instances that ask again and again, the one that has waited longest is the first to get a lock, if
        it has waited for a turn or more. Until then any instance gets a free lock, because idle locks cost more than
        order is worth. Each says for how long it has waited, so all nodes see the same order without comparing clocks.
        """
        own: list[Argument] = [self.token, int(waited_s * 1000), len(aggregates), *sorted(aggregates), ""]
        start = time.monotonic()
        votes: dict[Redis, Any] = {}
        timer: asyncio.TimerHandle | None = None
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True
            if timer is not None:
                timer.cancel()
            done(self._count(scope, aggregates, votes, start))

        def voted(node: Redis, future: "asyncio.Future[tuple[Any, Any]]") -> None:
            nonlocal timer
            votes[node] = future.exception() or future.result()[1]
            if ended:
                return
            yes = sum(_is_yes(vote) for vote in votes.values())
            if yes >= self._quorum or len(votes) == len(self._nodes):
                end()
            elif len(votes) - yes > len(self._nodes) - self._quorum and timer is not None:
                timer.cancel()
                timer = asyncio.get_running_loop().call_later(GRACE_S, end)

        if len(self._nodes) > 1:  # the client of a single node has a bound of its own
            timer = asyncio.get_running_loop().call_later(self._valid_s / 2, end)
        for node in self._nodes:
            node.call(_LOCK, scope, self._common, own).add_done_callback(partial(voted, node))

    def _count(self, scope: str, aggregates: Sequence[str], votes: dict[Redis, Any], start: float) -> Locked:
        reasons, yes, silent, contended, waiters_ahead = [], 0, 0, False, 0
        after: set[bytes] = set()
        for node in self._nodes:
            vote = votes.get(node)
            if vote is None or isinstance(vote, BaseException):
                silent += 1
                reasons.append(f"{node.shown}: {vote or 'no answer in time'}")
            elif _is_yes(vote):
                yes += 1
                contended = contended or vote[1] == 1
                after.update(vote[2:])
            else:
                reasons.append(f"{node.shown}: {vote[1].decode()} is locked by another instance")
                waiters_ahead = max(waiters_ahead, vote[2])
        until = start + self._valid_s
        if yes >= self._quorum and until > time.monotonic():
            return Locked(until, contended, after=tuple([tip.decode() for tip in after]))
        if yes or silent:
            self.release(scope, aggregates)  # a node answers in order, so this also releases a lock that it grants late
        away = len(self._nodes) - silent < self._quorum
        return Locked(
            0.0,
            reason="; ".join(reasons) or "the lock was granted after it had expired",
            away=away,
            waiters_ahead=waiters_ahead,
        )

    def release(self, scope: str, aggregates: Sequence[str], tip: str = "") -> None:
        """Release locks. ``tip`` is the last record of the caller, if that may be under way: the next holder waits for
        it. This call does not wait: if a node does not get the request, the lock expires there."""
        own: list[Argument] = [self.token, _RELEASE, len(aggregates), *aggregates, tip]
        for node in self._nodes:
            node.call(_LOCK, scope, self._common, own).add_done_callback(lambda future: future.exception())


def _is_yes(vote: Any) -> bool:
    return not isinstance(vote, BaseException) and vote[0] == 1
