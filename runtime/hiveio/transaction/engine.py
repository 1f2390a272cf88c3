"""A command, from the request to the answer: begin, perform, prepare, append, verdict.

A transaction in flight does not live in the request's task: a client that hangs up cancels nothing. Accepted is
answered only when the instance has read its own record back and knows it, by the rule, to be accepted.
"""

import asyncio
import base64
import inspect
import itertools
import logging
import os
import random
import time
from collections import deque
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Raw

from hiveio.actor import Actor, Contract, Event
from hiveio.config import Settings
from hiveio.envelope import Envelope, Outcome, encode_message
from hiveio.errors import (
    Conflict,
    HiveError,
    KeyReused,
    NotFound,
    Problem,
    Refused,
    Rejected,
    SeveralScopes,
    TooLarge,
    Unavailable,
    Unknown,
    VersionMismatch,
)
from hiveio.kafka.appender import Appender
from hiveio.kafka.tail import LogReader
from hiveio.transaction import metrics
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache, Entry, known
from hiveio.transaction.lock import Redlock
from hiveio.transaction.record import Barrier, CommandId, Commit, Read, Write, aggregate
from hiveio.transaction.rule import Known, scope_of
from hiveio.transaction.run import QUEUE, Run, Taken
from hiveio.transaction.scope import Pending, Scope

log = logging.getLogger("hiveio.engine")

COMMANDS = 10_000  # taken and not answered, for all aggregates of an instance
RECORD_LIMIT = 900_000  # bytes; what Kafka takes by default, less its own share
SWEEP_S = 0.05
STARTED_ANEW = 1_000  # times one command is performed again because what it read has moved
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Command:
    """One command on its way. ``needs`` are the aggregates that it is known to touch."""

    __slots__ = (
        "aggregate", "appended", "attempts", "begun", "body", "contract", "deadline", "envelope", "future", "hash", "id",
        "keyed", "needs", "over", "refusal", "scope", "version",
    )  # fmt: skip

    def __init__(self, contract: Contract, envelope: Envelope, scope: Scope, id: CommandId, deadline: float) -> None:
        self.contract, self.envelope, self.scope, self.id, self.deadline = contract, envelope, scope, id, deadline
        self.aggregate = id.target
        self.keyed = envelope.key is not None
        self.hash = blake2b(envelope.body, digest_size=8).hexdigest() if self.keyed else ""
        self.needs = {id.target}
        self.attempts = 0
        self.begun = scope.next
        self.appended = False  # a record of it may be in the log and is not read back
        self.refusal: Problem | None = None
        self.body, self.version = b"null", 0  # the answer
        self.over = False  # answered, or nobody waits any more
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


class Reading:
    """The ``tx`` of one perform: what it has read, at which heads, and what it writes elsewhere."""

    def __init__(self, engine: "Engine", command: Command, run: Run, tip: Entry) -> None:
        self._engine, self._command = engine, command
        self.runs = {command.aggregate: run}
        self.entries = {command.aggregate: tip}
        self.events: dict[str, list[Event]] = {}

    async def get(self, actor: type[Actor], id: str) -> Any:
        name = self._named(actor, id)
        if name not in self.entries:
            self._command.needs.add(name)
            run = self._engine.run(self._command.scope, name)
            run.guests += 1
            self.runs[name] = run
            self.entries[name] = await run.visit()
        return self.entries[name].state

    def emit(self, actor: type[Actor], id: str, event: Event) -> None:
        name = self._named(actor, id)
        self._engine.by_kind[actor].check_event(event)
        self.events.setdefault(name, []).append(event)

    async def complete(self) -> None:
        """Read the aggregates that are written and were not read."""
        for name in list(self.events):
            if name not in self.entries:
                actor, _, id = name.partition("/")
                await self.get(self._engine.contracts[actor].kind, id)

    def _named(self, actor: type[Actor], id: str) -> str:
        contract = self._engine.by_kind.get(actor)
        if contract is None:
            raise TypeError(f"{actor!r} is not an actor of this service")
        name = aggregate(contract.name, id)
        scope, mine = self._engine.partition(contract, id), self._command.scope.partition
        if scope != mine:
            raise SeveralScopes(
                f"{self._command.aggregate} is in scope {mine} and {name} in scope {scope}: a transaction stays inside "
                "one scope; give both aggregates one scope with the actors' scope(id), or use one partition",
                aggregates=[self._command.aggregate, name],
                scopes=[mine, scope],
            )
        return name

    def moved(self) -> bool:
        """Whether something read has moved on meanwhile."""
        return any(self.runs[name].tip is not entry for name, entry in self.entries.items())

    def close(self) -> None:
        for name, run in self.runs.items():
            if name != self._command.aggregate:
                run.guests -= 1
                if not run.guests:
                    run.pump()


