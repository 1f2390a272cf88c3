"""Performing a command: the actor runs on the tip of its aggregate, and its decision becomes a record."""

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import NoneType
from typing import Any, TypeGuard

import msgspec
from msgspec import Raw, Struct

from hiveio.config import Settings
from hiveio.envelope import encode_message
from hiveio.errors import Conflict, NotFound, Problem, Refused, Rejected, SeveralScopes, TooLarge, contained
from hiveio.fault import about
from hiveio.transaction import faults
from hiveio.transaction.actors import Actors
from hiveio.transaction.cache import Cache
from hiveio.transaction.command import InFlight, shown
from hiveio.transaction.decision import check_passed, record_of, validated
from hiveio.transaction.entry import Entry
from hiveio.transaction.lock import LOCKED, LockBusy, Redlock
from hiveio.transaction.metrics import CommandMetrics
from hiveio.transaction.pending import Pending
from hiveio.transaction.pipeline import Pipeline
from hiveio.transaction.pipeline_state import OPEN
from hiveio.transaction.process import advanced
from hiveio.transaction.quarantine import refusal
from hiveio.transaction.record import Commit, Write
from hiveio.transaction.stuck import check_room, sticks, traceback_of, why
from hiveio.transaction.tasks import Tasks
from hiveio.transaction.tx import Tx
from hiveio.transaction.work import Work

logger = logging.getLogger("hiveio.engine")

REPEATS = 1_000  # of one perform because an aggregate that it read was changed meanwhile
UNRECORDED = 3  # attempts after which a refusal becomes a record, so that a busy aggregate cannot delay it forever
ENDED_S = 1.0  # within which a cancelled perform should end
Settled = Callable[[InFlight, Pending, bool | None, int], None]
_DECISIONS = (Struct, list, tuple, NoneType)  # what ``perform`` returns when it has decided
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class _Perform:
    """A perform that waits, with the pipeline and the tx that it uses until it ends or is abandoned."""

    __slots__ = ("pipeline", "task", "tx")

    def __init__(self, pipeline: Pipeline, tx: Tx | None) -> None:
        self.pipeline, self.tx = pipeline, tx
        self.task: asyncio.Task[None]


