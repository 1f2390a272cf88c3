"""A command, from the request to the answer: begin, perform, prepare, append, verdict.

A transaction in flight does not live in the request's task: a client that hangs up cancels nothing. Accepted is
answered only when the instance has read its own record back and knows it, by the rule, to be accepted. The hot path
makes one future a command, and no task.
"""

import asyncio
import logging
import random
import time
from collections.abc import Coroutine, Sequence
from contextvars import Context
from functools import partial
from typing import Any

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import Envelope, Outcome, nesting
from hiveio.errors import (
    Conflict,
    NotFound,
    Problem,
    TooLarge,
    Unavailable,
    Unknown,
    backend_away,
    contained,
)
from hiveio.kafka.appender import Appender
from hiveio.kafka.log_reader import LogReader
from hiveio.transaction import faults
from hiveio.transaction import record as records
from hiveio.transaction.bounds import SNAPSHOTS_BYTES
from hiveio.transaction.cache import Begun, Cache
from hiveio.transaction.command import Command, Token, fresh_ids
from hiveio.transaction.lock import Redlock
from hiveio.transaction.metrics import Tally
from hiveio.transaction.outcome import Outcomes
from hiveio.transaction.pending import Pending
from hiveio.transaction.performer import Performer
from hiveio.transaction.proof import Consistency, Proofs
from hiveio.transaction.quarantine import refusal
from hiveio.transaction.reads import read
from hiveio.transaction.record import Barrier, CommandId, aggregate
from hiveio.transaction.rescue import Rescue
from hiveio.transaction.rule import IdRecord, scope_of
from hiveio.transaction.run import IDLE, QUEUE, Run
from hiveio.transaction.scope import Scope
from hiveio.transaction.work import Work

logger = logging.getLogger("hiveio.engine")

