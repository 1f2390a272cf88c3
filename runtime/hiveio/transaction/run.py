"""The queue and the chain of one aggregate.

A *run* exists while an instance works on an aggregate: it holds the lock, knows the *tip* (the state after the last
record it appended, read back or not), and performs the commands of its queue on the tip, first in first out, without
waiting for each verdict. Each record names the head it was performed on, so when one is void all behind it are void
too, and begin again in their order.

::

            open            locked, begun         void
    IDLE ─────────▶ OPENING ─────────────▶ OPEN ───────▶ BROKEN ─┐ all read back
                     ▲    │ locked elsewhere │ another one waits  │
                     │    ▼                  ▼                    │
                     ├── PAUSED ◀────────────┘                    │
                     └────────────────────────────────────────────┘
    An OPEN run without anything to do closes when its last record is applied.
"""

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from hiveio.errors import Conflict, HiveError, Problem, Unavailable, backend_away
from hiveio.transaction import faults
from hiveio.transaction.cache import Begun, Entry
from hiveio.transaction.lock import Locked

if TYPE_CHECKING:
    from hiveio.transaction.command import Command
    from hiveio.transaction.engine import Engine
    from hiveio.transaction.pending import Pending
    from hiveio.transaction.performer import Waiting
from hiveio.transaction.scope import Scope

QUEUE = 1_000  # commands that wait for one aggregate; beyond it 503
AWAY_TRIES = 10  # retries of a lock while a backend is away: with LOCK_RETRY_DELAY, about two seconds
NEXT = 0.2  # of a pause, between the questions of the one that gets the lock next
CHAIN = 256  # records appended and not read back
LOCK_BUSY = "what this command needs is locked by another instance: try again later"
LINGER_S = 0.005  # that a run without commands stays open after several in a row
IDLE, OPENING, OPEN, BROKEN, PAUSED = "idle", "opening", "open", "broken", "paused"


class LockBusy(HiveError):
    """An aggregate cannot be had at once: its lock is another instance's, or it is being begun again."""