class Performer:
    """Performs for the pipelines of one instance."""

    def __init__(
        self,
        settings: Settings,
        actors: Actors,
        cache: Cache,
        lock: Redlock,
        work: Work,
        metrics: CommandMetrics,
        tasks: Tasks,
        settled: Settled,
        may_perform: Callable[[Pipeline, InFlight], bool],
    ) -> None:
        """``settled`` is called with the verdict of each record. ``may_perform`` says whether a shared command may be
        performed on the tip; otherwise it takes care of the command."""
        self._retry_count, self._lock_ttl_ms, self._token = (
            settings.lock_retry_count,
            settings.lock_ttl_ms,
            lock.token,
        )
        self._actors, self._cache, self._work = actors, cache, work
        self._metrics, self._tasks, self._settled = metrics, tasks, settled
        self._may_perform = may_perform
        self._abandoned: set[asyncio.Task[None]] = set()  # they are cancelled and have not ended

    def perform(self, pipeline: Pipeline, command: InFlight) -> None:
        """Run the actor on the tip of its aggregate, and append its decision."""
        if command.shared and not self._may_perform(pipeline, command):
            return
        self._metrics.begin.observe(command.next_phase())
        if command.contract.is_async:
            self._wait(pipeline, command)
            return
        tx = self._begin(pipeline, command)
        try:
            result = command.context.run(self._invoke, command, tx)
            if tx.complete and not _is_awaitable(result):
                self._decide(command, tx, result)
                if command.contract.wants_tx:
                    tx.close()
                return
        except BaseException as error:
            self._raised(command, tx, contained(error))
            tx.close()
            return
        self._wait(pipeline, command, tx, result)

    def _begin(self, pipeline: Pipeline, command: InFlight) -> Tx:
        """The tx of a new perform, on the tip. Raises LockBusy."""
        tip = pipeline.latest()
        if pipeline.state is not OPEN or tip is None:
            raise LockBusy(f"{pipeline.aggregate} is {pipeline.state.value}")
        return Tx(self._actors, command, pipeline, tip)

    def _invoke(self, command: InFlight, tx: Tx) -> Any:
        contract, envelope = command.contract, command.envelope
        if tx.entries[command.target].fault:
            raise refusal(command.target)
        if tx.taken or (command.input is not None and command.input.only_answers):
            return None
        if contract.process and tx.has_ended(command.target):
            raise NotFound(f"{shown(command.target)} has ended.")
        if command.input is not None:
            if command.input.refusal is not None:
                raise command.input.refusal
            if tx.waits:
                check_room(command.target, tx.entries[command.target].process)
            if command.input.skips or tx.waits:
                return None
        if envelope.conditions is not None:
            envelope.conditions.check(tx.version, command.target)
        context = envelope.context(tx.version) if contract.wants_context else None
        return contract.invoke(tx.state, command.message(), context, tx)

    # -- performs that wait

    def _wait(self, pipeline: Pipeline, command: InFlight, tx: Tx | None = None, result: Any = None) -> None:
        perform = _Perform(pipeline, tx)
        pipeline.begin_perform(perform)
        command.performing(partial(self._abandon, perform, command))
        perform.task = self._tasks.spawn(self._perform_async(perform, command, result), command.context.copy())

    async def _perform_async(self, perform: _Perform, command: InFlight, result: Any) -> None:
        """Run a perform that waits: for other aggregates, or for anything that the actor awaits.

        Its events, its refusal or its fault count if no aggregate that it has read was changed meanwhile; otherwise it
        is performed again. Its record would be void, and all records behind it too.
        """
        pipeline = perform.pipeline
        try:
            for _ in range(REPEATS):
                error: Exception | None = None
                first_run = perform.tx is None
                if first_run and command.shared and not self._may_perform(pipeline, command):
                    return
                if first_run and pipeline.contended:
                    raise LockBusy(f"other instances work on {pipeline.aggregate}")
                tx = perform.tx or self._begin(pipeline, command)
                perform.tx = tx
                try:
                    if first_run:
                        result = self._invoke(command, tx)
                    if _is_awaitable(result):
                        result = await result
                    await tx.read_written()
                except BaseException as raised:
                    error = contained(raised)
                if command.over:  # abandoned
                    return
                if not tx.moved():
                    if error is not None and not (_is_refusal(error) or sticks(command, error)):
                        raise error
                    if await self._revalidate_locks(command, tx):
                        try:
                            self._decide(command, tx, result, error)
                        except BaseException as fault:
                            self._raised(command, tx, contained(fault))
                        return
                tx.close()
                perform.tx = None
            text = f"What the command reads was changed {REPEATS} times while it was performed. Try again later."
            pipeline.give_up(command, Conflict(text))
        except LockBusy:
            command.retried()
            if command.over:
                return
            if command.attempts > self._retry_count:
                pipeline.give_up(
                    command, Conflict(LOCKED)
                )  # the name of the aggregate may be the secret of another client
            else:
                pipeline.set_aside(command)
        except BaseException as fault:
            command.fail(fault)
        finally:
            error = None  # its traceback has this frame, so only Python's collector could free the two
            command.performed()
            self._free(perform)

    async def _revalidate_locks(self, command: InFlight, tx: Tx) -> bool:
        """Phase one: if a lock has expired while the actor was at work, the cache votes. Raises LockBusy."""
        if time.monotonic() < tx.locked_until:
            return True
        scope, heads = command.scope, [(name, entry.head or "") for name, entry in tx.entries.items()]
        if any(head in scope.journal.pending for _, head in heads):
            raise LockBusy(f"the lock of {command.target} expired")  # the cache has no records that are not read back
        watermark, yes = await self._cache.prepare(scope.partition, self._token, self._lock_ttl_ms, heads)
        return scope.mirror.observe_watermark(watermark) and yes and not tx.moved()

    def _abandon(self, perform: _Perform, command: InFlight) -> None:
        """The command is answered, so cancel its perform. What it used is free at once, whether it ends or not, and
        nothing that it decides from now on is appended."""
        self._metrics.perform_cancelled()
        self._log("%s.perform did not end before the deadline of its command and is cancelled", command)
        perform.task.cancel()
        self._abandoned.add(perform.task)
        perform.task.add_done_callback(self._abandoned.discard)
        asyncio.get_running_loop().call_later(ENDED_S, self._look, command, perform.task)
        self._free(perform)

    def _free(self, perform: _Perform) -> None:
        if perform.tx is not None:
            perform.tx.close()
        perform.pipeline.end_perform(perform)

    def _look(self, command: InFlight, task: asyncio.Task[None]) -> None:
        """Log a perform that has caught its cancellation and goes on."""
        if not task.done():
            self._log("%s.perform goes on after its cancellation: its decision will be ignored", command)

    def _log(self, text: str, command: InFlight) -> None:
        fields = about(command.contract, command.envelope)
        command.context.run(logger.error, text, command.contract.kind.__name__, extra=fields)

    @property
    def abandoned(self) -> int:
        """How many performs go on after their cancellation."""
        return len(self._abandoned)

    # -- decisions

    def _raised(self, command: InFlight, tx: Tx, error: Exception) -> None:
        """A refusal is a decision like any other; other errors are answered, and nothing is appended."""
        if _is_refusal(error) or sticks(command, error):
            try:
                self._decide(command, tx, None, error)
                return
            except BaseException as fault:
                error = contained(fault)
        command.fail(error)

    def _decide(self, command: InFlight, tx: Tx, returned: Any, error: Exception | None = None) -> None:
        """Append the decision of perform as a record, or answer without one if there is nothing to record. ``error`` is
        a refusal, or why a process cannot go on."""
        if command.over:
            return
        stuck = sticks(command, error)
        refusal = error if isinstance(error, Problem) and not stuck else None
        scope, journal, target, meta = command.scope, command.scope.journal, command.target, command.envelope.meta
        raw: dict[str, list[Raw]] = {target: []}
        step = None
        if tx.taken or refusal is not None:
            pass
        elif command.input is not None and (stuck or tx.waits):
            step = tx.parked(command.input, why(error) if error is not None else "")
        else:
            step = tx.step(command.input)
        if stuck:
            self._metrics.stuck()
            logger.error("the process %s is stuck: %s", command.target, why(error), exc_info=traceback_of(error))
        cause = None if command.input is None or tx.taken else command.input.cause
        if error is None:
            for name, events in tx.events.items():
                if tx.has_ended(name):
                    raise Rejected(f"{shown(name)} has ended, and takes no event.")
                raw[name] = [Raw(encode_message(event, meta)) for event in events]
            for event in command.contract.checked_events(returned):
                raw[target].append(Raw(encode_message(event, meta)))
        # If it depends on a record that is not read back, or on entries of different offsets, its reads are validated.
        pending, following = journal.pending, scope.view.next
        chained = has_events = False  # in loops, since a generator costs more than what it looks at
        for entry in tx.entries.values():
            chained = chained or entry.head in pending or entry.at > following
        for emitted in raw.values():
            has_events = has_events or bool(emitted)
        if not (has_events or step or cause or command.repeatable or chained) and command.attempts < UNRECORDED:
            command.decided(refusal)
            pipeline, heads = tx.pipelines[target], {name: entry.head for name, entry in tx.entries.items()}
            pipeline.expect()
            self._tasks.spawn(self._answer_unrecorded(pipeline, command, heads))
            return
        if command.passed:
            check_passed(command.passed, sum(map(len, raw.values())))
        id = journal.fresh()
        results, writes = self._written(command, tx, raw, id)
        if step or cause:  # its deadlines are due later than that, since the log's time goes on until it is there
            result = results[target]
            result.process = advanced(result.process, step, cause, scope.view.time, scope.view.next)
            if step is not None and step.ends:
                result.end()
        reads = validated(command, tx, raw, refusal, chained)
        record = record_of(command, writes, reads, refusal, step, cause)
        command.decided(refusal, raw[target], results[target].version, has_events)
        self._append(command, tx, id, record, results)

    @staticmethod
    def _written(
        command: InFlight, tx: Tx, raw: dict[str, list[Raw]], id: str
    ) -> tuple[dict[str, Entry], tuple[Write, ...]]:
        """The aggregates after the record, and the writes of the record. Raises what ``replay`` raises."""
        results, writes = dict[str, Entry](), []
        for name, events in raw.items():
            old = tx.entries[name]
            state, snapshot = command.scope.view.folded(name, old, events)
            results[name] = Entry(old.version + len(events), id, state, snapshot, old.at, process=old.process)
            writes.append(Write(name, old.head or "", old.version, tuple(events)))
        return results, tuple(writes)

    def _append(self, command: InFlight, tx: Tx, id: str, record: Commit, results: dict[str, Entry]) -> None:
        settled = partial(self._settled, command)
        pending = Pending(
            id, record, settled, entries=results, id_absent_from=command.id_absent_from, refused=command.fail
        )
        if faults.armed:
            faults.hit("prepared", command.target)
        command.scope.journal.append(pending)
        self._work.appended(pending)
        command.recorded()
        self._metrics.perform.observe(command.next_phase())
        if faults.armed:
            faults.hit("appended", command.target)
        for name, entry in results.items():
            tx.pipelines[name].appended(pending, entry)

    async def _answer_unrecorded(self, pipeline: Pipeline, command: InFlight, heads: dict[str, str | None]) -> None:
        """Answer a refusal, or a command without events, without a record. This is right if the state that it was
        decided on is as new as its actor asks for."""
        scope = command.scope
        try:
            await scope.caught_up(command.contract.reads)
            entries = {name: scope.known(name) for name in heads}
            if all(entry is not None and entry.head == heads[name] for name, entry in entries.items()):
                command.answer(-1)
        except Exception as error:  # whatever it is, the pipeline must not go on waiting for this command
            command.fail(error)
        if command.over:
            pipeline.arrived(None)
        else:
            command.retried()
            pipeline.arrived(command)


def _is_awaitable(result: Any) -> TypeGuard[Awaitable[Any]]:
    """Whether perform has returned something to await, and no events."""
    return not isinstance(result, _DECISIONS) and inspect.isawaitable(result)


def _is_refusal(error: Exception | None) -> TypeGuard[Refused]:
    """Whether an error is the decision of an actor, which is recorded or answered."""
    return isinstance(error, Refused) and not isinstance(error, SeveralScopes | TooLarge)
