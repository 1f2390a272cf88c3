"""The requests that one worker carries out: how many at once, and for how long."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from hiveio.errors import Unavailable
from hiveio.http.routes import Route
from hiveio.types import Send

MAX_REQUESTS = 1024  # at once; beyond it 503
AGAIN_S = 1.0  # after which a request that caught its cancellation is cancelled again
PATIENCE = 2  # cancellations of a request; then its client is answered in place of the actor

logger = logging.getLogger("hiveio.http")


class AlreadyAnswered(Exception):
    """The client is answered 504 while the actor goes on after its cancellation: its own answer is not sent.

    ``answering`` is done when that answer is out.
    """

    def __init__(self, answering: asyncio.Future[None]) -> None:
        self.answering = answering


class Request:
    """A request of an actor. ``started`` is when it came; of a batch, when it last moved on."""

    __slots__ = ("answering", "cancelled_at", "cancels", "method", "reference", "route", "send", "started", "task")

    def __init__(self, started: float, route: Route, method: str, reference: str, send: Send) -> None:
        self.started, self.route, self.method, self.reference, self.send = started, route, method, reference, send
        self.task: asyncio.Task[Any]
        self.cancels = 0  # by us; each is taken back in the end
        self.cancelled_at = 0.0
        self.answering: asyncio.Future[None] | None = None  # in place of the actor


class InFlight:
    """All requests that are carried out. ``give_up`` answers the client of one whose actor catches its cancellation."""

    def __init__(self, timeout_s: float, give_up: Callable[[Request], Awaitable[None]]) -> None:
        self._timeout_s = timeout_s
        self._give_up = give_up
        # In the order in which they came; all have the same bound, so the first is the first to be overdue.
        self._running: dict[Request, None] = {}
        self._overdue: dict[Request, None] = {}

    def __len__(self) -> int:
        return len(self._running) + len(self._overdue)

    def begin(self, request: Request) -> None:
        """The task that runs carries out this request. Raises Unavailable where there are too many."""
        if len(self._running) + len(self._overdue) >= MAX_REQUESTS:
            raise Unavailable("This instance has too many requests. Try again in a moment.")
        task = asyncio.current_task()
        assert task is not None
        request.task = task
        self._running[request] = None

    def progressed(self, request: Request) -> None:
        """Give a request that moved on its whole time again, unless it is overdue already."""
        if request in self._running:
            del self._running[request]
            request.started = monotonic()
            self._running[request] = None

    def end(self, request: Request) -> None:
        """The request is done. Raises AlreadyAnswered where its answer comes too late for its client."""
        if not request.cancels:
            del self._running[request]
            return
        del self._overdue[request]
        for _ in range(request.cancels):
            request.task.uncancel()  # the cancellation was ours and ends here
        if request.answering is not None:
            raise AlreadyAnswered(request.answering)

    def check(self) -> None:
        """Cancel requests that take too long, and again those that go on. To be called now and then, on the loop."""
        now = monotonic()
        for request in self._overdue:
            if now - request.cancelled_at > AGAIN_S:
                if request.cancels == PATIENCE and request.answering is None:
                    name = f"{request.method} {request.route.path}"
                    logger.error("%s: the actor caught its cancellation and goes on; its client is answered 504", name)
                    request.answering = asyncio.ensure_future(self._give_up(request))
                self._cancel(request, now)
        while self._running:
            request = next(iter(self._running))
            if request.started > now - self._timeout_s:
                break
            # One look at all of them: asyncio.timeout would cost a timer a request.
            del self._running[request]
            self._overdue[request] = None
            self._cancel(request, now)

    @staticmethod
    def _cancel(request: Request, now: float) -> None:
        request.cancelled_at = now
        request.cancels += 1
        request.task.cancel()