class Run:
    """One aggregate in work. All methods are called on the event loop; none waits."""

    def __init__(self, engine: "Engine", scope: "Scope", aggregate: str) -> None:
        self.engine, self.scope, self.aggregate = engine, scope, aggregate
        self.queue: deque[Command] = deque()
        self.expected = 0  # commands on their way to the queue
        self.guests = 0  # commands at work that have read this aggregate
        self.in_flight: dict[str, Pending] = {}
        self.weight = 0  # bytes of the aggregate when it was opened
        self.redo: list[Command] = []
        self.tip: Entry | None = None
        self.state = IDLE
        self.performing: Waiting | None = None  # a perform that takes its time
        self.until = 0.0  # the lock is surely held up to here
        self._turn = 0.0  # after this time another instance that waits gets its turn
        self._contended = False
        self._renewing = False
        self._closing = False
        self._busy = 0  # commands appended since the run was last about to close
        self._locked: Locked | None = None
        self._begun: Begun | BaseException | None = None
        self._opening: tuple[str, ...] = ()
        self._joined = False  # another run has got this lock meanwhile
        self._asked = 0  # where the cache stood when it was asked
        self._visitors: list[asyncio.Future[None]] = []
        self._attempts = 0.0  # at the lock, in pauses of LOCK_RETRY_DELAY
        self.trouble = ""  # why it does not open

    # -- opening

    def open(self, *, alone: bool = False) -> None:
        """Lock and begin in one round trip; unless ``alone`` with what else the first command needs, all or nothing."""
        if self.state is OPENING:
            return
        self.state = OPENING
        self._joined = False
        needs = {self.aggregate, *self.queue[0].needs} if self.queue and not alone else {self.aggregate}
        self._opening = tuple(sorted(needs))
        self._locked = self._begun = None
        self._asked = self.scope.mirror.watermark.offset
        scope = self.engine.cache.scope(self.scope.partition)
        self.engine.lock.acquire(scope, self._opening, self._on_locked, self.engine.age_s(self.queue))
        begin = self.engine.cache.begin(self.scope.partition, self.aggregate)
        begin.add_done_callback(self._on_begun)

    async def visit(self) -> Entry:
        """The tip, for a command of another run. Raises LockBusy: a wait with another lock held could be for ever."""
        if self.state is IDLE:
            self.open()
        if self.state is OPENING:
            future: asyncio.Future[None] = self.engine.loop.create_future()
            self._visitors.append(future)
            await future
        tip = self.latest()
        if self.state is not OPEN or tip is None:
            raise LockBusy(f"{self.aggregate} is {self.state}")
        if self._spent(time.monotonic()):
            raise LockBusy(f"another instance has its turn at {self.aggregate}")
        return tip

    def latest(self) -> Entry | None:
        """The tip. Where no record of ours is in flight, the view may know of one that others have appended."""
        if not self.in_flight and self.tip is not None and (seen := self.scope.view.entry(self.aggregate)) is not None:
            self.tip = seen
        return self.tip

    def _on_locked(self, locked: Locked) -> None:
        self._locked = locked
        if self._begun is not None:
            self._opened(locked, self._begun)

    def _on_begun(self, future: "asyncio.Future[Begun]") -> None:
        self._begun = future.exception() or future.result()
        if self._locked is not None:
            self._opened(self._locked, self._begun)

    def _opened(self, locked: Locked, begun: Begun | BaseException) -> None:
        entry: Entry | None = None
        problem: Problem | None = None
        if isinstance(begun, BaseException):
            problem = begun if isinstance(begun, Unavailable) else backend_away(str(begun))
        elif not locked.until:
            self.engine.tally.lock_waits += 1
            problem = backend_away(locked.reason) if locked.away else Conflict(LOCK_BUSY)
        elif self.engine.work.laden and not self.weight:
            problem = Unavailable("too much is in work: try again later")
        elif self.scope.mirror.observe_watermark(begun[0], self._asked) and self.scope.ready:
            entry = self.scope.reconcile(self.aggregate, begun[0], begun[1][0])
        if entry is None:
            if locked.until:
                self._release(self._opening)
            elif self._joined:
                self.state = PAUSED
                self.open(alone=True)
                return
            self._again(problem or self.scope.unavailable(), locked.waiters_ahead)
            return
        self.tip, self.state, self._attempts, self.trouble = entry, OPEN, 0.0, ""
        self.engine.work.opened(self, entry.size)
        self._take_turn(locked)
        for name in self._opening:
            if name != self.aggregate:
                self.engine.run(self.scope, name).join()
        self._welcome(None)
        if faults.armed:
            faults.hit("locked", self.aggregate)
        self.pump()

    def leave(self) -> None:
        """A command that has read this aggregate is done with it."""
        self.guests -= 1
        if not self.guests:
            self.pump()

    def join(self) -> None:
        """Be open for a command of another run, which has this lock already. With a set that is not to be had whole
        this run would stay closed, and nobody would give the lock back."""
        if self.state is OPENING:
            self._joined = True
        elif self.state in (IDLE, PAUSED):
            self.open(alone=True)

    def _welcome(self, error: LockBusy | None) -> None:
        visitors, self._visitors = self._visitors, []
        for future in visitors:
            if not future.done():
                future.set_exception(error) if error else future.set_result(None)

    def _take_turn(self, locked: Locked) -> None:
        self.until, self._contended = locked.until, locked.contended
        self._turn = time.monotonic() + self.engine.lock.turn_s

    def _again(self, problem: Problem, waiters_ahead: int) -> None:
        """The lock is another's: try later; the first command pays for the attempts, less while others are ahead of
        it. A backend is away: try less and less often, and then all of them are told."""
        self.state, self.tip, self.trouble = PAUSED, None, problem.detail
        self._welcome(LockBusy(problem.detail))
        away = isinstance(problem, Unavailable)
        pause = 1 if away or waiters_ahead else NEXT  # the lock stands free until the next one asks
        self._attempts += pause / (1 + waiters_ahead)
        if self._attempts > (min(AWAY_TRIES, self.engine.retry_count) if away else self.engine.retry_count):
            self._attempts = 0.0
            for _ in range(len(self.queue) if away else min(1, len(self.queue))):
                self.engine.give_up(self.queue.popleft(), problem)
        self._pause(max(1, self._attempts) if away else pause)

    def _pause(self, times: float) -> None:
        self.engine.loop.call_later(times * self.engine.retry_delay_s(), self._resume)

    def _resume(self) -> None:
        if self.state is not PAUSED:
            return
        while self.queue and self.queue[0].over:
            self.queue.popleft()
        if self.queue or self.expected:
            self.open()
        else:
            self.engine.closed(self)

    # -- performing

    def push(self, command: "Command") -> None:
        self.queue.append(command)
        if self.state is OPEN:
            self.pump()
        elif self.state is IDLE:
            self.open()

    def pump(self) -> None:
        """Perform what is queued, as far as the chain, the lock and the turn allow."""
        now = time.monotonic()
        while self.queue and self.state is OPEN and not self.performing and len(self.in_flight) < CHAIN:
            if self._spent(now) or (self.in_flight and self.engine.work.laden):
                break
            command = self.queue.popleft()
            if not command.over:
                self.engine.perform(self, command)
        if self.state is IDLE and not (self.queue or self.expected or self.guests):
            self.engine.closed(self)  # it was made only to know of a command that is answered without being queued
        if self.state is not OPEN or self.performing or self.in_flight or self.guests:
            return
        if self.queue and self._spent(now):
            self._yield()
        elif not self.queue and not self.expected and not self._closing:
            self._closing = True
            self.scope.applier.when_applied((self.tip.at if self.tip else 1) - 1, self._idle)

    def _spent(self, now: float) -> bool:
        """The lock is lost, or the turn is over and another instance waits; whether one does is asked at its end."""
        if now < self._turn:
            return now >= self.until
        if not self._contended and now < self.until:
            self._renew()
        return self._contended or now >= self.until

    def _renew(self) -> None:
        if not self._renewing:
            self._renewing = True
            self.engine.lock.acquire(self.engine.cache.scope(self.scope.partition), (self.aggregate,), self._on_renewed)

    def _on_renewed(self, locked: Locked) -> None:
        self._renewing = False
        if self.state is not OPEN:
            return
        self._take_turn(locked)
        if locked.contended:
            self._turn = 0.0
        self.pump()

    def _yield(self) -> None:
        """Another instance waits, or the lock is lost: give it up once the cache shows our work, and come back."""
        self.state, self.tip = PAUSED, None
        self.scope.applier.when_applied(self.scope.view.next - 1, self._hand_over, soon=True)
        self._pause(2)

    def _hand_over(self) -> None:
        if self.state is PAUSED:  # it may have been opened again meanwhile
            self._release((self.aggregate,))

    def set_aside(self, command: "Command") -> None:
        """A further aggregate of this command is not to be had: give up this lock, then lock the whole set."""
        self.queue.appendleft(command)
        self.state = BROKEN

    # -- verdicts

    def appended(self, pending: "Pending", tip: Entry) -> None:
        self.tip = tip
        self._busy += 1
        self.in_flight[pending.tx] = pending

    def settled(self, pending: "Pending", verdict: bool | None) -> None:
        self.in_flight.pop(pending.tx, None)
        if verdict is not True and self.state is OPEN:
            self.state = BROKEN
        if self.state is BROKEN:
            self._drained()
        else:
            self.pump()

    def _drained(self) -> None:
        """All that was appended is read back: what was void begins again, before what came later."""
        if self.in_flight or self.performing:
            return
        self.queue.extendleft(reversed(self.redo))
        self.redo.clear()
        self.tip, self.state = None, PAUSED
        if self.queue and len(self.queue[0].needs) > 1:
            self._release((self.aggregate,))
            self._pause(1)
        else:
            self.open()

    def performed(self) -> None:
        """A command that took its time has come to its end."""
        self.performing = None
        if self.state is BROKEN:
            self._drained()
        else:
            self.pump()

    # -- closing

    def _idle(self) -> None:
        if self._busy > 1:
            # Clients that have just been answered come again at once; meanwhile the lock would be another's for a turn.
            self._busy = 0
            self.engine.loop.call_later(LINGER_S, self._idle)
            return
        self._closing = False
        if self.state is OPEN and not (self.queue or self.expected or self.in_flight or self.performing or self.guests):
            self._release((self.aggregate,))
            self.state = IDLE
            self.engine.closed(self)

    def _release(self, aggregates: tuple[str, ...]) -> None:
        """Give locks back, but for those that other runs of this instance use."""
        self.until = 0.0
        others = {name: run for name in aggregates if (run := self.engine.runs.get(name)) and run is not self}
        mine = [name for name in aggregates if name not in others or others[name].state in (IDLE, PAUSED)]
        self.engine.lock.release(self.engine.cache.scope(self.scope.partition), mine)
