"""The leader of a scope: the instance that holds its lease and runs the duties that one instance should do.

The lease promises nothing: two leaders at once cause repeats, and a scope without one is late. An instance should hold
it while its scope is ready, it reaches Kafka, and its duties make progress. Any other instance releases it, and waits
for longer than the others need to take it. When the holder dies, another instance leads once the lease has ended.
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

LEASE_MS = 2_000  # after which another instance takes the lease of a dead holder
RENEW_S = 0.6
LOG_S = 60.0  # between two lines about duties that pause for the same reason
AWAY_S = 2.0  # after a duty that failed; the others ask every RENEW_S
IsLeading = Callable[[], Awaitable[bool]]


class Duty(Protocol):
    """Work that the leader of a scope does. ``name`` is for log lines, as in "publishing bank/0"."""

    name: str

    @property
    def done(self) -> bool:
        """Whether nothing is left to do, so that this instance can end."""

    @property
    def rests(self) -> bool:
        """Whether nothing will be left to do until a further record comes, so that no instance is needed."""

    async def run(self, is_leading: IsLeading) -> None:
        """Do the work while ``is_leading`` says so; it has to be asked all the time, since that renews the lease.
        Raises Unavailable where another instance should try, Corrupt where nobody may go on."""


class Leader:
    """Runs the duties of one scope concurrently, while this instance has the lease."""

    def __init__(self, scope: Scope, cache: Cache, holder: str, duties: Sequence[Duty]) -> None:
        """``holder`` names this instance."""
        self._scope, self._cache, self._holder, self._duties = scope, cache, holder, duties
        self.name = ""  # who leads the scope, as this instance has learned last
        self._renewed_at = 0.0  # 0 while it does not lead
        self._refused_at = float("-inf")  # when it last learned that another instance has the lease
        self._task: asyncio.Task[None] | None = None
        self._reason, self._logged_at = "", 0.0  # why the duties paused, and when that was logged
        scope.applier.take_turns(self._applies)
        self.paused_at = float("-inf")  # when a duty last failed because a backend was away

    @property
    def leads(self) -> bool:
        """Whether this instance has the lease, as far as it knows without asking."""
        return self._renewed_at > 0 and time.monotonic() - self._renewed_at < LEASE_MS / 1000

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self, timeout_s: float) -> None:
        """Finish the duties, within the bound, and release the lease."""
        if self._task is None:
            return
        end = time.monotonic() + timeout_s
        while self._renewed_at and not (self._task.done() or all(duty.done for duty in self._duties)):
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.01)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._release()

    async def _run(self) -> None:
        names = ", ".join(duty.name for duty in self._duties)
        await self._scope.waiting.opened()
        while not self._scope.failed:
            pause, unavailable = RENEW_S, None
            try:
                if not self._scope.state and await self._renew():
                    pause = AWAY_S
                    await self._lead()
                    pause = RENEW_S  # another instance has the lease
            except Unavailable as error:
                self.paused_at, unavailable = time.monotonic(), error
            except Corrupt as error:
                self._scope.fail(str(error))
            except HiveError as error:
                logger.error("%s failed: %s", names, error)
            except Exception:  # a duty finds its position again, so the next try may succeed
                logger.exception("%s failed with an unexpected error", names)
            if pause == AWAY_S:
                await self._release()
            await asyncio.sleep(pause * (0.5 + random.random() / 2))
            if unavailable is not None:
                self._log_pause(names, unavailable)

    def _log_pause(self, names: str, error: Unavailable) -> None:
        """Log one line when the duties paused for a new reason, and one a minute while they go on to pause for it.

        It is called after the pause, and with the error itself: a request fails a moment before the Kafka client
        says that its broker is away, and from then on ``outages.worth_a_line`` counts such a line instead.
        """
        now, reason = time.monotonic(), str(error)
        if reason != self._reason or now - self._logged_at > LOG_S:
            logger.warning("%s is paused: %s", names, error)
            self._reason, self._logged_at = reason, now

    def _applies(self) -> bool:
        """Whether this instance should apply: unless it knows that another one leads. While a scope is being folded,
        everybody applies."""
        return time.monotonic() - self._refused_at > LEASE_MS / 1000 or bool(self._scope.state)

    async def _lead(self) -> None:
        """Run the duties until one ends because another instance has the lease, or fails."""
        self._scope.pace.need()
        running = [asyncio.ensure_future(duty.run(self._is_leading)) for duty in self._duties]
        try:
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                each.result()
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _is_leading(self) -> bool:
        """Whether this instance still has the lease. Raises Unavailable where it should not lead."""
        if self._scope.state:
            raise Unavailable(self._scope.state)
        return await self._renew()

    async def _renew(self) -> bool:
        """Take or renew the lease, if that is due. Returns whether this instance has it."""
        now = time.monotonic()
        if self._renewed_at and now - self._renewed_at < RENEW_S:
            return True
        mirror, before = self._scope.mirror, self._scope.mirror.watermark
        watermark, self.name = await self._cache.lease(self._scope.partition, self._holder, LEASE_MS)
        has_lease = self.name == self._holder
        if mirror.watermark.generation == before.generation:
            # In this way an instance without other work notices that the cache is lost.
            mirror.observe_watermark(watermark, before.offset)
        self._renewed_at, self._refused_at = (now, float("-inf")) if has_lease else (0.0, now)
        return has_lease

    async def _release(self) -> None:
        if self._renewed_at:
            self._renewed_at = 0.0
            try:
                await self._cache.lease(self._scope.partition, self._holder, 0)
            except HiveError:
                pass  # it ends after LEASE_MS