class Engine:
    """The transactions of one instance."""

    def __init__(
        self, settings: Settings, contracts: Sequence[Contract], scopes: Sequence[Scope], cache: Cache, reader: LogReader,
        lock: Redlock,
    ) -> None:  # fmt: skip
        self.loop = asyncio.get_running_loop()
        self.settings, self.scopes, self.cache, self.reader, self.lock = settings, scopes, cache, reader, lock
        self.contracts = {contract.name: contract for contract in contracts}
        self.by_kind = {contract.kind: contract for contract in contracts}
        self.metrics = metrics
        self.retry_count = settings.lock_retry_count
        self.turn_s = settings.lock_ttl_ms / 10_000
        self.runs: dict[str, Run] = {}
        self.appender: Appender
        self._timeout_s = settings.request_timeout_ms / 1000
        self._keys: set[str] = set()
        self._taken: deque[Command] = deque()  # in the order of their deadlines
        self._open = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._accepted, self._refused = metrics.commands.labels("accepted"), metrics.commands.labels("refused")
        prefix = os.urandom(8).hex()
        self._ids = (f"{prefix}-{_base36(n)}" for n in itertools.count(1))
        for scope in scopes:
            scope.on_barrier = self._barriered

    # -- what the edge asks

    def submit(self, contract: Contract, envelope: Envelope) -> "asyncio.Future[Outcome]":
        """Take a command. The future ends with its outcome or a Problem, at REQUEST_TIMEOUT at the latest."""
        id = envelope.id
        scope = self.scopes[self.partition(contract, id)]
        if not scope.ready:
            raise Unavailable(scope.state, retry_after=1)
        if self._open >= COMMANDS:
            raise Unavailable(f"{COMMANDS} commands are in work: try again later")
        name = aggregate(contract.name, id)
        run = self.run(scope, name)
        if len(run.queue) >= QUEUE:
            raise Unavailable(f"{QUEUE} commands wait for {name}: try again later")
        now = self.loop.time()
        key = envelope.key
        command = Command(contract, envelope, scope, CommandId(name, key or self.fresh()), now + self._timeout_s)
        if key is None:
            self._take(command)
            run.push(command)
            return command.future
        text = command.id.text
        if text in self._keys:
            raise Conflict(f"a command with Idempotency-Key {key!r} is in work", headers={"Retry-After": "1"})
        self._keys.add(text)
        self._take(command)
        run.expected += 1
        if run.state == "idle":
            run.open()
        begun = self.cache.begin(scope.partition, "", text)
        begun.add_done_callback(lambda future: self._looked_up(run, command, future))
        return command.future

    async def read(self, contract: Contract, id: str, *, cached: bool = False) -> tuple[Any, int]:
        """The state and version of an aggregate: with every write acknowledged before this call, or, ``cached``, as
        the cache has it now. Raises NotFound if it never was."""
        scope = self.scopes[self.partition(contract, id)]
        name = aggregate(contract.name, id)
        try:
            async with asyncio.timeout(self._timeout_s):
                if not cached:
                    await scope.current()
                while True:
                    if not scope.ready:
                        raise Unavailable(scope.state)
                    entry = None if cached else scope.entry(name)
                    if entry is None:
                        stands, (text, _) = await self.cache.begin(scope.partition, name)
                        if scope.saw(stands) and scope.ready:
                            entry = scope.reconcile(name, int(stands.partition(b"|")[0]), text)
                    if entry is not None:
                        break
                    await asyncio.sleep(self.retry_delay_s())
        except TimeoutError:
            raise Unavailable(f"{name} could not be read within {self._timeout_s:.0f} s") from None
        if entry.state is None:
            raise NotFound(f"there is no {name}")
        return entry.state, entry.version

    async def outcome(self, token: str) -> dict[str, Any]:
        """What became of a transaction: its definite outcome. A command that was not executed is closed by asking."""
        try:
            actor, id, key, keyed = msgspec.json.decode(
                base64.urlsafe_b64decode(token + "=="), type=tuple[str, str, str, bool]
            )
            contract = self.contracts[actor]
        except (ValueError, KeyError, msgspec.MsgspecError, RecursionError):
            raise NotFound(f"there is no transaction {token[:80]!r}") from None
        scope = self.scopes[self.partition(contract, id)]
        if not scope.ready:
            raise Unavailable(scope.state)
        command = CommandId(aggregate(actor, id), key)
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._definite(scope, command, keyed)
                return await self._told(scope, found)
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
        """Out of retries, with no record of the command in flight: it has not happened and will not."""
        if isinstance(problem, Conflict) and command.keyed:
            self._task(self._close_command(command, problem))
        else:
            self._fail(command, problem)

    # -- performing

    def perform(self, run: Run, command: Command) -> None:
        """Run the actor on the tip of its aggregate, and append what it decides."""
        tip = run.tip
        assert tip is not None
        if not run.in_flight and (seen := run.scope.entry(run.aggregate)) is not None:
            tip = run.tip = seen
        contract, envelope = command.contract, command.envelope
        reading = Reading(self, command, run, tip)
        try:
            if envelope.if_match is not None and envelope.if_match != tip.version:
                raise VersionMismatch(f"{command.aggregate} is at version {tip.version}", version=tip.version)
            if not contract.is_async:
                context = envelope.context(tip.version) if contract.wants_context else None
                result = contract.invoke(tip.state, envelope.message, context, reading)
                if not inspect.isawaitable(result) and reading.events.keys() <= reading.entries.keys():
                    self._decide(command, reading, result)
                    return
                waits = self._waits(run, command, reading, result)
            else:
                waits = self._waits(run, command, reading)
        except Exception as error:
            self._raised(command, reading, error)
            return
        run.performing = True
        self._task(waits)

    async def _waits(self, run: Run, command: Command, reading: Reading, result: Any = None) -> None:
        """A perform that waits: for other aggregates, or for whatever its author awaits."""
        contract, envelope = command.contract, command.envelope
        begun = contract.is_async
        try:
            for _ in range(STARTED_ANEW):
                if begun:
                    context = (
                        envelope.context(reading.entries[run.aggregate].version) if contract.wants_context else None
                    )
                    result = contract.invoke(reading.entries[run.aggregate].state, envelope.message, context, reading)
                if inspect.isawaitable(result):
                    result = await result
                await reading.complete()
                if not reading.moved() and await self._surely_held(command, reading):
                    self._decide(command, reading, result)
                    return
                reading.close()
                if run.state != "open" or run.tip is None or command.over:
                    raise Taken(f"{run.aggregate} has moved")
                begun, reading = True, Reading(self, command, run, run.tip)
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
        """Phase one, where a lock has run out while the actor was at work: the cache votes."""
        if time.monotonic() < min(run.until for run in reading.runs.values()):
            return True
        heads = [(name, entry.head or "") for name, entry in reading.entries.items()]
        if any(head in command.scope.pending for _, head in heads):
            return False
        stands, vote = await self.cache.prepare(
            command.scope.partition, self.lock.token, self.settings.lock_ttl_ms, heads
        )
        return command.scope.saw(stands) and vote == 1 and not reading.moved()

    def _raised(self, command: Command, reading: Reading, error: Exception) -> None:
        if isinstance(error, Refused) and not isinstance(error, SeveralScopes):
            try:
                self._decide(command, reading, None, error)
            except Exception as fault:
                self._fail(command, fault)
        else:
            self._fail(command, error)

    def _decide(self, command: Command, reading: Reading, returned: Any, refusal: Refused | None = None) -> None:
        """What perform decided becomes a record, or, if there is nothing to record, an answer."""
        if command.over:
            return
        scope, target, meta = command.scope, command.aggregate, command.envelope.meta
        raw: dict[str, list[Raw]] = {target: []}
        if refusal is None:
            for name, events in reading.events.items():
                raw[name] = [Raw(encode_message(event, meta)) for event in events]
            raw[target] += [Raw(encode_message(e, meta)) for e in command.contract.checked_events(returned)]
        chained = any(entry.head in scope.pending or entry.at > scope.next for entry in reading.entries.values())
        command.refusal = refusal
        if not any(raw.values()) and not command.keyed and not chained and command.attempts < 3:
            heads = {name: entry.head for name, entry in reading.entries.items()}
            self._task(self._answer_unrecorded(command, heads))
            return
        tx = self.fresh()
        entries: dict[str, Entry] = {}
        writes = []
        for name, events in raw.items():
            old = reading.entries[name]
            state, snapshot = scope.folded(name, old, events)
            entries[name] = Entry(old.version + len(events), tx, state, snapshot)
            writes.append(Write(name, old.head or "", old.version, tuple(events)))
        reads: tuple[Read, ...] = ()
        if len(entries) < len(reading.entries) and (chained or command.contract.serializable or refusal is not None):
            reads = tuple([Read(n, e.head or "") for n, e in reading.entries.items() if n not in entries])
        problem = None
        if refusal is not None:
            problem = {"status": refusal.status, "title": refusal.title, "detail": refusal.detail, **refusal.members}
        record = Commit(command.id, tuple(writes), reads, command.keyed, command.hash, problem)
        value = records.encode(record)
        if len(value) > RECORD_LIMIT:
            raise TooLarge(f"the transaction has {len(value)} bytes; at most {RECORD_LIMIT} are taken")
        command.body, command.version = _body(raw[target]), entries[target].version
        self._append(scope, Pending(tx, record, entries, command.begun, self._settled, command), value)
        command.appended = True
        for name, entry in entries.items():
            run = reading.runs[name]
            run.tip = entry
            run.in_flight[tx] = scope.pending[tx]

    def _append(self, scope: Scope, pending: Pending, value: bytes) -> None:
        self.appender.append(scope.partition, pending.tx, value)
        self.appender.in_flight += 1
        scope.pending[pending.tx] = pending

    async def _answer_unrecorded(self, command: Command, heads: dict[str, str | None]) -> None:
        """A refusal, or nothing to write, without a record: true if what it rests on stands at the read index."""
        scope, run = command.scope, self.run(command.scope, command.aggregate)
        run.expected += 1
        try:
            await scope.current()
            stands = all((e := scope.entry(name)) is not None and e.head == head for name, head in heads.items())
            if stands:
                self._answer(command, -1)
        except Problem as problem:
            self._fail(command, problem)
            stands = True
        finally:
            run.expected -= 1
        if stands or command.over:
            run.pump()
        else:
            command.attempts += 1
            run.push(command)

    # -- verdicts

    def _settled(self, pending: Pending, verdict: bool | None, offset: int) -> None:
        """The record is read back: accepted, void, or (None) no longer to be told."""
        self.appender.in_flight -= 1
        command: Command = pending.owner
        target = self.runs[command.aggregate]
        if verdict is not None:
            command.appended = False
        if verdict:
            self._answer(command, offset)
        elif verdict is False:
            metrics.voids.inc()
            command.attempts += 1
            found = command.scope.knows(pending.text)
            if command.over:
                pass
            elif found is not None:
                self._task(self._repeat(command, found))
            elif command.attempts > self.retry_count:
                self.give_up(command, Conflict(f"{command.aggregate} was changed by others {command.attempts} times"))
            else:
                target.redo.append(command)
        for name in pending.entries:
            self.runs[name].settled(pending, verdict)

    def _answer(self, command: Command, offset: int) -> None:
        if not command.over:
            self._over(command)
            if command.refusal is not None:
                self._refused.inc()
            else:
                self._accepted.inc()
        if command.future.done():
            return
        if command.refusal is not None:
            command.future.set_exception(command.refusal)
            return
        headers = {} if offset < 0 else self._headers(command.scope, offset, command.version)
        command.future.set_result(Outcome(encoded=b"null" if offset < 0 else command.body, headers=headers))

    def _headers(self, scope: Scope, offset: int, version: int) -> dict[str, str]:
        return {"ETag": f'"{version}"', "Hive-Position": f"{scope.topic}/{scope.partition}/{offset}"}

    def _fail(self, command: Command, error: Exception) -> None:
        if not command.over:
            self._over(command)
            metrics.commands.labels(type(error).__name__ if isinstance(error, Problem) else "fault").inc()
        if not command.future.done():
            command.future.set_exception(error)
            command.future.exception()  # a client that hung up asks no more: that is no fault to report

    def _over(self, command: Command) -> None:
        command.over = True
        self._open -= 1
        if command.keyed:
            self._keys.discard(command.id.text)

    def _barriered(self, barrier: Barrier) -> None:
        """A barrier has moved these heads: what was appended before and has not come by now is void for ever."""
        for name in barrier.aggregates:
            run = self.runs.get(name)
            for pending in list(run.in_flight.values()) if run is not None else ():
                if pending.owner.aggregate == name and pending.owner.scope.pending.pop(pending.tx, None):
                    self._settled(pending, False, -1)

    # -- repeats, questions, outcomes

    def _looked_up(self, run: Run, command: Command, future: "asyncio.Future[Any]") -> None:
        run.expected -= 1
        error = future.exception()
        if error is not None or not command.scope.saw(future.result()[0]):
            self._fail(command, Unavailable(str(error) if error else command.scope.state))
        elif (found := command.scope.knows(command.id.text) or known(future.result()[1][1])) is not None:
            self._task(self._repeat(command, found))
        else:
            command.begun = int(future.result()[0].partition(b"|")[0])
            run.push(command)
            return
        run.pump()

    async def _repeat(self, command: Command, found: Known) -> None:
        """Answer a command that is on record as it was answered the first time."""
        try:
            record = await self._record(command.scope, found.offset)
            if not isinstance(record, Commit):
                raise Conflict("this Idempotency-Key is closed: its command was not executed and never will be")
            if record.hash != command.hash:
                raise KeyReused(f"Idempotency-Key {command.id.key!r} came first with another body")
            command.refusal = _refusal(record.refusal) if record.refusal else None
            write = record.writes[0]
            command.body, command.version = _body(write.events), write.version + len(write.events)
            self._answer(command, found.offset)
        except HiveError as error:
            self._fail(command, error)

    async def _told(self, scope: Scope, found: Known) -> dict[str, Any]:
        record = await self._record(scope, found.offset)
        position = f"{scope.topic}/{scope.partition}/{found.offset}"
        if not isinstance(record, Commit):
            return {"outcome": "closed", "detail": "it was not executed and never will be"}
        if record.refusal is not None:
            return {"outcome": "refused", "position": position, "problem": record.refusal}
        write = record.writes[0]
        version = write.version + len(write.events)
        return {"outcome": "accepted", "position": position, "version": version, "value": Raw(_body(write.events))}

    async def _record(self, scope: Scope, offset: int) -> records.Record:
        message = await self.reader.read(scope.partition, offset)
        if message is None:
            raise Unavailable(f"{scope.topic}/{scope.partition}/{offset} is not there")
        return records.decode(message.value)

    async def _definite(self, scope: Scope, command: CommandId, keyed: bool) -> Known:
        """Where the command is on record; if it is not, after a barrier which closes it."""
        _, (_, id) = await self.cache.begin(scope.partition, "", command.text)
        if (found := scope.knows(command.text) or known(id)) is not None:
            return found
        settled: asyncio.Future[int] = self.loop.create_future()

        def judged(pending: Pending, verdict: bool | None, offset: int) -> None:
            self.appender.in_flight -= 1
            if not settled.done():
                settled.set_result(offset)

        record = Barrier((command.target,), command, keyed)
        self._append(scope, Pending(self.fresh(), record, {}, -1, judged), records.encode(record))
        offset = await settled
        if (found := scope.knows(command.text)) is not None:
            return found
        applied = asyncio.Event()
        scope.when_applied(offset, applied.set)
        await applied.wait()
        _, (_, id) = await self.cache.begin(scope.partition, "", command.text)
        if (found := known(id)) is None:
            raise Unavailable("the cache is being folded anew: ask again")
        return found

    async def _close_command(self, command: Command, problem: Conflict) -> None:
        try:
            found = await self._definite(command.scope, command.id, True)
            if isinstance(await self._record(command.scope, found.offset), Commit):
                await self._repeat(command, found)
            else:
                self._fail(command, problem)
        except Unavailable as error:
            self._fail(command, Unknown(error.detail, transaction=self._token(command)))

    def _token(self, command: Command) -> str:
        text = msgspec.json.encode((command.contract.name, command.envelope.id, command.id.key, command.keyed))
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    # -- time

    def start(self, appender: Appender) -> None:
        self.appender = appender
        self._sweep()

    async def drain(self, timeout_s: float) -> None:
        """Wait until every command taken is answered and nothing of them is in flight, within the bound."""
        end = self.loop.time() + timeout_s
        while (self._open or any(scope.pending for scope in self.scopes)) and self.loop.time() < end:
            await asyncio.sleep(0.005)
        if self._sweeper is not None:
            self._sweeper.cancel()
        for name, run in self.runs.items():
            self.lock.release(self.cache.scope(run.scope.partition), (name,))

    def failed(self, tx: str, reason: str) -> None:
        """An append failed: the record may be in the log, or come later. Make it definite."""
        for scope in self.scopes:
            pending = scope.pending.get(tx)
            if pending is not None and isinstance(pending.owner, Command):
                log.warning("an append to %s/%s has an unknown outcome: %s", scope.topic, scope.partition, reason)
                self._rescue(pending.owner)

    def _sweep(self) -> None:
        """Answer what has come to its deadline: 504 if a record of it may be in the log, else nothing has happened."""
        now = self.loop.time()
        while self._taken and (self._taken[0].over or self._taken[0].deadline <= now):
            command = self._taken.popleft()
            if command.over:
                continue
            if command.appended:
                text = (
                    f"no verdict within {self._timeout_s:.0f} s: it may have been executed; ask GET /transactions/<id>"
                )
                self._fail(command, Unknown(text, transaction=self._token(command)))
                self._rescue(command)
            else:
                text = f"{command.aggregate} was not to be had within {self._timeout_s:.0f} s: nothing has happened"
                self._fail(command, Unavailable(text))
        metrics.in_flight.set(self._open)
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def _rescue(self, command: Command) -> None:
        """Records of this aggregate do not come back: a barrier makes room for those that wait behind them."""
        scope, name = command.scope, command.aggregate
        if any(isinstance(p.record, Barrier) and name in p.record.aggregates for p in scope.pending.values()):
            return

        def judged(pending: Pending, verdict: bool | None, offset: int) -> None:
            self.appender.in_flight -= 1

        record = Barrier((name,))
        try:
            self._append(scope, Pending(self.fresh(), record, {}, -1, judged), records.encode(record))
        except Problem as problem:
            log.warning("no barrier for %s: %s", name, problem)

    def _take(self, command: Command) -> None:
        self._taken.append(command)
        self._open += 1

    def _task(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)  # the loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)


def _refusal(problem: dict[str, Any]) -> Problem:
    status, title = problem.pop("status"), problem.pop("title")
    refusal = Rejected(problem.pop("detail"), **problem)
    refusal.status, refusal.title = status, title
    return refusal


def _body(events: Sequence[Raw]) -> bytes:
    if len(events) == 1:
        return bytes(events[0])
    return b"[" + b",".join(map(bytes, events)) + b"]" if events else b"null"


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits
