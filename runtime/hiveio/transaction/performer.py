"""Performing a command: the actor runs on the tip of its aggregate, and what it decides becomes a record."""

import asyncio
import inspect
import logging
import time
from typing import TYPE_CHECKING, Any, TypeGuard

import msgspec
from msgspec import Raw

from hiveio.envelope import encode_message
from hiveio.errors import Conflict, Problem, Refused, SeveralScopes, TooLarge, contained
from hiveio.fault import about
from hiveio.http.problem import encode_problem
from hiveio.transaction import faults
from hiveio.transaction.cache import Entry
from hiveio.transaction.command import Command, Reading, answer_body
from hiveio.transaction.pending import Pending
from hiveio.transaction.quarantine import refusal
from hiveio.transaction.record import Commit, Read, Write
from hiveio.transaction.run import LOCK_BUSY, OPEN, LockBusy, Run

if TYPE_CHECKING:
    from hiveio.transaction.engine import Engine

logger = logging.getLogger("hiveio.engine")

STARTED_ANEW = 1_000  # times that one perform is repeated because what it read has moved
UNRECORDED = 3  # attempts after which a refusal becomes a record, so that a busy aggregate cannot put it off for ever
ENDED_S = 1.0  # in which a perform that is cancelled ends
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Waiting:
    """A perform that waits: what it holds until it ends or is abandoned."""

    __slots__ = ("reading", "run", "task")

    def __init__(self, run: Run, reading: Reading | None) -> None:
        self.run, self.reading = run, reading
        self.task: asyncio.Task[None]


