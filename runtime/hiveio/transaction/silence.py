"""Silence: records that are not read back, and events that cannot be published, for seconds.

Kafka may be slow, or away; then it is waited for. Or another leader was elected, and the old one, which was cut off
from the others, is reached from here and still answers: then clients are made anew, beginning with brokers that know
better.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from hiveio.config import Settings
from hiveio.kafka.leaders import Leaders
from hiveio.transaction.leader import Leader
from hiveio.transaction.scope import Scope

logger = logging.getLogger("hiveio.transaction")

LATE_S = 3.0  # without a record being read back
LOOK_S, LONGEST_LOOK_S = 1.0, 4.0  # between two looks; doubled while the brokers agree
LEARN_S = 60.0  # between two times at which it is asked where the brokers are, while all is well
PAUSE_S, LONGEST_PAUSE_S = 4.0, 60.0  # for new clients to do their work; doubled while they do not


class Silence:
    """Watches the scopes of an instance and their leaders; ``renew`` gets the topics whose clients are to be new."""

    def __init__(
        self,
        settings: Settings,
        scopes: Sequence[Scope],
        leaders: Sequence[Leader],
        renew: Callable[[set[str]], Awaitable[None]],
    ) -> None:
        self._log, self._events = settings.log_topic, settings.written_topic
        self._scopes, self._leaders, self._renew = scopes, leaders, renew
        self._brokers = Leaders(settings, self._log)
        self._learnt_s = float("-inf")
        self._look_s, self._pause_s = LOOK_S, PAUSE_S

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                pause_s = await self.look()
            except Exception:  # whatever it was: the next look may find more
                logger.exception("a fault while another leader was looked for")
                pause_s = PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))

    async def look(self) -> float:
        """How long to wait before the next one."""
        silent = self._silent()
        if not silent:
            self._look_s, self._pause_s = LOOK_S, PAUSE_S
            if time.monotonic() - self._learnt_s > LEARN_S:
                await self._brokers.learn()
                self._learnt_s = time.monotonic()
            return LOOK_S
        if await self._brokers.disagree(*random.choice(silent)):
            await self._renew({topic for topic, _ in silent})
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        else:
            pause_s, self._look_s = self._look_s, min(2 * self._look_s, LONGEST_LOOK_S)
        return pause_s

    def _silent(self) -> list[tuple[str, int]]:
        """The partitions of the log and of the event topic about which there is doubt."""
        now = time.monotonic()
        found = []
        for scope, leader in zip(self._scopes, self._leaders, strict=True):
            oldest = next(iter(scope.journal.pending.values()), None)
            if oldest is not None and now - oldest.started_at > LATE_S:
                found.append((self._log, scope.partition))
            if now - leader.paused_at < 2 * LOOK_S:
                found.append((self._events, scope.partition))
        return found
