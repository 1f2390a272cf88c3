"""What happens when a handler raises or hangs: when it is tried again, and when that ends."""

import asyncio
import random
import time

from hiveio.config import Settings
from hiveio.errors import Refused, Unavailable, contained, is_cancelled


class Retry:
    """Exponential backoff with jitter, and a maximum of attempts.

    A refusal is not tried again: the same record is refused again. ``Unavailable`` says that a backend is away: it is
    tried until it works, because a dead letter would only be one of many.
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


class Hand:
    """A task that runs handlers, one at a time, and since when the present one runs."""

    __slots__ = ("held", "idle", "overdue", "since", "slice_end", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.since: float | None = None  # None: no handler runs
        self.idle = False  # nothing is in hand that must be finished
        self.overdue = False
        self.slice_end = 0.0  # until then it works before others get their turn
        self.held: str | None = None  # why it stands still, for as long as it does

    def watch(self, timeout_s: float) -> None:
        """End a handler that hangs. One that does not let itself be ended is told again each time."""
        if self.since is not None and self.task is not None and time.monotonic() - self.since > timeout_s:
            self.overdue = True
            self.task.cancel()
        elif self.overdue:  # it has ended as if nothing had happened
            self._go_on()

    def told(self, error: BaseException, timeout_s: float, *, closing: bool) -> Exception:
        """What a handler raised, as an error of it. Raises what is none: the lane, which is ``closing``, cancels it."""
        self.since = None
        cancelled, overdue = isinstance(error, asyncio.CancelledError), self.overdue
        if closing and not overdue and is_cancelled(error):
            raise error
        if cancelled or overdue:
            self._go_on()
        if cancelled and overdue:
            return TimeoutError(f"the handler took longer than CONSUMER_TIMEOUT, {timeout_s:g} s")
        return contained(error)

    def _go_on(self) -> None:
        """What was cancelled was the handler, and not this task; an actor may have cancelled it, too."""
        self.overdue = False
        while self.task is not None and self.task.cancelling():
            self.task.uncancel()
