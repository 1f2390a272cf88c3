"""A command, from the request to the answer: look up, lock and read, perform, append, verdict.

A transaction in flight does not depend on the task of its request, so a client that hangs up cancels nothing. A command
is answered as accepted only after this instance has read its record back and the rule has accepted it. The hot path
makes one future for each command, and no task.

::

    submit ─▶ (keyed: is its id on record? ─▶ recovery.repeat) ─▶ pipeline.push
    pipeline: lock and read ─▶ performer.perform on the tip ─▶ journal.append ─▶ the next command, on what that makes
    scope:    the record is read back ─▶ settled: accepted ─▶ command.answer
                                                  void ─▶ performed again, or given up
    at the deadline ─▶ recovery.expire
"""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec import Raw

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import Envelope, Outcome
from hiveio.errors import Conflict, NotFound, Unavailable, Unknown, backend_away
from hiveio.headers import PassedHeaders
from hiveio.identity import Identity, check_scopes
from hiveio.kafka.appender import Appender
from hiveio.kafka.log_reader import LogReader
from hiveio.transaction.access import Access
from hiveio.transaction.actors import Actors
from hiveio.transaction.cache import Cache
from hiveio.transaction.command import InFlight, Shared, Token, shown
from hiveio.transaction.entry import CacheReply
from hiveio.transaction.forwarding import Forwarding
from hiveio.transaction.lock import Redlock, Retries
from hiveio.transaction.metrics import CommandMetrics, followed
from hiveio.transaction.pending import Pending
from hiveio.transaction.performer import Performer
from hiveio.transaction.pipeline import Pipeline
from hiveio.transaction.pipelines import Pipelines
from hiveio.transaction.process import Due, Input, Waiting
from hiveio.transaction.proof import Consistency
from hiveio.transaction.quarantine import refusal
from hiveio.transaction.reads import read
from hiveio.transaction.record import CommandId, aggregate
from hiveio.transaction.recovery import NOT_KNOWN_YET, Recovery
from hiveio.transaction.rule import IdRecord
from hiveio.transaction.scope import Scope
from hiveio.transaction.scopes import Scopes
from hiveio.transaction.tasks import Tasks
from hiveio.transaction.work import Work

QUEUE = 1_000  # commands that wait for one aggregate; further ones are answered 503
SWEEP_S = 0.05  # between two looks at deadlines, while there is work
LAGS_S = 1.0  # the same while there is none, and between two times that lags are shown
ABANDONED = 1_000  # performs that go on after their cancellation; with more the process counts as dead


