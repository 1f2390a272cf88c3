"""A command, from the request to the answer: begin, perform, prepare, append, verdict.

A transaction in flight does not live in the request's task: a client that hangs up cancels nothing. Accepted is
answered only when the instance has read its own record back and knows it, by the rule, to be accepted. The hot path
makes one future a command, and no task.
"""

import asyncio
import inspect
import logging
import random
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextvars import Context
from typing import Any

from msgspec import Raw

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import Envelope, Outcome, encode_message
from hiveio.errors import (
    Conflict,
    HiveError,
    NotFound,
    Problem,
    Refused,
    SeveralScopes,
    TooLarge,
    Unavailable,
    Unknown,
    VersionMismatch,
)
from hiveio.kafka.appender import Appender
from hiveio.kafka.tail import LogReader
from hiveio.problem import problem_document
from hiveio.transaction import faults
from hiveio.transaction import record as records
from hiveio.transaction.cache import Begun, Cache, Entry
from hiveio.transaction.command import Command, Reading, Token, answer_body, fresh_ids
from hiveio.transaction.lock import Redlock
from hiveio.transaction.metrics import Tally
from hiveio.transaction.outcome import Outcomes
from hiveio.transaction.record import Barrier, CommandId, Commit, Read, Write, aggregate
from hiveio.transaction.rule import Known, scope_of
from hiveio.transaction.run import IDLE, OPEN, QUEUE, Run, Taken
from hiveio.transaction.scope import Pending, Scope

log = logging.getLogger("hiveio.engine")

COMMANDS = 10_000  # taken and not answered, for all aggregates of an instance
RECORD_LIMIT = 900_000  # bytes; what Kafka takes by default, less its own share
SWEEP_S = 0.05
BARRIER_AGAIN_S = 0.5  # until a barrier that could not be appended is tried again
STARTED_ANEW = 1_000  # times that one perform is repeated because what it read has moved
UNRECORDED = 3  # attempts after which a refusal becomes a record, so that a busy aggregate cannot put it off for ever


