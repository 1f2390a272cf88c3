"""The deadlines of processes are fired when the log's time has come to them.

The leader does it, and the rule makes it safe: the record of a deadline that was fired already, or cancelled, is void
by its head, and one before its time by the log's clock. So two leaders at once, or a wrong clock, cost a void record.
It is modelled in Saga.tla.

The log's time goes on with its records only, and by a bounded step from each to the next. So while deadlines are
pending and nobody works, the leader appends records that change nothing else.

The leader also does what ``hiveio saga`` asks for, and counts the processes. So a scope is led while processes run.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from hiveio.errors import Unavailable, Unknown
from hiveio.transaction import metrics
from hiveio.transaction.cache import Cache
from hiveio.transaction.entry import Entry
from hiveio.transaction.leader import IsLeading
from hiveio.transaction.process import RUNNING, STUCK, WAITS, Due, Process, Waiting
from hiveio.transaction.scope import Scope

logger = logging.getLogger("hiveio.deadlines")

TURN_S = 0.4  # between two looks at what is due, at most: a deadline that was just scheduled is noticed then
LEAST_S = 0.01  # between two looks
TICK_S = 1.0  # within which a record that makes the log's time go on is read back
ASK_S = 1.0  # between two looks at what was asked for, and two counts
PAGE = 500  # processes that one call to the cache gives
AT_ONCE = 100  # processes that are at work on a deadline, or on what was asked for
AGAIN_S = (0.5, 60.0)  # the first and the longest pause after a deadline of a process could not be fired

Fire = Callable[[str, str, Due], Awaitable[Any]]
Resume = Callable[[str, Waiting, bool], Awaitable[Any]]


class Deadlines:
    """Fires the deadlines of one scope. It is a duty of the leader."""

    def __init__(self, scope: Scope, cache: Cache, fire: Fire, resume: Resume) -> None:
        """``fire`` gives a deadline to its process: the aggregate, the name of the deadline, and when it is due.
        ``resume`` gives it the first input that waits, or drops that one. Both raise what the actor raises."""
        self._scope, self._cache, self._fire, self._resume = scope, cache, fire, resume
        self.name = f"firing the deadlines of {scope.where}"
        self._gauges = metrics.ProcessGauges(scope.partition)
        self._at_work: dict[str, asyncio.Task[None]] = {}  # what fires or is resumed, by process
        self._failing: dict[str, tuple[float, float]] = {}  # process → when it is tried again, and the pause after that
        self._seen = (-1, 0.0)  # the log's time, and when this instance had not seen it yet
        self._looked_at = time.monotonic()
        # The watermark at which none was due, and when the next one is.
        self._found: tuple[int, int | None] = (-1, None)
        self._none_at = -1  # the watermark at which no process ran
        self._ask_at = 0.0
        self._knows_time = False  # by a record that was appended since this instance leads
        self._ended = asyncio.Event()  # something has fired or failed

    @property
    def done(self) -> bool:
        """The next leader goes on from any place."""
        return True

    @property
    def rests(self) -> bool:
        """Whether no process runs."""
        return self._none_at >= self._scope.view.next

    async def run(self, is_leading: IsLeading) -> None:
        """Fire what is due, while this instance leads. Raises Unavailable."""
        self._knows_time = False
        try:
            while await is_leading():
                self._ended.clear()
                pause = await self._turn()
                await asyncio.sleep(LEAST_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._ended.wait()
        finally:
            for task in self._at_work.values():
                task.cancel()
            await asyncio.gather(*self._at_work.values(), return_exceptions=True)
            self._gauges.clear()

    async def _turn(self) -> float:
        """Begin to fire what is due now. Returns the time until something more is due, in seconds."""
        if time.monotonic() >= self._ask_at:
            await self._answer()
            await self._count()
            self._ask_at = time.monotonic() + ASK_S
        due, startable, upcoming = await self._look()
        self._gauges.due(due, len(self._failing))
        for name in startable:
            self._at_work[name] = asyncio.ensure_future(self._fire_of(name))
        if upcoming is None:
            self._idle_ms()
            return TURN_S
        return min(TURN_S, await self._keep_time(upcoming))

    async def _look(self) -> tuple[int, list[str], int | None]:
        """How many processes have a deadline that is due; the first of these that can be fired now, as many as may be
        at work; and when the next deadline is due, if it was looked at. Raises Unavailable."""
        scope, first, seen, startable = self._scope, 0, set[str](), list[str]()
        at, upcoming = self._found
        if at >= scope.view.next and (upcoming is None or upcoming > scope.view.time):
            return 0, startable, upcoming  # no record has come
        while True:
            asked, now = scope.mirror.watermark.offset, scope.view.time
            watermark, due, found = await self._cache.due(scope.partition, first, PAGE, now)
            if watermark is None or not scope.mirror.observe_watermark(watermark, asked):
                raise scope.unavailable()
            upcoming = next((at for _, at in found if at > now), None)
            names = [name for name, at in found if at <= now and name not in seen]
            startable += filter(self._can_start, names)
            seen.update(names)
            if upcoming is not None or len(found) < PAGE:
                self._failing = {name: again for name, again in self._failing.items() if name in seen}
                break
            if len(startable) >= AT_ONCE - len(self._at_work):
                break  # each turn would read all the others again
            first += PAGE
        if not due and not found:
            self._none_at = watermark.offset
        upcoming = upcoming if upcoming is not None and upcoming < WAITS else None
        self._found = (-1 if due else watermark.offset, upcoming)
        return due, startable[: AT_ONCE - len(self._at_work)], upcoming

    def _can_start(self, name: str) -> bool:
        """Whether the deadline of a process may be fired now."""
        return name not in self._at_work and (name not in self._failing or self._failing[name][0] <= time.monotonic())

    async def _count(self) -> None:
        partition, processes = self._scope.partition, self._cache.processes
        (running, _), (stuck, _), (waits, oldest) = await asyncio.gather(
            processes(partition, RUNNING, 0, 0), processes(partition, STUCK, 0, 0), processes(partition, WAITS, 0, 1)
        )
        unanswered_ms = self._scope.view.time + self._idle_ms() - oldest[0][1] if waits else 0.0
        self._gauges.listed(running, stuck, max(0.0, unanswered_ms / 1000))

    async def _answer(self) -> None:
        """Begin to do what ``hiveio saga`` asks for."""
        for name, what in (await self._cache.asked(self._scope.partition)).items():
            if len(self._at_work) < AT_ONCE and name not in self._at_work:
                self._at_work[name] = asyncio.ensure_future(self._answer_for(name, what))

    async def _answer_for(self, name: str, what: str) -> None:
        action, _, input = what.partition(" ")
        try:
            if (entry := await self._entry(name)) is None:
                return  # it is asked for still
            waiting = Process.of(entry.process).waiting
            try:
                if waiting and (action == "retry" or waiting[0].name == input):
                    await self._resume(name, waiting[0], action == "skip")
            except Exception as error:
                logger.info("%s could not be done with %s: %r", action, name, error)
            await self._cache.answered(self._scope.partition, name)
        except Unavailable as error:
            logger.info("%s of %s waits: %r", action, name, error)
        finally:
            self._at_work.pop(name, None)
            self._ended.set()

    async def _keep_time(self, due: int) -> float:
        """Append a record if the log's time should have come to ``due`` by now, or has not moved for so long that the
        next record could not make up for it; and first of all, since nobody may have led for a while. Returns the time
        until ``due``, in seconds. Raises Unavailable."""
        view, idle_ms = self._scope.view, self._idle_ms()
        left_ms = due - view.time - idle_ms
        if left_ms <= 0 or not self._knows_time or idle_ms > view.state.window.step_ms / 2:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._scope.caught_up("linearizable")
                self._knows_time = True
            except TimeoutError:
                raise Unavailable(f"a record of {self._scope.where} was not read back in {TICK_S:.0f} s") from None
        return max(0.0, left_ms / 1000)

    def _idle_ms(self) -> float:
        """How long ago the log's time has moved, at most."""
        view, now = self._scope.view, time.monotonic()
        if self._seen[0] != view.time:  # rather too early: the record that is appended then says how much time is left
            self._seen = view.time, self._looked_at
        self._looked_at = now
        return (now - self._seen[1]) * 1000

    async def _fire_of(self, name: str) -> None:
        """Fire the first deadline of a process that is due. Where that fails, it is tried again after a pause, which
        grows."""
        try:
            entry = await self._entry(name)
            process = Process.of(entry.process if entry is not None else b"")
            pending = process.deadlines
            if process.waiting and not process.stuck:
                await self._resume(name, process.waiting[0], False)
            elif pending:
                first, due = min(pending.items(), key=lambda each: each[1].at)
                if due.at <= self._scope.view.time:
                    await self._fire(name, first, due)
            self._failing.pop(name, None)
        except Exception as error:
            _, pause = self._failing.get(name, (0.0, AGAIN_S[0]))
            self._failing[name] = time.monotonic() + pause * (0.5 + random.random() / 2), min(2 * pause, AGAIN_S[1])
            level = logging.INFO if isinstance(error, Unavailable | Unknown) else logging.ERROR
            logger.log(level, "a deadline of %s could not be fired, and is tried again: %r", name, error)
        finally:
            self._at_work.pop(name, None)
            self._ended.set()

    async def _entry(self, name: str) -> Entry | None:
        """The process as it is now, or None where the cache has moved on meanwhile."""
        scope = self._scope
        entry = scope.view.entry(name)
        if entry is None:
            reply = await self._cache.read(scope.partition, name)
            if scope.mirror.observe_watermark(reply.watermark) and scope.ready:
                entry = scope.reconcile(name, reply)
        return entry