class Engine:
    """The transactions of one instance."""

    def __init__(
        self,
        settings: Settings,
        contracts: Sequence[Contract],
        scopes: Scopes,
        cache: Cache,
        reader: LogReader,
        lock: Redlock,
    ) -> None:
        self._timeout_s = settings.request_timeout_ms / 1000
        self._scopes, self._cache = scopes, cache
        self._actors = Actors(contracts, len(scopes))
        self._retries, self._passed = Retries(settings), PassedHeaders(settings.event_headers)
        self.keys_in_work: set[str] = set()  # ids of commands with an Idempotency-Key that are not answered
        self.work, self.tasks = Work(), Tasks()
        self._metrics = metrics = CommandMetrics()
        access = Access(cache, lock, self._timeout_s)
        self.pipelines = Pipelines(access, self._retries, self.work, metrics)
        self.recovery = Recovery(scopes, cache, reader, self.pipelines, self.tasks, self._timeout_s)
        self._performer = Performer(
            settings, self._actors, cache, lock, self.work, metrics, self.tasks, self._settled, self._may_perform
        )
        self.pipelines.serve(self._performer.perform, self.recovery.give_up)
        self._forwarding: Forwarding | None = None
        self._lags_at = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self.resting = False  # the next sweep is that of an instance without work
        self._drained = False

    def forward_by(self, forwarding: Forwarding) -> None:
        """Forward commands from now on, where another instance should execute them."""
        self._forwarding = forwarding

    def start(self, appender: Appender) -> None:
        self._scopes.on_open(lambda scope: scope.journal.start(appender))
        self._sweep()

    # -- a command

    def submit(
        self, contract: Contract, envelope: Envelope, input: Input | None = None, shared: Shared | None = None
    ) -> InFlight:
        """Take a command, or the input of a process. Its future ends with its outcome or a Problem, after
        REQUEST_TIMEOUT at the latest.

        An input has no Idempotency-Key: its process knows for ever whether it has taken it. So whatever was answered,
        it may be given again, and then has its effect once. ``shared`` belongs to the command of another instance.
        """
        scope = self._used(contract, envelope.id)
        if reason := self._cache.away(scope.partition):
            raise backend_away(reason)
        self.work.check()
        name, key = aggregate(contract.name, envelope.id), envelope.key
        if not scope.opening:
            self._admit(scope, name, key, input)
        if (open := self.pipelines.get(name)) is not None and len(open.queue) >= QUEUE:
            raise Unavailable(f"{QUEUE} commands wait for {shown(name)}. Try again later.")
        passed = self._passed.of(envelope.headers) if self._passed else ()
        id = CommandId.of(name, shared.key if shared else key or scope.journal.fresh(), envelope.identity)
        if key is not None and id.text in self.keys_in_work:
            raise Conflict(f"A command with Idempotency-Key {key!r} is in work.", headers={"Retry-After": "1"})
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        command = InFlight(contract, envelope, scope, id, deadline, self._over, passed, input, shared)
        self.work.take(command)
        if self.resting:
            self._sweep_in(SWEEP_S)
        if key is not None:
            self.keys_in_work.add(id.text)
        if scope.opening:
            scope.waiting.when_open(partial(self._scope_opened, command))
        else:
            self._enter(command)
        return command

    async def fire(self, name: str, deadline: str, due: Due) -> Outcome:
        """Give a deadline to its process, the aggregate ``name``. Where it is not pending any more, it has no effect.
        Raises what the actor raises, or NotFound where this service does not have it."""
        return await self._drive(name, due.event, Input(fires=deadline, due=due.at))

    async def resume(self, name: str, waiting: Waiting, skip: bool) -> Outcome:
        """Give a process the first input that waits, or drop that one. Where another one is the first by now, it has no
        effect. Raises NotFound where this service does not have the process."""
        return await self._drive(name, waiting.event, Input(resumes=waiting.name, skips=skip))

    async def _drive(self, name: str, event: Raw, input: Input) -> Outcome:
        actor, _, id = name.partition("/")
        contract = self._actors.by_name.get(actor)
        if contract is None:
            raise NotFound(f"{shown(name)} belongs to an actor that is not here.")
        body = bytes(event)
        message, meta = (None, None) if input.skips else contract.input_codec.decode(body)
        envelope = Envelope(message=message, id=id, meta=meta, body=body)
        return await self.submit(contract, envelope, input).future

    def _admit(self, scope: Scope, name: str, key: str | None, input: Input | None) -> None:
        """Raises Unavailable for a command that its scope does not accept now."""
        if not scope.ready:
            raise scope.unavailable()
        if scope.journal.late:
            raise Unavailable("The transaction log is slow to answer. Try again later.")
        if input is not None and input.due > scope.view.time:
            raise Unavailable(f"The deadline {input.fires} of {shown(name)} is not due yet.")
        if name in scope.quarantine.entries and key is None:  # a command with a key may be on record
            raise refusal(name)

    def _scope_opened(self, command: InFlight) -> None:
        """The scope that the command waits for is open, or has failed."""
        if command.over:
            return
        try:
            self._admit(command.scope, command.target, command.envelope.key, command.input)
        except Unavailable as error:
            command.fail(error)
        else:
            command.begin()
            self._enter(command)

    def _enter(self, command: InFlight) -> None:
        """Give the command to the instance that executes it: another one, or this one."""
        if self._forwarding is None or not self._forwarding.forwards(command):
            self.execute(command)

    def execute(self, command: InFlight) -> None:
        """Give the command to the pipeline of its aggregate."""
        command.scope.pace.need()
        pipeline = self.pipelines.of(command.scope, command.target)
        # The id of one that is shared and has no key was fresh, so the view has all that there is to know of it.
        if not (command.keyed or (command.shared and command.scope.view.ids_from > command.started_at.offset)):
            pipeline.push(command)
            return
        pipeline.expect(soon=True)  # so the aggregate is locked and read in the same round trip
        reply = self._cache.read(command.scope.partition, "", command.id.text)
        reply.add_done_callback(partial(self._looked_up, pipeline, command))

    def _looked_up(self, pipeline: Pipeline, command: InFlight, reply: "asyncio.Future[CacheReply]") -> None:
        """The cache has answered: repeat the answer of a command that is on record, and queue any other one."""
        scope, error = command.scope, reply.exception()
        watermark = None if error is not None else reply.result().watermark
        current = error is None and scope.mirror.observe_watermark(watermark)
        if watermark is None or not current:
            command.fail(error or scope.unavailable())
        elif (found := scope.view.remembered(command.id.text, reply.result().id)) is not None:
            self.recovery.repeat(command, found)
        else:
            command.looked_up(watermark.offset)
            pipeline.arrived(command)
            return
        pipeline.arrived(None)

    # -- a shared command

    def _may_perform(self, pipeline: Pipeline, command: InFlight) -> bool:
        """Whether a shared command may be performed on the tip of its pipeline: no record before the state that the tip
        has can be one of this command. Each line that looks odd closes a hole that TLC found: see Forward.tla."""
        view, tip = command.scope.view, pipeline.latest()
        if (found := self._on_record(command)) is not None:
            self.recovery.repeat(command, found)
        elif not view.remembers(command.started_at, IdRecord(view.next, view.time, command.keyed)):
            command.fail(Unavailable("The command has waited for too long. Try again."))
        elif view.ids_from > command.id_absent_from or (tip is not None and tip.at > view.next):
            pipeline.expect()
            self.tasks.spawn(self._look_up_again(pipeline, command, tip.at if tip is not None else view.next))
        else:
            return True
        return False

    async def _look_up_again(self, pipeline: Pipeline, command: InFlight, offset: int) -> None:
        """Look its id up in all records below an offset, once they are judged."""
        try:
            await command.scope.reach(offset)
        except Exception as error:  # whatever it is, the pipeline must not go on waiting for this command
            command.fail(error)
            pipeline.arrived(None)
        else:
            reply = self._cache.read(command.scope.partition, "", command.id.text)
            reply.add_done_callback(partial(self._looked_up, pipeline, command))

    def _settled(self, command: InFlight, pending: Pending, verdict: bool | None, offset: int) -> None:
        """The record of a command is read back: accepted, void, or (None) nobody can say."""
        self.work.settled(pending)
        command.read_back(verdict)
        if verdict:
            self._metrics.verdict.observe(command.next_phase())
            command.answer(offset)
        elif verdict is False:
            self._void(command)
        self.pipelines.settled(pending, verdict)

    @staticmethod
    def _on_record(command: InFlight) -> IdRecord | None:
        """Where the command is on record, as far as the view knows. An Idempotency-Key that was forgotten before the
        command came is a new one."""
        view = command.scope.view
        found = view.id_record(command.id.text)
        return found if found is not None and view.remembers(found, command.started_at) else None

    def _void(self, command: InFlight) -> None:
        """Another record landed first, so perform the command again on the state after that."""
        self._metrics.void()
        command.retried()
        if command.over:
            return
        if (found := self._on_record(command)) is not None:
            self.recovery.repeat(command, found)
        elif command.attempts > self._retries.count:
            text = f"{shown(command.target)} was changed by others {command.attempts} times. Try again later."
            self.recovery.give_up(command, Conflict(text))
        elif self._forwarding is None or not self._forwarding.forwards(command):
            self.pipelines.of(command.scope, command.target).perform_again(command)

    def _over(self, command: InFlight, outcome: str) -> None:
        self.work.over(command)
        if command.keyed:
            self.keys_in_work.discard(command.id.text)
        kind = type(command.envelope.message).__name__
        self._metrics.over(command.contract.name, kind, outcome, command.age_s, command.attempts)

    def expire(self, command: InFlight) -> Outcome:
        """Answer a command now, as at its deadline, unless it has its answer. Returns or raises that."""
        if not command.over:
            self.recovery.expire(command, drained=self._drained)
        return command.outcome()

    def append_failed(self, tx: str, reason: str, definite: bool) -> None:
        """See Recovery."""
        self.recovery.append_failed(tx, reason, definite)

    # -- reads

    async def read(self, contract: Contract, id: str, consistency: Consistency) -> tuple[Any, int]:
        """The state and version of an aggregate. Raises NotFound if it has never existed, Unavailable."""
        scope, name = await self._ready(contract, id), aggregate(contract.name, id)
        return await read(scope, self._cache, name, consistency, self._timeout_s, self._retries.delay_s)

    async def outcome(self, token: str, identity: Identity | None = None) -> dict[str, Any]:
        """The definite outcome of a transaction, or ``unknown`` once its command id is no longer remembered. A command
        that was not executed is closed by this call. Where requests are authenticated, only the caller of the command
        may ask. Raises NotFound, Forbidden."""
        try:
            asked = Token.parse(token)
            contract = self._actors.by_name[asked.actor]
            if identity is not None and asked.command.caller != identity.subject:
                raise KeyError(asked.key)
        except (ValueError, KeyError):
            raise NotFound(f"Transaction {token[:80]!r} was not found.") from None
        if identity is not None:
            check_scopes(contract.requires, identity)
        scope = await self._ready(contract, asked.id)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self.recovery.outcome(scope, asked.command, asked.started_at)
        except TimeoutError:
            raise Unknown(NOT_KNOWN_YET, transaction=token) from None

    def _used(self, contract: Contract, id: str) -> Scope:
        """The scope of an aggregate, which is followed from now on. Raises Unavailable if it has lost its cache, or has
        failed."""
        scope = self._scopes.use(self._actors.partition(contract, id))
        if not (scope.ready or scope.opening):
            raise scope.unavailable()
        return scope

    async def _ready(self, contract: Contract, id: str) -> Scope:
        """The same, after it has opened. Raises Unavailable, before the edge would answer that nothing is known."""
        scope = self._used(contract, id)
        if scope.opening:
            try:
                async with asyncio.timeout(self._timeout_s / 2):
                    await scope.waiting.opened()
            except TimeoutError:
                raise scope.unavailable() from None
        if not scope.ready:
            raise scope.unavailable()
        return scope

    def works_on(self, scope: Scope) -> bool:
        """Whether commands, reads or records of this scope are in work, or one of its aggregates is open."""
        return self._needs_log(scope) or any(command.scope is scope for command in self.work.open)

    def _needs_log(self, scope: Scope) -> bool:
        """The same for what waits for records of the scope, which commands that were forwarded do not."""
        return bool(scope.journal.pending or len(scope.waiting) or self.pipelines.work_on(scope))

    # -- time

    def _sweep(self) -> None:
        """Answer the commands whose deadline has come, with 504 if a record of the command may be in the log, else
        503."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while (command := self.work.due(now)) is not None:
            self.recovery.expire(command, drained=self._drained)
        for scope in self._scopes:
            scope.journal.check_lateness()
        if self._forwarding is not None:
            self._forwarding.look_at(self._scopes, self._needs_log)
        self._metrics.flush(len(self.work.open), self._performer.abandoned)
        if now >= self._lags_at:
            self._lags_at = now + LAGS_S
            scopes = list(self._scopes)
            followed.set(len(scopes))
            for scope in scopes:
                scope.show_lags()
        works = self.work.open or any(scope.journal.pending for scope in self._scopes)
        self._sweep_in(SWEEP_S if works else LAGS_S)

    def _sweep_in(self, pause_s: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.resting = pause_s > SWEEP_S
        self._sweeper = asyncio.get_running_loop().call_later(pause_s, self._sweep)

    @property
    def alive(self) -> bool:
        """Whether few performs go on after their cancellation."""
        return self._performer.abandoned <= ABANDONED

    async def drain(self, timeout_s: float) -> None:
        """Wait until every command is answered and no record is in flight, within the bound, and release the locks.

        All other commands are then answered as at their deadline, and no command is performed any more.
        """
        end = time.monotonic() + timeout_s
        try:
            while self.work.open or any(scope.journal.pending for scope in self._scopes):
                if time.monotonic() > end:
                    break
                await asyncio.sleep(SWEEP_S / 10)
        finally:
            self._drained, self.resting = True, False
            if self._sweeper is not None:
                self._sweeper.cancel()
            # Commands in the queues come first, or they would be performed when the ones before them are answered.
            for command in reversed(list(self.work.open)):
                self.recovery.expire(command, drained=True)
        self.pipelines.release_all()