class Performer:
    """Performs for the runs of one engine."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._abandoned: set[asyncio.Task[None]] = set()  # cancelled, and not ended

    def perform(self, run: Run, command: Command) -> None:
        """Run the actor on the tip of its aggregate, and append what it decides."""
        now = time.monotonic()  # uvloop counts whole milliseconds
        self._engine.tally.begin.observe(now - command.since_s)
        command.since_s = now
        if command.contract.is_async:
            self._wait(run, command)
            return
        reading = self._reading(run, command)
        try:
            result = command.context.run(self._invoke, command, reading)
            if not inspect.isawaitable(result) and reading.complete:
                self._decide(command, reading, result)
                if command.contract.wants_tx:
                    reading.close()
                return
        except BaseException as error:
            self._raised(command, reading, contained(error))
            reading.close()
            return
        self._wait(run, command, reading, result)

    def _reading(self, run: Run, command: Command) -> Reading:
        """What it is performed on: the aggregate as it stands now. Raises LockBusy."""
        tip = run.latest()
        if run.state is not OPEN or tip is None:
            raise LockBusy(f"{run.aggregate} has moved")
        return Reading(self._engine, command, run, tip)

    def _invoke(self, command: Command, reading: Reading) -> Any:
        contract, envelope = command.contract, command.envelope
        if reading.entries[command.target].fault:
            raise refusal(command.target)
        if envelope.conditions is not None:
            envelope.conditions.check(reading.version, command.target)
        context = envelope.context(reading.version) if contract.wants_context else None
        return contract.invoke(reading.state, command.message(), context, reading)

    def _wait(self, run: Run, command: Command, reading: Reading | None = None, result: Any = None) -> None:
        run.performing = command.waiting = waiting = Waiting(run, reading)
        waiting.task = self._engine.task(self._waits(waiting, command, result), command.context.copy())

    def abandon(self, command: Command) -> None:
        """The command is over: cancel its perform, if that waits. What it held is free at once, whether it ends or
        not, and nothing that it decides from now on is appended."""
        waiting, command.waiting = command.waiting, None
        if waiting is None:
            return
        self._engine.tally.cancelled += 1
        self._tell("%s.perform took longer than its command may, and is cancelled", command)
        waiting.task.cancel()
        self._abandoned.add(waiting.task)
        waiting.task.add_done_callback(self._abandoned.discard)
        self._engine.loop.call_later(ENDED_S, self._look, command, waiting.task)
        self._free(waiting)

    def _free(self, waiting: Waiting) -> None:
        if waiting.reading is not None:
            waiting.reading.close()
        if waiting.run.performing is waiting:
            waiting.run.performed()

    def _look(self, command: Command, task: asyncio.Task[None]) -> None:
        """An actor may catch its cancellation, and go on."""
        if not task.done():
            self._tell("%s.perform goes on after its cancellation: whatever it decides is not taken any more", command)

    def _tell(self, text: str, command: Command) -> None:
        fields = about(command.contract, command.envelope)
        command.context.run(logger.error, text, command.contract.kind.__name__, extra=fields)

    @property
    def abandoned(self) -> int:
        """Performs that go on after their cancellation."""
        return len(self._abandoned)

    async def _waits(self, waiting: Waiting, command: Command, result: Any) -> None:
        """A perform that waits: for other aggregates, or for whatever its author awaits.

        Its events, its refusal or its fault count if all that it has read still stands; otherwise it is performed
        again. A record on what has moved would be void, and with it all that is chained behind it.
        """
        run = waiting.run
        try:
            for _ in range(STARTED_ANEW):
                error: Exception | None = None
                begun, reading = waiting.reading is not None, waiting.reading or self._reading(run, command)
                waiting.reading = reading
                try:
                    if not begun:
                        result = self._invoke(command, reading)
                    if inspect.isawaitable(result):
                        result = await result
                    await reading.read_written()
                except BaseException as raised:
                    error = contained(raised)
                if command.over:  # abandoned
                    return
                if not reading.moved():
                    if error is not None and not _is_refusal(error):
                        raise error
                    if await self._surely_held(command, reading):
                        self._decide(command, reading, result, error)
                        return
                reading.close()
                waiting.reading = None
            text = f"what {run.aggregate} reads moved {STARTED_ANEW} times while it was performed"
            self._engine.give_up(command, Conflict(text))
        except LockBusy:
            command.attempts += 1
            if command.over:
                return
            if command.attempts > self._engine.retry_count:
                self._engine.give_up(
                    command, Conflict(LOCK_BUSY)
                )  # which aggregate it is, may be another client's secret
            else:
                run.set_aside(command)
        except BaseException as fault:
            self._engine.fail(command, fault)
        finally:
            command.waiting = None
            self._free(waiting)

    async def _surely_held(self, command: Command, reading: Reading) -> bool:
        """Phase one: where a lock has run out while the actor was at work, the cache votes. Raises LockBusy."""
        if time.monotonic() < min(run.until for run in reading.runs.values()):
            return True
        heads = [(name, entry.head or "") for name, entry in reading.entries.items()]
        if any(head in command.scope.pending for _, head in heads):
            raise LockBusy(f"the lock of {command.target} ran out")  # and the cache cannot know what is not read back
        scope, ttl_ms = command.scope, self._engine.settings.lock_ttl_ms
        watermark, vote = await self._engine.cache.prepare(scope.partition, self._engine.lock.token, ttl_ms, heads)
        return scope.mirror.observe_watermark(watermark) and vote == 1 and not reading.moved()

    def _raised(self, command: Command, reading: Reading, error: Exception) -> None:
        """A refusal is decided like anything else; other errors are answered, and nothing was appended."""
        if _is_refusal(error):
            try:
                self._decide(command, reading, None, error)
                return
            except BaseException as fault:
                error = contained(fault)
        self._engine.fail(command, error)

    def _decide(self, command: Command, reading: Reading, returned: Any, refusal: Problem | None = None) -> None:
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
            self._engine.task(
                self._engine.answer_unrecorded(command, {name: entry.head for name, entry in entries.items()})
            )
            return
        tx = self._engine.fresh()
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
        problem = None if refusal is None else _decode(encode_problem(refusal))
        headers = {} if refusal is None else refusal.headers
        trace, state = command.trace.get("traceparent", ""), command.trace.get("tracestate", "")
        record = Commit(
            command.id,
            tuple(writes),
            reads,
            command.keyed,
            command.hash,
            problem,
            trace,
            headers,
            state,
            scope.view.next,
        )
        command.body, command.version = answer_body(raw[target]), results[target].version
        command.events = any(raw.values())
        pending = Pending(tx, record, results, command.id_absent_from, self._engine.settled, command)
        if faults.armed:
            faults.hit("prepared", target)
        self._engine.append(scope, pending)
        command.appended = True
        now = time.monotonic()
        self._engine.tally.perform.observe(now - command.since_s)
        command.since_s = now
        if faults.armed:
            faults.hit("appended", target)
        for name, entry in results.items():
            reading.runs[name].appended(pending, entry)


def _is_refusal(error: Exception | None) -> TypeGuard[Refused]:
    """What is recorded or answered as the decision of a domain."""
    return isinstance(error, Refused) and not isinstance(error, SeveralScopes | TooLarge)
