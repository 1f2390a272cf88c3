"""What happens when a handler raises or hangs: it is tried again, until it works or its attempts are used up."""

import asyncio
import contextvars
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from hiveio.config import Settings
from hiveio.consumer.routing import Counts, Target
from hiveio.envelope import Envelope
from hiveio.errors import Refused, Stop, Unavailable, contained, is_cancelled
from hiveio.fault import about, log_fault
from hiveio.group_commit import Group, current

# The CPU time that a task works before it lets others work. Where it has to commit before that, it is several times as
# long as its last commit took, so that commits take a small part of the time. The other is in real time: a thread that
# waits for a core has worked little in it.
SLICE_S, LONGEST_SLICE_S, OF_A_COMMIT = 0.005, 0.025, 5
LOOK_S = 0.0005  # between two looks at whether it is over
logger = logging.getLogger("hiveio.consumer")

Failure = tuple[Exception, int]  # the last error, and the number of attempts; 0: it waits behind another of its key


class RetryPolicy:
    """Exponential backoff with jitter, and a maximum of attempts.

    A refusal is not tried again: the same record would be refused again. ``Unavailable`` says that a backend cannot be
    reached: it is tried until it works, because all other records would become dead letters too.
    """

    def __init__(self, settings: Settings) -> None:
        self.attempts = settings.consumer_attempts
        self.timeout_s = settings.consumer_timeout_ms / 1000
        self._first_s = settings.consumer_backoff_ms / 1000
        self._longest_s = max(self._first_s, settings.consumer_backoff_limit_ms / 1000)

    def wait_s(self, error: Exception, attempt: int) -> float | None:
        """The time before the next attempt, after this many; None: there is none."""
        if isinstance(error, Refused) or (attempt >= self.attempts and not isinstance(error, Unavailable)):
            return None
        return float(min(self._longest_s, self._first_s * 2 ** min(attempt - 1, 60)) * random.uniform(0.5, 1.0))


class HandlerSlot:
    """A task that runs handlers, one at a time, and since when the present one runs.

    ``blocked_reason`` says why it does not go on, and is None while it does. A ``closing`` slot begins nothing more.
    """

    __slots__ = (
        "_cpu_end",
        "_looks_at",
        "_overdue",
        "_slice_end",
        "_slice_s",
        "blocked_reason",
        "closing",
        "group",
        "idle",
        "slice_is_over",
        "started_at",
        "task",
        "timeout_s",
    )

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s  # of a handler
        self.task: asyncio.Task[None] | None = None
        self.started_at: float | None = None  # None: no handler runs
        self.idle = False  # no handler runs that must be finished
        self.closing = False
        self.blocked_reason: str | None = None
        self._overdue = False
        self._looks_at = self._slice_end = self._cpu_end = 0.0
        self._slice_s = SLICE_S
        self.slice_is_over = False  # it is time to let others work
        self.group = Group()

    def run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        context = contextvars.copy_context()
        context.run(current.set, self.group)
        self.task = asyncio.create_task(self._run(work), name=name, context=context)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            await self.group.rollback()

    async def attempt(self, target: Target, envelope: Envelope) -> Exception | None:
        """Let an actor handle an event outside of a group. Returns None where it worked."""
        alone = current.set(None)
        self.begin()
        try:
            await target.handle(envelope)
        except BaseException as error:
            return self.failure(error)
        finally:
            current.reset(alone)
        self.end()
        return None

    async def commit(self) -> dict[Any, Exception]:
        """Commit what is open. Returns why, for each actor whose effects are not stored, or not all of them."""
        lost: dict[Any, Exception] = {}
        begun_at, factor = time.monotonic(), OF_A_COMMIT if self.group.blocks else 1
        while self.group.open:
            actor, transaction = self.group.open.popitem()
            self.begin()
            try:
                await transaction.commit()
            except BaseException as error:
                lost[actor] = self.failure(error)
        self.end()
        self._slice_s = min(max(SLICE_S, factor * (time.monotonic() - begun_at)), LONGEST_SLICE_S)
        return lost

    async def wait(self, what: Awaitable[Any]) -> None:
        """Wait while no handler runs: a revoke does not wait for this."""
        self.idle, self.started_at = True, None
        try:
            await what
        finally:
            self.idle = False

    def begin(self) -> None:
        """A handler is called now."""
        self.started_at = now = time.monotonic()
        if now > self._looks_at:  # the clock of a thread is slow to read
            left_s = min(self._cpu_end - time.thread_time(), self._slice_end - now)
            self.slice_is_over = left_s <= 0
            self._looks_at = now + max(left_s, LOOK_S)

    def end(self) -> None:
        """No handler runs."""
        self.started_at = None

    def block(self, reason: str | None) -> None:
        self.blocked_reason = reason

    def stop(self) -> None:
        """Begin nothing more."""
        self.closing = True

    def cancel(self, *, idle_only: bool) -> None:
        if self.task is not None and (self.idle or not idle_only):
            self.task.cancel()

    async def give_way(self) -> None:
        """Let other tasks work."""
        self.end()
        await asyncio.sleep(0)
        now = time.monotonic()
        self._cpu_end, self._slice_end = time.thread_time() + self._slice_s, now + LONGEST_SLICE_S
        self._looks_at, self.slice_is_over = now + self._slice_s, False

    def watch(self) -> None:
        """Cancel a handler that hangs. One that does not let itself be cancelled is cancelled again each time."""
        started_at = self.started_at
        if started_at is not None and self.task is not None and time.monotonic() - started_at > self.timeout_s:
            self._overdue = True
            self.task.cancel()
        elif self._overdue:  # the handler has ended without an error, in spite of it
            self._uncancel()

    def failure(self, error: BaseException) -> Exception:
        """What a handler raised, as an error. Raises CancelledError where the closing slot itself was cancelled."""
        self.started_at = None
        cancelled, overdue = isinstance(error, asyncio.CancelledError), self._overdue
        if self.closing and not overdue and is_cancelled(error):
            raise error
        if cancelled or overdue:
            self._uncancel()
        if cancelled and overdue:
            return TimeoutError(f"the handler took longer than CONSUMER_TIMEOUT, {self.timeout_s:g} s")
        return contained(error)

    def _uncancel(self) -> None:
        """The handler was cancelled, and not this task. An actor may have cancelled it too."""
        self._overdue = False
        while self.task is not None and self.task.cancelling():
            self.task.uncancel()