class Engine:
    """The transactions of one instance."""

    def __init__(
        self,
        settings: Settings,
        contracts: Sequence[Contract],
        scopes: Sequence[Scope],
        cache: Cache,
        reader: LogReader,
        lock: Redlock,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings, self.scopes, self.cache, self.lock = settings, scopes, cache, lock
        self.contracts = {contract.name: contract for contract in contracts}
        self.by_kind = {contract.kind: contract for contract in contracts}
        self.retry_count = settings.lock_retry_count
        self.turn_s = settings.lock_ttl_ms / 10_000
        self.runs: dict[str, Run] = {}
        self._appender: Appender
        self._timeout_s = settings.request_timeout_ms / 1000
        self._ids = fresh_ids()
        self._outcomes = Outcomes(cache, reader, self._append, self.fresh)
        self._keys: set[str] = set()  # commands with an Idempotency-Key that are in work here
        self._taken: deque[Command] = deque()  # in the order of their deadlines
        self._open = 0
        self._tally = Tally()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        for scope in scopes:
            scope.on_barrier = self._barriered

    def start(self, appender: Appender) -> None:
        self._appender = appender
        self._sweep()

    # -- what the edge asks

    def submit(self, contract: Contract, envelope: Envelope) -> Command:
        """Take a command. Its future ends with its outcome or a Problem, at REQUEST_TIMEOUT at the latest."""
        scope = self.scopes[self.partition(contract, envelope.id)]
        if not scope.ready:
            raise Unavailable(scope.state)
        if scope.late:
            raise Unavailable(f"verdicts of {scope.where} are late: try again later")
        if self._open >= COMMANDS:
            raise Unavailable(f"{COMMANDS} commands are in work: try again later")
        name, key = aggregate(contract.name, envelope.id), envelope.key
        run = self.run(scope, name)
        if len(run.queue) >= QUEUE:
            raise Unavailable(f"{QUEUE} commands wait for {name}: try again later")
        id = CommandId(name, key or self.fresh())
        if key is not None and id.text in self._keys:
            raise Conflict(f"a command with Idempotency-Key {key!r} is in work", headers={"Retry-After": "1"})
        command = Command(contract, envelope, scope, id, self.loop.time() + self._timeout_s)
        self._taken.append(command)
        self._open += 1
        if key is None:
            run.push(command)
        else:
            self._keys.add(id.text)
            run.expected += 1
            if run.state is IDLE:
                run.open()  # in the same round trip
            begun = self.cache.begin(scope.partition, "", id.text)
            begun.add_done_callback(lambda future: self._looked_up(run, command, future))
        return command

    def _looked_up(self, run: Run, command: Command, future: "asyncio.Future[Begun]") -> None:
        """The command id is on record, or it is not and the command takes its place in the queue."""
        run.expected -= 1
        error = future.exception()
        if error is not None or not command.scope.saw(future.result()[0]):
            self._fail(command, Unavailable(str(error) if error else command.scope.state))
        elif (found := command.scope.remembered(command.id.text, future.result()[1][1])) is not None:
            self._task(self._repeat(command, found))
        else:
            command.begun = int(future.result()[0].partition(b"|")[0])
            run.push(command)
            return
        run.pump()

    async def read(self, contract: Contract, id: str, *, cached: bool = False) -> tuple[Any, int]:
        """The state and version of an aggregate: with every write acknowledged before this call, or, ``cached``, as
        the cache has it now. Raises NotFound if it never was."""
        scope = self.scopes[self.partition(contract, id)]
        name = aggregate(contract.name, id)
        if not scope.ready:
            raise Unavailable(scope.state)
        try:
            async with asyncio.timeout(self._timeout_s):
                if not cached:
                    await scope.current()
                entry = None if cached else scope.view.entry(name)
                while entry is None:
                    if not scope.ready:
                        raise Unavailable(scope.state)
                    stands, (text, _) = await self.cache.begin(scope.partition, name)
                    if scope.saw(stands) and scope.ready:
                        entry = scope.view.reconcile(name, int(stands.partition(b"|")[0]), text)
                    if entry is None:
                        await asyncio.sleep(self.retry_delay_s())
        except (TimeoutError, asyncio.CancelledError):  # the edge's own bound may come first
            raise Unavailable(f"{name} could not be read within {self._timeout_s:.0f} s") from None
        if entry.state is None:
            raise NotFound(f"there is no {name}")
        return entry.state, entry.version

    async def outcome(self, token: str) -> dict[str, Any]:
        """What became of a transaction: its definite outcome, or ``unknown`` after the window in which command ids are
        remembered. A command that was not executed is closed by asking."""
        try:
            asked = Token.parse(token)
            contract = self.contracts[asked.actor]
        except (ValueError, KeyError):
            raise NotFound(f"there is no transaction {token[:80]!r}") from None
        scope = self.scopes[self.partition(contract, asked.id)]
        if not scope.ready:
            raise Unavailable(scope.state)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._outcomes.told(scope, asked.command, asked.since)
        except TimeoutError:
            raise Unknown("the outcome is not known yet: ask again", transaction=token) from None

    def partition(self, contract: Contract, id: str) -> int:
        return scope_of(contract.actor.scope(id), len(self.scopes))

    # -- what runs ask

    def run(self, scope: Scope, name: str) -> Run:
        run = self.runs.get(name)
        if run is None:
            run = self.runs[name] = Run(self, scope, name)
        return run

    def closed(self, run: Run) -> None:
        if self.runs.get(run.aggregate) is run:
            del self.runs[run.aggregate]

    def fresh(self) -> str:
        return next(self._ids)

    def retry_delay_s(self) -> float:
        s = self.settings
        return (s.lock_retry_delay_ms + random.random() * s.lock_retry_jitter_ms) / 1000

    def give_up(self, command: Command, problem: Problem) -> None:
        """Out of retries, with no record of the command in flight: it has not happened, and it will not."""
        if isinstance(problem, Conflict) and command.keyed:
            self._task(self._close(command, problem))
        else:
            self._fail(command, problem)

    # -- performing

    def perform(self, run: Run, command: Command) -> None:
        """Run the actor on the tip of its aggregate, and append what it decides."""
        if not run.in_flight and (seen := run.scope.view.entry(run.aggregate)) is not None:
            run.tip = seen
        assert run.tip is not None
        contract, envelope = command.contract, command.envelope
        reading = Reading(self, command, run, run.tip)
        try:
            if envelope.if_match is not None and envelope.if_match != reading.version:
                raise VersionMismatch(f"{run.aggregate} is at version {reading.version}", version=reading.version)
            if contract.is_async:
                waits = self._waits(run, command, reading)
            else:
                result = command.context.run(self._invoke, command, reading)
                if not inspect.isawaitable(result) and reading.complete:
                    self._decide(command, reading, result)
                    return
                waits = self._waits(run, command, reading, result, begun=True)
        except Exception as error:
            self._raised(command, reading, error)
            return
        run.performing = True
        self._task(waits, command.context.copy())

    def _invoke(self, command: Command, reading: Reading) -> Any:
        contract = command.contract
        context = command.envelope.context(reading.version) if contract.wants_context else None
        return contract.invoke(reading.state, command.envelope.message, context, reading)

    async def _waits(
        self, run: Run, command: Command, reading: Reading, result: Any = None, *, begun: bool = False
    ) -> None:
        """A perform that waits: for other aggregates, or for whatever its author awaits."""
        try:
            for _ in range(STARTED_ANEW):
                if not begun:
                    result = self._invoke(command, reading)
                if inspect.isawaitable(result):
                    result = await result
                await reading.read_written()
                if not reading.moved() and await self._surely_held(command, reading):
                    self._decide(command, reading, result)
                    return
                reading.close()
                if run.state is not OPEN or run.tip is None:
                    raise Taken(f"{run.aggregate} has moved")
                begun, reading = False, Reading(self, command, run, run.tip)
            raise Conflict(f"what {run.aggregate} reads moved {STARTED_ANEW} times while it was performed")
        except Taken as taken:
            command.attempts += 1
            if command.attempts > self.retry_count:
                self.give_up(command, Conflict(str(taken)))
            elif not command.over:
                run.set_aside(command)
        except Exception as error:
            self._raised(command, reading, error)
        finally:
            reading.close()
            run.performed()

    async def _surely_held(self, command: Command, reading: Reading) -> bool:
        """Phase one: where a lock has run out while the actor was at work, the cache votes."""
        if time.monotonic() < min(run.until for run in reading.runs.values()):
            return True
        heads = [(name, entry.head or "") for name, entry in reading.entries.items()]
        if any(head in command.scope.pending for _, head in heads):
            return False
        scope, ttl_ms = command.scope, self.settings.lock_ttl_ms
        stands, vote = await self.cache.prepare(scope.partition, self.lock.token, ttl_ms, heads)
        return scope.saw(stands) and vote == 1 and not reading.moved()

    def _raised(self, command: Command, reading: Reading, error: Exception) -> None:
        """A refusal is decided like anything else; other errors are answered, and nothing was appended."""
        if isinstance(error, Refused) and not isinstance(error, SeveralScopes | TooLarge):
            try:
                self._decide(command, reading, None, error)
                return
            except Exception as fault:
                error = fault
        self._fail(command, error)

    def _decide(self, command: Command, reading: Reading, returned: Any, refusal: Refused | None = None) -> None:
        """What perform decided becomes a record or, if there is nothing to record, an answer."""
        if command.over:
            return
        scope, target, meta, entries = command.scope, command.target, command.envelope.meta, reading.entries
        raw: dict[str, list[Raw]] = {target: []}
        if refusal is None:
            for name, emitted in reading.events.items():
                raw[name] = [Raw(encode_message(event, meta)) for event in emitted]
            raw[target] += [Raw(encode_message(e, meta)) for e in command.contract.checked_events(returned)]
        command.refusal = refusal
        # Chained on what is not read back, or not of one cut: the reads have to be validated.
        chained = any(entry.head in scope.pending or entry.at > scope.view.next for entry in entries.values())
        if not any(raw.values()) and not command.keyed and not chained and command.attempts < UNRECORDED:
            self._task(self._answer_unrecorded(command, {name: entry.head for name, entry in entries.items()}))
            return
        tx = self.fresh()
        results, writes = {}, []
        for name, events in raw.items():
            old = entries[name]
            state, snapshot = scope.view.folded(name, old, events)
            results[name] = Entry(old.version + len(events), tx, state, snapshot, old.at)
            writes.append(Write(name, old.head or "", old.version, tuple(events)))
        reads: tuple[Read, ...] = ()
        if len(raw) < len(entries):
            read = [(name, entry) for name, entry in entries.items() if name not in raw]
            # A tip that others have overtaken (its lock was lost) is not the state at ``next``, as the others are.
            stale = any(scope.view.entries.get(name) is not entry for name, entry in read)
            if stale or chained or refusal is not None or command.contract.serializable:
                reads = tuple([Read(name, entry.head or "") for name, entry in read])
        problem = None if refusal is None else problem_document(refusal)
        record = Commit(command.id, tuple(writes), reads, command.keyed, command.hash, problem, command.trace)
        command.body, command.version = answer_body(raw[target]), results[target].version
        pending = Pending(tx, record, results, command.begun, self._settled, command)
        if faults.armed:
            faults.hit("prepared", target)
        self._append(scope, pending)
        command.appended = True
        if faults.armed:
            faults.hit("appended", target)
        for name, entry in results.items():
            reading.runs[name].appended(pending, entry)

    def _append(self, scope: Scope, pending: Pending) -> None:
        value = records.encode(pending.record)
        if len(value) > RECORD_LIMIT:
            raise TooLarge(f"the transaction has {len(value)} bytes; at most {RECORD_LIMIT} are taken")
        self._appender.append(scope.partition, pending.tx, value, in_flight=len(scope.pending))
        scope.pending[pending.tx] = pending

    async def _answer_unrecorded(self, command: Command, heads: dict[str, str | None]) -> None:
        """A refusal, or nothing to write, without a record: true if what it rests on stands at the read index."""
        scope, run = command.scope, self.run(command.scope, command.target)
        run.expected += 1
        try:
            await scope.current()
            entries = {name: scope.view.entry(name) for name in heads}
            stands = all(entry is not None and entry.head == heads[name] for name, entry in entries.items())
            if stands:
                self._answer(command, -1)
        except Problem as problem:
            self._fail(command, problem)
        run.expected -= 1
        if command.over:
            run.pump()
        else:
            command.attempts += 1
            run.push(command)

    # -- verdicts

    def _settled(self, pending: Pending, verdict: bool | None, offset: int) -> None:
        """The record is read back: accepted, void, or (None) no longer to be told."""
        command: Command = pending.owner
        command.appended = verdict is None
        if verdict:
            self._answer(command, offset)
        elif verdict is False:
            self._tally.voids += 1
            command.attempts += 1
            found = command.scope.view.knows(pending.text)
            if command.over:
                pass
            elif found is not None:
                self._task(self._repeat(command, found))
            elif command.attempts > self.retry_count:
                self.give_up(command, Conflict(f"{command.target} was changed by others {command.attempts} times"))
            else:
                self.runs[command.target].redo.append(command)
        for name in pending.entries:
            self.runs[name].settled(pending, verdict)

    def _answer(self, command: Command, offset: int) -> None:
        if faults.armed:
            faults.hit("answering", command.target)
        self._over(command, "accepted" if command.refusal is None else "refused")
        if command.future.done():
            return
        if command.refusal is not None:
            command.future.set_exception(command.refusal)
        elif offset < 0:
            command.future.set_result(Outcome(encoded=b"null"))
        else:
            headers = {"ETag": f'"{command.version}"', "Hive-Position": f"{command.scope.where}/{offset}"}
            command.future.set_result(Outcome(encoded=command.body, headers=headers))

    def _fail(self, command: Command, error: Exception) -> None:
        self._over(command, error.title if isinstance(error, Problem) else "fault")
        if not command.future.done():
            command.future.set_exception(error)
            command.future.exception()  # a client that hung up asks no more: that is no fault to report

    def _over(self, command: Command, outcome: str) -> None:
        if not command.over:
            command.over = True
            self._open -= 1
            self._keys.discard(command.id.text)
            self._tally.outcomes[outcome] += 1

    async def _repeat(self, command: Command, found: Known) -> None:
        try:
            await self._outcomes.repeat(command, found)
            self._answer(command, found.offset)
        except HiveError as error:
            self._fail(command, error)

    async def _close(self, command: Command, problem: Conflict) -> None:
        try:
            self._answer(command, (await self._outcomes.close(command, problem)).offset)
        except Unavailable as error:
            self._fail(command, Unknown(error.detail, transaction=command.token))
        except HiveError as error:
            self._fail(command, error)

    # -- what does not come back

    def failed(self, tx: str, reason: str) -> None:
        """An append failed: the record may be in the log, or come later. Make it definite."""
        for scope in self.scopes:
            pending = scope.pending.get(tx)
            if pending is None:
                continue
            log.warning("an append to %s has an unknown outcome: %s", scope.where, reason)
            if isinstance(pending.record, Barrier):  # it is not waited for any more; if it comes, it does no harm
                del scope.pending[tx]
                pending.settled(pending, None, -1)
                for name in pending.record.aggregates:
                    self._rescue(scope, name)
            else:
                self._rescue(scope, pending.owner.target)

    def _rescue(self, scope: Scope, name: str) -> None:
        """Records of this aggregate do not come back: a barrier makes room for those that wait behind them."""
        run = self.runs.get(name)
        if run is None or not run.in_flight:
            return
        if any(isinstance(p.record, Barrier) and name in p.record.aggregates for p in scope.pending.values()):
            return
        try:
            barrier = Pending(self.fresh(), Barrier((name,)), {}, -1, lambda pending, verdict, offset: None, None)
            self._append(scope, barrier)
        except Problem as problem:
            log.warning("no barrier for %s: %s", name, problem)
            self.loop.call_later(BARRIER_AGAIN_S * (1 + random.random()), self._rescue, scope, name)

    def _barriered(self, barrier: Barrier, offset: int) -> None:
        """A barrier has moved these heads: what was performed on the state before and has not come by now is void for
        ever. What the cache gave from beyond the barrier, which this instance may read late, is not."""
        for name in barrier.aggregates:
            run = self.runs.get(name)
            for pending in list(run.in_flight.values()) if run is not None else ():
                before = pending.owner.target == name and pending.entries[name].at <= offset
                if before and pending.owner.scope.pending.pop(pending.tx, None):
                    self._settled(pending, False, -1)

    # -- time

    def _sweep(self) -> None:
        """Answer what has come to its deadline: 504 if a record of it may be in the log, else nothing has happened."""
        now = self.loop.time()
        while self._taken and (self._taken[0].over or self._taken[0].deadline <= now):
            command = self._taken.popleft()
            if not command.over:
                self.expire(command)
        for scope in self.scopes:
            oldest = next((p.owner for p in scope.pending.values() if p.owner is not None), None)
            scope.late = oldest is not None and oldest.deadline <= now
        self._tally.flush(self._open)
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def expire(self, command: Command) -> Problem:
        """Time is up for a command that is not answered: if no record of it may be in the log, nothing happened."""
        problem: Problem
        if command.appended:
            text = f"no verdict within {self._timeout_s:.0f} s: it may be executed; GET /transactions/<transaction>"
            problem = Unknown(text, transaction=command.token)
        else:
            run = self.runs.get(command.target)
            why = f" ({run.trouble})" if run is not None and run.trouble else ""
            text = f"{command.target} was not to be had within {self._timeout_s:.0f} s{why}: nothing has happened"
            problem = Unavailable(text)
        self._fail(command, problem)
        if command.appended:
            self._rescue(command.scope, command.target)
        return problem

    async def drain(self, timeout_s: float) -> None:
        """Wait until every command is answered and no record is in flight, within the bound; give the locks back."""
        end = self.loop.time() + timeout_s
        while (self._open or any(scope.pending for scope in self.scopes)) and self.loop.time() < end:
            await asyncio.sleep(SWEEP_S / 10)
        if self._sweeper is not None:
            self._sweeper.cancel()
        for name, run in self.runs.items():
            self.lock.release(self.cache.scope(run.scope.partition), (name,))

    def _task(self, coroutine: Coroutine[Any, Any, None], context: Context | None = None) -> None:
        task = self.loop.create_task(coroutine, context=context)
        self._tasks.add(task)  # the loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