LEVELS = 250  # of a record as JSON: how many can be read depends on who reads, and nobody may pass a record over
RECORD_LIMIT = 900_000  # bytes; what Kafka takes by default, less its own share
SWEEP_S = 0.05
LAGS_S = 1.0
ABANDONED = 1_000  # performs that go on after their cancellation, beyond which a new process is needed
LATE_S = 3.0  # without a verdict for a record, after which no new work is taken


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
        self.runs: dict[str, Run] = {}
        self._appender: Appender
        self._timeout_s = settings.request_timeout_ms / 1000
        self._ids = fresh_ids()
        self._performer = Performer(self)
        self.perform = self._performer.perform
        self._outcomes = Outcomes(cache, reader, self.append, self.fresh)
        self._keys: set[str] = set()  # commands with an Idempotency-Key that are in work here
        self.work = Work()
        self.tally = Tally()
        self._lags_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._drained = False
        self._rescue = Rescue(self)
        for scope in scopes:
            scope.on_barrier = partial(self._rescue.barriered, scope)
            scope.proofs = Proofs(partial(self.append_barrier, scope))

    def start(self, appender: Appender) -> None:
        self._appender = appender
        self._sweep()

    # -- what the edge asks

    def submit(self, contract: Contract, envelope: Envelope) -> Command:
        """Take a command. Its future ends with its outcome or a Problem, at REQUEST_TIMEOUT at the latest."""
        scope = self.scopes[self.partition(contract, envelope.id)]
        if not scope.ready:
            raise scope.unavailable()
        if reason := self.cache.away:
            raise backend_away(reason)
        if scope.late:
            raise Unavailable("the log is slow to answer: try again later")
        self.work.check()
        name, key = aggregate(contract.name, envelope.id), envelope.key
        if name in scope.quarantine.held and key is None:  # with a key it may be on record
            raise refusal(name)
        run = self.run(scope, name)
        if len(run.queue) >= QUEUE:
            raise Unavailable(f"{QUEUE} commands wait for {name}: try again later")
        id = CommandId(name, key or self.fresh())
        if key is not None and id.text in self._keys:
            raise Conflict(f"a command with Idempotency-Key {key!r} is in work", headers={"Retry-After": "1"})
        command = Command(contract, envelope, scope, id, self.loop.time() + self._timeout_s)
        self.work.take(command)
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
        error = future.exception()
        current = error is None and command.scope.mirror.observe_watermark(
            future.result()[0]
        )  # which closes what waits for an apply
        run.expected -= 1
        if not current:
            self.fail(command, error or command.scope.unavailable())
        elif (found := command.scope.remembered(command.id.text, future.result()[1][1])) is not None:
            self.task(self._repeat(command, found))
        else:
            command.id_absent_from = int(future.result()[0].partition(b"|")[0])
            run.push(command)
            return
        run.pump()

    async def read(self, contract: Contract, id: str, consistency: Consistency) -> tuple[Any, int]:
        """The state and version of an aggregate. Raises NotFound if it never was, Unavailable."""
        scope = self.scopes[self.partition(contract, id)]
        if not scope.ready:
            raise scope.unavailable()
        name = aggregate(contract.name, id)
        return await read(scope, self.cache, name, consistency, self._timeout_s, self.retry_delay_s)

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
            raise scope.unavailable()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._outcomes.told(scope, asked.command, asked.started_at)
        except TimeoutError:
            raise Unknown("the outcome is not known yet: ask again", transaction=token) from None

    def partition(self, contract: Contract, id: str) -> int:
        try:
            return scope_of(contract.actor.scope(id), len(self.scopes))
        except BaseException as error:
            raise contained(error)  # noqa: B904 - it is the same, or has it as its cause

    # -- what runs ask

    def run(self, scope: Scope, name: str) -> Run:
        run = self.runs.get(name)
        if run is None:
            run = self.runs[name] = Run(self, scope, name)
        return run

    def closed(self, run: Run) -> None:
        self.work.opened(run, 0)
        if self.runs.get(run.aggregate) is run:
            del self.runs[run.aggregate]

    def fresh(self) -> str:
        return next(self._ids)

    def age_s(self, queue: Sequence[Command]) -> float:
        """For how long the first of these commands has waited."""
        return self._timeout_s - (queue[0].deadline - self.loop.time()) if queue else 0.0

    def retry_delay_s(self) -> float:
        s = self.settings
        return (s.lock_retry_delay_ms + random.random() * s.lock_retry_jitter_ms) / 1000

    def give_up(self, command: Command, problem: Problem) -> None:
        """Out of retries, with no record of the command in flight: it has not happened, and it will not."""
        if isinstance(problem, Conflict) and command.keyed:
            self.task(self._on_record(command, self._outcomes.close(command, problem)))
        else:
            self.fail(command, problem)

    # -- records and answers

    def append(self, scope: Scope, pending: Pending) -> None:
        if scope.failed:
            raise scope.unavailable()  # nobody would read it back
        if pending.size > SNAPSHOTS_BYTES:
            raise TooLarge(f"what it changes would have {pending.size} bytes; at most {SNAPSHOTS_BYTES} are kept")
        value = records.encode(pending.record)
        if len(value) > RECORD_LIMIT:
            raise TooLarge(f"the transaction has {len(value)} bytes; at most {RECORD_LIMIT} are taken")
        if len(value) > LEVELS and value.count(b"[") + value.count(b"{") > LEVELS and nesting(value) > LEVELS:
            raise TypeError(f"the transaction is nested deeper than {LEVELS}: no reader of the log would come past it")
        self._appender.append(scope.partition, pending.tx, value, in_flight=len(scope.pending))
        scope.pending[pending.tx] = pending
        self.work.appended(pending, len(value))
        scope.proofs.appended(pending.tx)

    def append_barrier(self, scope: Scope, *aggregates: str) -> str:
        """Its transaction id. Nobody is told when it is read back, but those who wait for a proof."""
        barrier = Pending(self.fresh(), Barrier(aggregates, seen=scope.view.next), {}, -1, lambda *_: None, None)
        self.append(scope, barrier)
        return barrier.tx

    async def answer_unrecorded(self, command: Command, heads: dict[str, str | None]) -> None:
        """A refusal, or nothing to write, without a record: true if what it rests on is the newest state, as its actor
        asks for it."""
        scope, run = command.scope, self.run(command.scope, command.target)
        run.expected += 1
        try:
            await scope.caught_up(command.contract.reads)
            entries = {name: scope.view.entry(name) for name in heads}
            stands = all(entry is not None and entry.head == heads[name] for name, entry in entries.items())
            if stands:
                self._answer(command, -1)
        except Exception as error:  # whatever it is: the run is not left waiting for this command
            self.fail(command, error)
        run.expected -= 1
        if command.over:
            run.pump()
        else:
            command.attempts += 1
            run.push(command)

    # -- verdicts

    def settled(self, pending: Pending, verdict: bool | None, offset: int) -> None:
        """The record is read back: accepted, void, or (None) no longer to be told."""
        self.work.settled(pending)
        command: Command = pending.owner
        command.appended = verdict is None
        if verdict:
            self.tally.verdict.observe(time.monotonic() - command.since_s)
            self._answer(command, offset)
        elif verdict is False:
            self.tally.voids += 1
            command.attempts += 1
            found = command.scope.view.knows(pending.text)
            if command.over:
                pass
            elif found is not None:
                self.task(self._repeat(command, found))
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
            headers = {"ETag": f'"{command.version}"'}
            if command.events:  # without any, nobody who waits for the position would ever see it on the event topic
                headers["Hive-Position"] = f"{command.scope.where}/{offset}"
            command.future.set_result(Outcome(encoded=command.body, headers=headers))

    def fail(self, command: Command, error: BaseException) -> None:
        error = contained(error)  # no future takes a StopIteration
        self._over(command, error.title if isinstance(error, Problem) else "fault")
        if not command.future.done():
            command.future.set_exception(error)
            command.future.exception()  # a client that hung up asks no more: that is no fault to report

    def _over(self, command: Command, outcome: str) -> None:
        if not command.over:
            command.over = True
            self.work.over(command)
            self._keys.discard(command.id.text)
            self.tally.outcomes[outcome] += 1
            self.tally.retries += command.attempts

    async def _repeat(self, command: Command, found: IdRecord) -> None:
        command.appended = True  # it is on record: at its deadline nobody may say that nothing has happened
        await self._on_record(command, self._outcomes.repeat(command, found))

    async def _on_record(self, command: Command, outcome: Coroutine[Any, Any, IdRecord]) -> None:
        """Answer with what is on record; where that is not to be had in time, it is unknown."""
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await outcome
            self._answer(command, found.offset)
        except Unavailable as error:
            self.fail(command, Unknown(error.detail, transaction=command.token))
        except TimeoutError:
            self.fail(command, Unknown("the outcome is not known yet: ask again", transaction=command.token))
        except Exception as error:  # whatever it is: it is answered
            self.fail(command, error)

    def failed(self, tx: str, reason: str, definite: bool) -> None:
        """An append failed: the record may be in the log, or come later, unless it is ``definite`` that it does not."""
        self._rescue.failed(tx, reason, definite)

    # -- time

    def _sweep(self) -> None:
        """Answer what has come to its deadline: 504 if a record of it may be in the log, else nothing has happened."""
        now = self.loop.time()
        while (command := self.work.due(now)) is not None:
            self.expire(command)
        for scope in self.scopes:
            oldest = next((p.owner for p in scope.pending.values() if p.owner is not None), None)
            scope.late = oldest is not None and time.monotonic() - oldest.since_s > LATE_S
        self.tally.flush(len(self.work.open), self._performer.abandoned)
        if now > self._lags_at:
            self._lags_at = now + LAGS_S
            for scope in self.scopes:
                scope.show_lags()
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def expire(self, command: Command) -> Problem:
        """Time is up for a command that is not answered: if no record of it may be in the log, nothing happened.

        Its perform, if that waits, is cancelled: it holds nothing any more, and nothing comes of it.
        """
        problem: Problem
        time = "before this instance ended" if self._drained else f"within {self._timeout_s:.0f} s"
        if command.appended:
            text = f"no verdict {time}: it may be executed; GET /transactions/<transaction>"
            problem = Unknown(text, transaction=command.token)
        elif command.waiting is not None:
            problem = Unavailable(f"no decision on {command.target} {time}: nothing has happened")
        else:
            run = self.runs.get(command.target)
            why = f" ({run.trouble})" if run is not None and run.trouble else ""
            problem = Unavailable(f"{command.target} was not to be had {time}{why}: nothing has happened")
        self.fail(command, problem)
        self._performer.abandon(command)
        if command.appended:
            self._rescue.rescue(command.scope, command.target)
        return problem

    @property
    def alive(self) -> bool:
        """Whether the performs that go on after their cancellation are few."""
        return self._performer.abandoned <= ABANDONED

    async def drain(self, timeout_s: float) -> None:
        """Wait until every command is answered and no record is in flight, within the bound; give the locks back.

        What is not answered by then is told what is known of it, and none of it is performed any more.
        """
        end = self.loop.time() + timeout_s
        try:
            while (self.work.open or any(scope.pending for scope in self.scopes)) and self.loop.time() < end:
                await asyncio.sleep(SWEEP_S / 10)
        finally:
            self._drained = True
            if self._sweeper is not None:
                self._sweeper.cancel()
            # Those that wait in a queue before the one at work: they would be next.
            for command in reversed(list(self.work.open)):
                self.expire(command)
        for name, run in self.runs.items():
            self.lock.release(self.cache.scope(run.scope.partition), (name,))

    def task(self, coroutine: Coroutine[Any, Any, None], context: Context | None = None) -> asyncio.Task[None]:
        task = self.loop.create_task(coroutine, context=context)
        self._tasks.add(task)  # the loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
        return task
