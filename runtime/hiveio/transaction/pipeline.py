"""The commands of one aggregate, performed one after the other without waiting for each verdict.

A *pipeline* exists while an instance works on an aggregate. It knows the *tip* (the state after the last record that it
has appended, read back or not), and performs the commands of its queue on the tip, first in, first out. Each record
names the head on which its command was performed. So when one record is void, all records behind it are void too, and
their commands are performed again in the same order.

It holds the lock where other instances work on the aggregate too (see Contention), else it is *unlocked*.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from hiveio.errors import Problem, Unavailable
from hiveio.transaction import faults
from hiveio.transaction.access import Access
from hiveio.transaction.command import InFlight
from hiveio.transaction.entry import CacheReply, Entry
from hiveio.transaction.lock import UNLOCKED, LockBusy, Locked, Retries, Turn
from hiveio.transaction.metrics import CommandMetrics
from hiveio.transaction.opening import Opening
from hiveio.transaction.pending import Pending
from hiveio.transaction.pipeline_state import BROKEN, CLOSED, IDLE, OPEN, OPENING, PAUSED, State, transition
from hiveio.transaction.scope import Scope
from hiveio.transaction.work import Work

AWAY_TRIES = 10  # to lock while a backend is away: with LOCK_RETRY_DELAY they take about two seconds
NEXT = 0.2  # of a pause: how long the instance that gets the lock next waits between two tries
CHAIN = 256  # records that are appended and not read back
LINGER_S = 0.005  # for which a pipeline stays open after it has performed several commands in a row


class Registry(Protocol):
    """What a pipeline needs from the registry to which it belongs: see Pipelines."""

    access: Access
    retries: Retries
    work: Work
    metrics: CommandMetrics
    perform: Callable[["Pipeline", InFlight], None]
    give_up: Callable[[InFlight, Problem], None]

    def of(self, scope: Scope, name: str) -> "Pipeline":
        """The pipeline of another aggregate."""

    def closed(self, pipeline: "Pipeline") -> None:
        """This one is closed."""

    def release(self, pipeline: "Pipeline", names: Iterable[str]) -> None:
        """Release the locks that no other pipeline uses."""


class Pipeline:
    """The commands of one aggregate. All methods are called on the event loop; only ``wait_open`` waits."""

    def __init__(self, registry: Registry, scope: Scope, aggregate: str) -> None:
        self._registry, self.scope, self.aggregate = registry, scope, aggregate
        self.state = IDLE
        self.queue: deque[InFlight] = deque()
        self.in_flight: dict[str, Pending] = {}
        self.tip: Entry | None = None
        self.performing: object | None = None  # the perform that waits for something
        self.trouble = ""  # why it does not open
        self._expected = 0  # commands that are about to enter the queue
        self._blocked = 0  # other pipelines that its perform waits for
        self._readers = 0  # commands of other aggregates that have read this one and are not decided
        self._void: list[InFlight] = []  # commands to perform again, in their order
        self._weight = 0  # the bytes of the aggregate when it was opened
        self._turn = Turn()
        self._renewing = self._closing = False
        self._appended = 0  # records since it was last about to close
        self._opening: Opening | None = None
        self._waiters: list[asyncio.Future[None]] = []  # callers of ``wait_open``
        self._attempts = 0.0  # to lock it, counted in pauses of LOCK_RETRY_DELAY

    def _go(self, state: State) -> None:
        self.state = transition(self.state, state)

    # -- opening

    def open(self, *, alone: bool = False) -> None:
        """Begin on what the scope knows of the aggregate, or read it, if nobody else works on it. Else lock and read it
        in one round trip: with all others that the first command needs (all or none are locked), or ``alone``."""
        if self.state is OPENING:
            return
        self._go(OPENING)
        needs = {self.aggregate, *self.queue[0].needs} if self.queue and not alone else {self.aggregate}
        self._turn.unlocked = unlocked = not (alone or self._turn.holds) and self.scope.uncontended(needs)
        if unlocked and not self._registry.work.full and (entry := self.scope.known(self.aggregate)) is not None:
            self._begin_on(entry, UNLOCKED)
            return
        access, names = self._registry.access, () if unlocked else tuple(sorted(needs))
        self._opening = Opening(access, self.scope, self.aggregate, names, self._opened, unlocked=unlocked)
        self._opening.begin(self.queue)

    async def wait_open(self) -> Entry:
        """The tip, for a command of another aggregate. Raises LockBusy instead of waiting for the lock: a caller that
        holds another lock might wait forever."""
        if self.state is IDLE:
            self.open()
        # A broken one is opened again when its records are read back and its perform has ended. If that waits for
        # another pipeline too, the two might wait for each other.
        if self.state is OPENING or (self.state is BROKEN and not (self.performing and self._blocked)):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(future)
            await future
        tip = self.latest()
        if self.state is not OPEN or tip is None:
            raise LockBusy(f"{self.aggregate} is {self.state.value}")
        if self.must_yield():
            raise LockBusy(f"another instance waits for {self.aggregate} and gets its turn")
        return tip

    async def wait_for(self, other: "Pipeline") -> Entry:
        """The tip of another pipeline, for the perform of this one. Raises LockBusy."""
        self._blocked += 1
        try:
            return await other.wait_open()
        finally:
            self._blocked -= 1

    def latest(self) -> Entry | None:
        """The tip. If no record of this instance is in flight, the view may know a later record of another one."""
        if self.tip is not None and not self.in_flight:
            self.tip = self.scope.view.entry(self.aggregate) or self.tip
        return self.tip

    def _opened(self, opening: Opening, locked: Locked, reply: CacheReply | BaseException) -> None:
        self._opening = None  # each has the other, which only Python's collector could free
        entry = opening.entry(locked, reply, full=self._registry.work.full and not self._weight)
        if not locked.until:
            self._registry.metrics.lock_busy()
        if opening.shared and (opening.unlocked or (isinstance(entry, Problem) and not locked.until)):
            self._go(PAUSED)
            self.open(alone=True)
        elif isinstance(entry, Problem):
            if locked.until and not opening.unlocked:
                self._release(opening.names)
            self._retry_open(entry, locked.waiters_ahead)
        else:
            self._begin_on(entry, locked, opening.names)

    def _begin_on(self, entry: Entry, locked: Locked, names: Sequence[str] = ()) -> None:
        """It is open: perform the queue on this entry. ``names`` are locked."""
        self._go(OPEN)
        self.tip, self._attempts, self.trouble = entry, 0.0, ""
        self._weigh(entry.size)
        self._turn.begin(locked, self._registry.access.turn_s)
        for name in names:
            if name != self.aggregate:
                self.another(name).open_shared(locked)
        if self._waiters:
            self._wake_waiters()
        if faults.armed:
            faults.hit("opened", self.aggregate)
        self.pump()

    def another(self, name: str) -> "Pipeline":
        """The pipeline of another aggregate of this scope."""
        return self._registry.of(self.scope, name)

    def open_shared(self, locked: Locked) -> None:
        """Open for a command of another pipeline, which has locked this aggregate, or take that lock. A set of locks
        that this one asks for may be refused; it would then stay closed, and nobody would release the lock."""
        if self.state is OPENING and self._opening is not None:
            self._opening.share()
        elif self.state in (IDLE, PAUSED):
            self.open(alone=True)
        elif self.state in (OPEN, BROKEN) and not self._turn.holds:
            self._turn.begin(locked, self._registry.access.turn_s)

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)

    def _retry_open(self, problem: Problem, waiters_ahead: int) -> None:
        """Another instance has the lock: try again later. The attempts count for the first command, and for less while
        others are ahead of it. If a backend is away, the pauses become longer, and at the end all commands fail."""
        self._go(PAUSED)
        self.tip, self.trouble = None, problem.detail
        self._wake_waiters()
        away, retries = isinstance(problem, Unavailable), self._registry.retries.count
        pause = 1 if away or waiters_ahead else NEXT  # the lock is free until the next instance asks for it
        self._attempts += pause / (1 + waiters_ahead)
        if self._attempts > (min(AWAY_TRIES, retries) if away else retries):
            self._attempts = 0.0
            for _ in range(len(self.queue) if away else min(1, len(self.queue))):
                self.give_up(self.queue.popleft(), problem)
        self._pause(max(1, self._attempts) if away else pause)

    def give_up(self, command: InFlight, problem: Problem) -> None:
        """Answer a command that is out of retries and has no record in flight."""
        self._registry.give_up(command, problem)

    def _pause(self, times: float) -> None:
        asyncio.get_running_loop().call_later(times * self._registry.retries.delay_s(), self._resume)

    def _resume(self) -> None:
        if self.state is not PAUSED:
            return
        while self.queue and self.queue[0].over:
            self.queue.popleft()
        if self.queue or self._expected:
            self.open()
        else:
            self._close()

    # -- performing

    def push(self, command: InFlight) -> None:
        self.queue.append(command)
        if self.state is OPEN:
            self.pump()
        elif self.state is IDLE:
            self.open()

    def expect(self, *, soon: bool = False) -> None:
        """A command is about to enter the queue, which ``arrived`` ends. ``soon`` says to lock for it at once."""
        self._expected += 1
        if soon and self.state is IDLE:
            self.open()

    def arrived(self, command: InFlight | None) -> None:
        """The expected command enters the queue; None says that it is answered already."""
        self._expected -= 1
        if command is None:
            self.pump()
        else:
            self.push(command)

    def add_reader(self) -> None:
        self._readers += 1

    def remove_reader(self) -> None:
        """A command that has read this aggregate does not need it any more."""
        self._readers -= 1
        if not self._readers:
            self.pump()

    def pump(self) -> None:
        """Perform the queued commands, as far as the chain, the lock and the turn allow."""
        while self.queue and self.state is OPEN and not self.performing and len(self.in_flight) < CHAIN:
            if self.must_yield() or (self.in_flight and self._registry.work.full):
                break
            command = self.queue.popleft()
            if not command.over:
                self._registry.perform(self, command)
        if self.state is IDLE and not (self.queue or self._expected or self._readers):
            self._close()  # it was made only for a command that was answered without entering the queue
        if self.state is not OPEN or self.performing or self._readers:
            return
        if self.in_flight:
            if not self._turn.unlocked and self.must_yield():
                self._hand_over()
        elif self.queue and self.must_yield():
            self._yield()
        elif self._turn.unlocked and not (self.queue or self._expected):
            self._close()
        elif not (self.queue or self._expected or self._closing):
            self._close_idle()

    @property
    def locked_until(self) -> float:
        """The monotonic time up to which the lock is surely held."""
        return self._turn.until

    def must_yield(self) -> bool:
        """Whether the lock is lost, is to be taken, or is kept beyond its turn while another instance waits."""
        if self._turn.unlocked:
            return self.aggregate in self.scope.contention
        return self._turn.must_yield(time.monotonic(), self._renew)

    @property
    def unlocked(self) -> bool:
        """Whether it is open, or being opened, without its lock."""
        return self._turn.unlocked

    @property
    def contended(self) -> bool:
        """Whether it is unlocked and another instance works on the aggregate too, so that it takes its lock."""
        return self._turn.unlocked and self.aggregate in self.scope.contention

    def _renew(self) -> None:
        if not self._renewing:
            self._renewing = True
            self._registry.access.acquire(self.scope, (self.aggregate,), self._on_renewed)

    def _on_renewed(self, locked: Locked) -> None:
        self._renewing = False
        if self.state is OPEN and self._turn.holds:
            self._turn.renewed(locked, self._registry.access.turn_s)
            self.pump()

    def _yield(self) -> None:
        """Another instance waits, or the lock is lost or to be taken: come back for it."""
        self._hand_over()
        self._go(PAUSED)
        self.tip = None
        if self.unlocked:
            self.open()
        else:
            self._pause(2)

    def _hand_over(self) -> None:
        """Release the lock, if it has one. Its records may be under way still: the next holder waits for the last."""
        if self._turn.holds:
            self._turn.end()
            self._registry.access.release(self.scope, (self.aggregate,), (self.tip and self.tip.head) or "")

    def set_aside(self, command: InFlight) -> None:
        """Another aggregate that this command needs is locked: release this lock, then lock the whole set."""
        self.queue.appendleft(command)
        self._break()

    def _break(self) -> None:
        if self.state is OPEN:
            self._go(BROKEN)

    def begin_perform(self, perform: object) -> None:
        """This perform waits for something, and the next command waits for its end."""
        self.performing = perform

    def end_perform(self, perform: object) -> None:
        if self.performing is perform:
            self.performing = None
            self._continue()

    # -- verdicts

    def appended(self, pending: Pending, tip: Entry) -> None:
        self.tip = tip
        self._appended += 1
        self.in_flight[pending.tx] = pending

    def perform_again(self, command: InFlight) -> None:
        """The record of this command is void, so it is performed again once the whole chain is read back."""
        self._void.append(command)

    def settled(self, pending: Pending, verdict: bool | None) -> None:
        self.in_flight.pop(pending.tx, None)
        if verdict is not True:
            self._break()
        self._continue()

    def _continue(self) -> None:
        if self.state is BROKEN:
            self._begin_again()
        else:
            self.pump()

    def _begin_again(self) -> None:
        """Once all records are read back, perform the commands of void ones again, before those that came later."""
        if self.in_flight or self.performing:
            return
        self._go(PAUSED)
        self.queue.extendleft(reversed(self._void))
        self._void.clear()
        self.tip = None
        several = bool(self.queue) and len(self.queue[0].needs) > 1
        if several:
            self._release((self.aggregate,))
        if several and self.queue[0].attempts > 1:
            self._wake_waiters()
            self._pause(1)
        else:
            self.open()

    # -- closing

    def _close_idle(self) -> None:
        self._closing = self._appended > 1
        if self._closing:
            # Clients that were just answered often send their next command at once; another instance might get a turn.
            self._appended = 0
            asyncio.get_running_loop().call_later(LINGER_S, self._close_idle)
            return
        at_work = self.queue or self._expected or self.in_flight or self.performing or self._readers
        if self.state is OPEN and not at_work:
            self._hand_over()
            self._close()

    def _close(self) -> None:
        self._go(CLOSED)
        self._weigh(0)
        self._registry.closed(self)

    def _weigh(self, size: int) -> None:
        self._registry.work.resized(self._weight, size)
        self._weight = size

    def _release(self, aggregates: Iterable[str]) -> None:
        """Release locks, except those that other pipelines of this instance use."""
        self._turn.end()
        if not self.unlocked:
            self._registry.release(self, aggregates)
