"""The leader of a scope: the instance that holds its lease, and so does what one instance is enough for.

The lease promises nothing: two leaders at once cost repeats, and none costs time. It is for an instance whose scope is
ready, that reaches Kafka, and whose duties get on. Any other gives it back, and stays away for longer than the others
need to take it. A dead holder is succeeded when its lease ends.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from hiveio.errors import Corrupt, HiveError, Unavailable
from hiveio.transaction.cache import Cache
from hiveio.transaction.scope import Scope

logger = logging.getLogger("hiveio.publisher")

LEASE_MS = 2_000  # a dead holder is succeeded after it
RENEW_S = 0.6
LOG_S = 60.0  # between two lines about duties that pause for the same reason
AWAY_S = 2.0  # after a duty that failed; the others ask every RENEW_S
Held = Callable[[], Awaitable[bool]]


class Duty(Protocol):
    """What the leader of a scope does. ``name`` says it in log lines, as in "publishing bank/0"."""

    name: str

    @property
    def done(self) -> bool:
        """Whether nothing is left to do, so that this instance may end."""

    async def run(self, held: Held) -> None:
        """Do it while ``held`` says that this instance leads, which is to be asked all the time. Raises Unavailable
        where another instance should try, Corrupt where nobody may."""


class Leader:
    """Runs the duties of one scope, side by side, while this instance has the lease."""

    def __init__(self, scope: Scope, cache: Cache, holder: str, duties: Sequence[Duty]) -> None:
        """``holder`` names this instance."""
        self._scope, self._cache, self._holder, self._duties = scope, cache, holder, duties
        self._renewed_at = 0.0  # 0: it does not lead
        self._task: asyncio.Task[None] | None = None
        self._reason, self._logged_at = "", 0.0  # why the duties paused, and when that was logged
        self.paused_at = float("-inf")  # when it last paused, because Kafka did not take or give what it has to

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self, timeout_s: float) -> None:
        """Do what is left of the duties, within the bound, and hand the lease on."""
        if self._task is None:
            return
        end = time.monotonic() + timeout_s
        while self._renewed_at and not (self._task.done() or all(duty.done for duty in self._duties)):
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.01)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._give_back()

    async def _run(self) -> None:
        names = ", ".join(duty.name for duty in self._duties)
        while not self._scope.failed:
            pause = RENEW_S
            try:
                if not self._scope.state and await self._held():
                    pause = AWAY_S
                    await self._lead()
                    pause = RENEW_S  # another instance has the lease
            except Unavailable as error:
                self._log_pause(names, str(error))
            except Corrupt as error:
                self._scope.fail(str(error))
            except HiveError as error:
                logger.error("%s fails: %s", names, error)
            except Exception:  # a duty finds its place anew: whatever it was, the next time it may go on
                logger.exception("a fault while %s", names)
            if pause == AWAY_S:
                await self._give_back()
            await asyncio.sleep(pause * (0.5 + random.random() / 2))

    def _log_pause(self, names: str, reason: str) -> None:
        """One line when the duties pause for another reason, and one a minute for as long as they do."""
        before, self.paused_at = self.paused_at, time.monotonic()
        goes_on = reason == self._reason and self.paused_at - before < LOG_S
        if not goes_on or self.paused_at - self._logged_at > LOG_S:
            logger.warning("%s pauses: %s", names, reason)
            self._reason, self._logged_at = reason, self.paused_at

    async def _lead(self) -> None:
        """Until the first duty ends, which sees that the lease is another's; or fails."""
        running = [asyncio.ensure_future(duty.run(self._leads)) for duty in self._duties]
        try:
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                each.result()
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _leads(self) -> bool:
        """Whether this instance still has the lease. Raises Unavailable where it should not have it."""
        if self._scope.state:
            raise Unavailable(self._scope.state)
        return await self._held()

    async def _held(self) -> bool:
        now = time.monotonic()
        if self._renewed_at and now - self._renewed_at < RENEW_S:
            return True
        mirror, before = self._scope.mirror, self._scope.mirror.watermark
        watermark, held = await self._cache.lease(self._scope.partition, self._holder, LEASE_MS)
        if (
            mirror.watermark.generation == before.generation
        ):  # so an instance without work notices a cache that was lost
            mirror.observe_watermark(watermark, before.offset)
        self._renewed_at = now if held else 0.0
        return held

    async def _give_back(self) -> None:
        if self._renewed_at:
            self._renewed_at = 0.0
            try:
                await self._cache.lease(self._scope.partition, self._holder, 1)
            except HiveError:
                pass  # it ends by its time