class Attempts:
    """Tries handlers that raise again, as the policy says. ``where`` is the partition, for the log."""

    def __init__(self, policy: RetryPolicy, counts: Counts, where: str) -> None:
        self._policy, self._counts, self._where = policy, counts, where

    async def more(
        self,
        slot: HandlerSlot,
        target: Target,
        offset: int,
        envelope: Envelope,
        failure: Exception,
        make: Callable[[], Envelope],
        *,
        once: bool = False,
    ) -> Failure | None:
        """Try again after ``failure``, in growing intervals. Returns None when it worked, else the last failure.

        Each attempt gets a new envelope from ``make``, so that no attempt sees what another has changed. With ``once``
        it is tried again only while a backend is unavailable. Attempts that found a backend unavailable do not count as
        failed attempts, and their intervals grow separately.
        """
        attempt = failed = waited = 0  # attempts; those that failed; those since then that found a backend unavailable
        where = f"{self._where}/{offset}"
        while True:
            if isinstance(failure, Stop):
                raise failure
            if slot.closing:
                raise asyncio.CancelledError  # it is not done: the next owner tries it
            attempt += 1
            if away := isinstance(failure, Unavailable):
                waited += 1
            else:
                failed, waited = failed + 1, 0
                slot.block(None)
            wait_s = self._policy.wait_s(failure, waited if away else failed)
            if wait_s is None or (once and not away):
                slot.block(None)
                if not once and not isinstance(failure, Refused):
                    log_fault(logger, failure, target.contract, envelope, record=where, attempts=failed)
                return failure, failed
            text = f"{where}: attempt {attempt} failed"
            if waited >= self._policy.attempts:
                slot.block(f"{text}, and it waits for its backend: {failure}")
            if not away or waited.bit_count() == 1:  # what may not end is logged less and less often
                line = f"{text}, the next is in {wait_s:.2f} s: {type(failure).__name__}: {failure}"
                logger.warning("%s", line, extra=about(target.contract, envelope))
            self._counts.retried += 1
            await slot.wait(asyncio.sleep(wait_s))
            try:
                envelope = make()
            except BaseException as error:  # an actor's type may raise any error
                failure = slot.failure(error)
                continue
            found = await slot.attempt(target, envelope)
            if found is None:
                slot.block(None)
                return None
            failure = found
