"""The commands of one aggregate, performed one after the other without waiting for each verdict.

A *pipeline* exists while an instance works on an aggregate: it holds the lock, knows the *tip* (the state after the
last record it appended, read back or not), and performs the commands of its queue on the tip, first in first out. Each
record names the head it was performed on, so when one is void all behind it are void too, and are performed again in
their order.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from hiveio.errors import Conflict, Problem, Unavailable, backend_away
from hiveio.transaction import faults
from hiveio.transaction.cache import Cache, CacheReply, Entry
from hiveio.transaction.command import InFlight
from hiveio.transaction.lock import LOCKED, LockBusy, Locked, Redlock, Retries, Turn
from hiveio.transaction.metrics import CommandMetrics
from hiveio.transaction.opening import Opening
from hiveio.transaction.pending import Pending
from hiveio.transaction.pipeline_state import BROKEN, CLOSED, IDLE, OPEN, OPENING, PAUSED, State, transition
from hiveio.transaction.scope import Scope
from hiveio.transaction.work import Work

AWAY_TRIES = 10  # retries of a lock while a backend is away: with LOCK_RETRY_DELAY, about two seconds
NEXT = 0.2  # of a pause, between the questions of the one that gets the lock next
CHAIN = 256  # records appended and not read back
LINGER_S = 0.005  # that a pipeline without commands stays open after several in a row


class Pipeline:
    """One aggregate in work. All methods are called on the event loop; none waits but ``wait_open``."""

    def __init__(self, pipelines: "Pipelines", scope: Scope, aggregate: str) -> None:
        self._all, self.scope, self.aggregate = pipelines, scope, aggregate
        self.state = IDLE
        self.queue: deque[InFlight] = deque()
        self.in_flight: dict[str, Pending] = {}
        self.tip: Entry | None = None
        self.performing: object | None = None  # a perform that takes its time
        self.trouble = ""  # why it does not open
        self._expected = 0  # commands on their way to the queue
        self._readers = 0  # commands of other aggregates at work that have read this one
        self._void: list[InFlight] = []  # to be performed again, in their order
        self._weight = 0  # bytes of the aggregate when it was opened
        self._turn = Turn()
        self._renewing = False
        self._closing = False
        self._appended = 0  # records, since it was last about to close
        self._opening: Opening | None = None
        self._waiters: list[asyncio.Future[None]] = []  # for it to be open
        self._attempts = 0.0  # at the lock, in pauses of LOCK_RETRY_DELAY

    def _go(self, state: State) -> None:
        self.state = transition(self.state, state)

    # -- opening

    def open(self, *, alone: bool = False) -> None:
        """Lock and read in one round trip; unless ``alone`` with what else the first command needs, all or nothing."""
        if self.state is OPENING:
            return
        self._go(OPENING)
        needs = {self.aggregate, *self.queue[0].needs} if self.queue and not alone else {self.aggregate}
        self._opening = opening = Opening(tuple(sorted(needs)), self.scope.mirror.watermark.offset, self._opened)
        self._all.acquire(self.scope, opening.names, opening.on_locked, self.queue)
        self._all.read(self.scope, self.aggregate).add_done_callback(opening.on_read)

    async def wait_open(self) -> Entry:
        """The tip, for a command of another aggregate. Raises LockBusy: a wait with another lock held could be for
        ever."""
        if self.state is IDLE:
            self.open()
        if self.state is OPENING:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(future)
            await future
        tip = self.latest()
        if self.state is not OPEN or tip is None:
            raise LockBusy(f"{self.aggregate} is {self.state.value}")
        if self.must_yield(time.monotonic()):
            raise LockBusy(f"another instance has its turn at {self.aggregate}")
        return tip

    def latest(self) -> Entry | None:
        """The tip. Where no record of ours is in flight, the view may know of one that others have appended."""
        if not self.in_flight and self.tip is not None and (seen := self.scope.view.entry(self.aggregate)) is not None:
            self.tip = seen
        return self.tip

    def _opened(self, opening: Opening, locked: Locked, reply: CacheReply | BaseException) -> None:
        entry: Entry | None = None
        problem: Problem | None = None
        if isinstance(reply, BaseException):
            problem = reply if isinstance(reply, Unavailable) else backend_away(str(reply))
        elif not locked.until:
            self._all.metrics.lock_busy()
            problem = backend_away(locked.reason) if locked.away else Conflict(LOCKED)
        elif self._all.work.full and not self._weight:
            problem = Unavailable("Too much is in work. Try again later.")
        elif self.scope.mirror.observe_watermark(reply.watermark, opening.asked) and self.scope.ready:
            entry = self.scope.reconcile(self.aggregate, reply)
        if entry is None:
            if locked.until:
                self._release(opening.names)
            elif opening.shared:
                self._go(PAUSED)
                self.open(alone=True)
                return
            self._retry_open(problem or self.scope.unavailable(), locked.waiters_ahead)
            return
        self._go(OPEN)
        self.tip, self._attempts, self.trouble = entry, 0.0, ""
        self._weigh(entry.size)
        self._turn.begin(locked, self._all.turn_s)
        for name in opening.names:
            if name != self.aggregate:
                self.another(name).open_shared()
        self._wake_waiters(None)
        if faults.armed:
            faults.hit("locked", self.aggregate)
        self.pump()

    def another(self, name: str) -> "Pipeline":
        """The one of another aggregate of this scope."""
        return self._all.of(self.scope, name)

    def open_shared(self) -> None:
        """Be open for a command of another pipeline, which has this lock already. With a set that is not locked whole
        this one would stay closed, and nobody would give the lock back."""
        if self.state is OPENING and self._opening is not None:
            self._opening.share()
        elif self.state in (IDLE, PAUSED):
            self.open(alone=True)

    def _wake_waiters(self, error: LockBusy | None) -> None:
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_exception(error) if error else future.set_result(None)

    def _retry_open(self, problem: Problem, waiters_ahead: int) -> None:
        """The lock is another's: try later; the first command pays for the attempts, less while others are ahead of
        it. A backend is away: try less and less often, and then all of them are answered so."""
        self._go(PAUSED)
        self.tip, self.trouble = None, problem.detail
        self._wake_waiters(LockBusy(problem.detail))
        away, retries = isinstance(problem, Unavailable), self._all.retries.count
        pause = 1 if away or waiters_ahead else NEXT  # the lock stands free until the next one asks
        self._attempts += pause / (1 + waiters_ahead)
        if self._attempts > (min(AWAY_TRIES, retries) if away else retries):
            self._attempts = 0.0
            for _ in range(len(self.queue) if away else min(1, len(self.queue))):
                self.give_up(self.queue.popleft(), problem)
        self._pause(max(1, self._attempts) if away else pause)

    def give_up(self, command: InFlight, problem: Problem) -> None:
        """Out of retries, with no record of the command in flight."""
        self._all.give_up(command, problem)

    def _pause(self, times: float) -> None:
        asyncio.get_running_loop().call_later(times * self._all.retries.delay_s(), self._resume)

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
        """A command is on its way: it will have ``arrived``. ``soon``: it is worth locking for it at once."""
        self._expected += 1
        if soon and self.state is IDLE:
            self.open()

    def arrived(self, command: InFlight | None) -> None:
        """A command that was expected takes its place in the queue; or it is over, and takes none."""
        self._expected -= 1
        if command is None:
            self.pump()
        else:
            self.push(command)

    def add_reader(self) -> None:
        self._readers += 1

    def remove_reader(self) -> None:
        """A command that has read this aggregate is done with it."""
        self._readers -= 1
        if not self._readers:
            self.pump()

    def pump(self) -> None:
        """Perform what is queued, as far as the chain, the lock and the turn allow."""
        now = time.monotonic()
        while self.queue and self.state is OPEN and not self.performing and len(self.in_flight) < CHAIN:
            if self.must_yield(now) or (self.in_flight and self._all.work.full):
                break
            command = self.queue.popleft()
            if not command.over:
                self._all.perform(self, command)
        if self.state is IDLE and not (self.queue or self._expected or self._readers):
            self._close()  # it was made only to know of a command that is answered without being queued
        if self.state is not OPEN or self.performing or self.in_flight or self._readers:
            return
        if self.queue and self.must_yield(now):
            self._yield()
        elif not self.queue and not self._expected and not self._closing:
            self._closing = True
            self.scope.applier.when_applied((self.tip.at if self.tip else 1) - 1, self._close_idle)

    @property
    def locked_until(self) -> float:
        """The monotonic time up to which the lock is surely held."""
        return self._turn.until

    def must_yield(self, now: float) -> bool:
        """The lock is lost, or the turn is over and another instance waits."""
        return self._turn.must_yield(now, self._renew)

    def _renew(self) -> None:
        if not self._renewing:
            self._renewing = True
            self._all.acquire(self.scope, (self.aggregate,), self._on_renewed)

    def _on_renewed(self, locked: Locked) -> None:
        self._renewing = False
        if self.state is OPEN:
            self._turn.renewed(locked, self._all.turn_s)
            self.pump()

    def _yield(self) -> None:
        """Another instance waits, or the lock is lost: give it up once the cache shows our work, and come back."""
        self._go(PAUSED)
        self.tip = None
        self.scope.applier.when_applied(self.scope.view.next - 1, self._hand_over, soon=True)
        self._pause(2)

    def _hand_over(self) -> None:
        if self.state is PAUSED:  # it may have been opened again meanwhile
            self._release((self.aggregate,))

    def set_aside(self, command: InFlight) -> None:
        """A further aggregate of this command is locked: give up this lock, then lock the whole set."""
        self.queue.appendleft(command)
        self._break()

    def _break(self) -> None:
        if self.state is OPEN:
            self._go(BROKEN)

    def begin_perform(self, perform: object) -> None:
        """This perform takes its time: the next command waits for its end."""
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
        """Its record is void: it is performed again when all of the chain is read back."""
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
        """Once all that was appended is read back: what was void is performed again, before what came later."""
        if self.in_flight or self.performing:
            return
        self._go(PAUSED)
        self.queue.extendleft(reversed(self._void))
        self._void.clear()
        self.tip = None
        if self.queue and len(self.queue[0].needs) > 1:
            self._release((self.aggregate,))
            self._pause(1)
        else:
            self.open()

    # -- closing

    def _close_idle(self) -> None:
        if self._appended > 1:
            # Clients that have just been answered come again at once; meanwhile the lock would be another's for a turn.
            self._appended = 0
            asyncio.get_running_loop().call_later(LINGER_S, self._close_idle)
            return
        self._closing = False
        at_work = self.queue or self._expected or self.in_flight or self.performing or self._readers
        if self.state is OPEN and not at_work:
            self._release((self.aggregate,))
            self._close()

    def _close(self) -> None:
        self._go(CLOSED)
        self._weigh(0)
        self._all.closed(self)

    def _weigh(self, size: int) -> None:
        self._all.work.resized(self._weight, size)
        self._weight = size

    def _release(self, aggregates: Iterable[str]) -> None:
        """Give locks back, but for those that other pipelines of this instance use."""
        self._turn.end()
        self._all.release(self, aggregates)


class Pipelines:
    """The aggregates in work of one instance, and what all of them share."""

    def __init__(
        self, cache: Cache, lock: Redlock, retries: Retries, work: Work, metrics: CommandMetrics, timeout_s: float
    ) -> None:
        """``timeout_s``: of a command, from the request to its deadline."""
        self._cache, self._lock, self._timeout_s = cache, lock, timeout_s
        self.retries, self.work, self.metrics, self.turn_s = retries, work, metrics, lock.turn_s
        self._open: dict[str, Pipeline] = {}
        self.perform: Callable[[Pipeline, InFlight], None]
        self.give_up: Callable[[InFlight, Problem], None]

    def serve(
        self, perform: Callable[[Pipeline, InFlight], None], give_up: Callable[[InFlight, Problem], None]
    ) -> None:
        """``perform`` performs a command on the tip of its pipeline, ``give_up`` answers one that is out of retries."""
        self.perform, self.give_up = perform, give_up

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Pipeline | None:
        return self._open.get(name)

    def of(self, scope: Scope, name: str) -> Pipeline:
        """That of an aggregate, which is made if need be."""
        pipeline = self._open.get(name)
        if pipeline is None:
            pipeline = self._open[name] = Pipeline(self, scope, name)
        return pipeline

    def closed(self, pipeline: Pipeline) -> None:
        if self._open.get(pipeline.aggregate) is pipeline:
            del self._open[pipeline.aggregate]

    def settled(self, pending: Pending, verdict: bool | None) -> None:
        """A record of ours is read back, or nobody can say what became of it."""
        for name in pending.entries:
            self._open[name].settled(pending, verdict)

    def acquire(
        self, scope: Scope, names: Sequence[str], done: Callable[[Locked], None], queue: Sequence[InFlight] = ()
    ) -> None:
        """Lock these, for the first command of the queue, which has waited for a while."""
        waited_s = self._timeout_s - (queue[0].deadline - asyncio.get_running_loop().time()) if queue else 0.0
        self._lock.acquire(self._cache.scope(scope.partition), names, done, waited_s)

    def read(self, scope: Scope, name: str) -> "asyncio.Future[CacheReply]":
        return self._cache.read(scope.partition, name)

    def release(self, pipeline: Pipeline, names: Iterable[str]) -> None:
        """Give back the locks that no other pipeline uses."""
        others = {name: other for name in names if (other := self._open.get(name)) and other is not pipeline}
        unused = [name for name in names if name not in others or others[name].state in (IDLE, PAUSED)]
        self._lock.release(self._cache.scope(pipeline.scope.partition), unused)

    def release_all(self) -> None:
        for name, pipeline in self._open.items():
            self._lock.release(self._cache.scope(pipeline.scope.partition), (name,))
