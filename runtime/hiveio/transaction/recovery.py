"""How unknown outcomes become definite: of commands at their deadline, out of retries or on record already; of
transactions that a client asks for; of records whose append failed, or which are not read back.

Nothing is ever concluded from silence. A command is on record, or a barrier closes its id. A record is read back, or a
barrier moves the head on which it was decided, so that it is void if it lands later.
"""

import asyncio
import logging
import random
from collections.abc import Coroutine
from functools import partial
from typing import Any

from msgspec import Raw

from hiveio.errors import Conflict, KeyReused, Problem, Unavailable, Unknown, backend_away
from hiveio.kafka.log_reader import LogReader
from hiveio.outages import EVERY_S
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache
from hiveio.transaction.command import MAY_BE_EXECUTED, InFlight, answer_body, shown
from hiveio.transaction.decision import problem_of
from hiveio.transaction.pending import Pending
from hiveio.transaction.pipelines import Pipelines
from hiveio.transaction.record import Barrier, CommandId, Commit, Record
from hiveio.transaction.rule import IdRecord
from hiveio.transaction.scope import Scope
from hiveio.transaction.scopes import Scopes
from hiveio.transaction.tasks import Tasks

logger = logging.getLogger("hiveio.engine")

BARRIER_AGAIN_S = 0.5  # until the next try to append a barrier
FORGOTTEN = (
    "Its id is no longer remembered: too many records have come since, or too much time has passed. "
    "`hiveio transaction` reads the log itself."
)
NOT_KNOWN_YET = "The outcome is not known yet. Ask again."


class Recovery:
    """The recovery of the commands and the records of one instance."""

    def __init__(
        self,
        scopes: Scopes,
        cache: Cache,
        reader: LogReader,
        pipelines: Pipelines,
        tasks: Tasks,
        timeout_s: float,
    ) -> None:
        """``timeout_s`` bounds a command, and the search for one on record."""
        self._scopes, self._cache, self._reader, self._pipelines = scopes, cache, reader, pipelines
        self._tasks, self._timeout_s = tasks, timeout_s
        self._refusals_logged_at = -EVERY_S
        scopes.on_open(lambda scope: scope.notify_barriers(partial(self.on_barrier, scope)))

    # -- commands

    def repeat(self, command: InFlight, found: IdRecord) -> None:
        """The command is on record: give it the same answer as the first time."""
        command.recorded()
        self._tasks.spawn(self._answer(command, self._repeated(command, found)))

    def give_up(self, command: InFlight, problem: Problem) -> None:
        """The command is out of retries and has no record in flight: it was not executed, and it will not be."""
        if isinstance(problem, Conflict) and command.repeatable:
            self._tasks.spawn(self._answer(command, self._close(command, problem)))
        else:
            command.fail(problem)

    def expire(self, command: InFlight, *, drained: bool = False) -> None:
        """Answer a command at its deadline. Nothing was changed, unless a record of it may be in the log.

        Its perform, if that waits, is cancelled and has no effect any more. ``drained`` says that the instance ends.
        """
        problem: Problem
        within = "before this instance ended" if drained else f"within {self._timeout_s:.0f} s"
        name = shown(command.target)
        if command.maybe_recorded or command.elsewhere:
            text = f"There was no verdict {within}, {MAY_BE_EXECUTED}"
            problem = Unknown(text, transaction=command.token)
        elif command.scope.opening:
            problem = command.scope.unavailable()
        elif command.waits:
            problem = Unavailable(f"The actor did not decide on {name} {within}; nothing was changed. Try again.")
        else:
            pipeline = self._pipelines.get(command.target)
            why = f" ({pipeline.trouble})" if pipeline is not None and pipeline.trouble else ""
            problem = Unavailable(f"{name} could not be locked {within}{why}; nothing was changed. Try again.")
        command.fail(problem)
        command.cancel_perform()
        if command.maybe_recorded:
            self.append_barrier(command.scope, command.target)

    async def _answer(self, command: InFlight, outcome: Coroutine[Any, Any, IdRecord]) -> None:
        """Answer with the outcome on record. If it cannot be read in time, the outcome is unknown."""
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await outcome
            command.answer(found.offset)
        except Unavailable as error:
            command.fail(Unknown(error.detail, transaction=command.token))
        except TimeoutError:
            command.fail(Unknown(NOT_KNOWN_YET, transaction=command.token))
        except Exception as error:  # whatever it is, the command is answered
            command.fail(error)

    async def _repeated(self, command: InFlight, found: IdRecord) -> IdRecord:
        """Give a command that is on record the answer of the first time, and return where it is. Raises KeyReused,
        Conflict."""
        record = await self._record(command.scope, found.offset)
        if not isinstance(record, Commit):
            raise Conflict("This command is closed: it was not executed and never will be.")
        if record.hash != command.hash:
            raise KeyReused(f"Idempotency-Key {command.id.given!r} was used before with another body.")
        refusal = problem_of(dict(record.refusal), record.headers) if record.refusal else None
        write = record.writes[0]
        has_events = any(each.events for each in record.writes)
        command.decided(refusal, write.events, write.version + len(write.events), has_events)
        return found

    async def _close(self, command: InFlight, problem: Conflict) -> IdRecord:
        """Close the key of a command that is out of retries, so that it can never be executed, and raise the problem.
        If the command turns out to be on record, give it that answer and return where it is."""
        found = await self._definite(command.scope, command.id, command.started_at)
        if found is None:
            raise Unavailable(FORGOTTEN)
        if not isinstance(await self._record(command.scope, found.offset), Commit):
            raise problem
        return await self._repeated(command, found)

    # -- outcomes

    async def outcome(self, scope: Scope, command: CommandId, started_at: IdRecord) -> dict[str, Any]:
        """The definite outcome of a command. ``started_at`` is the end of the log before its first record."""
        found = await self._definite(scope, command, started_at)
        if found is None:
            return {"outcome": "unknown", "detail": FORGOTTEN}
        record = await self._record(scope, found.offset)
        if not isinstance(record, Commit):
            return {"outcome": "closed", "detail": "The command was not executed and never will be."}
        position = f"{scope.where}/{found.offset}"
        if record.refusal is not None:
            return {"outcome": "refused", "position": position, "problem": record.refusal}
        write = record.writes[0]
        version, value = write.version + len(write.events), Raw(answer_body(write.events))
        return {"outcome": "accepted", "position": position, "version": version, "value": value}

    async def _definite(self, scope: Scope, command: CommandId, started_at: IdRecord) -> IdRecord | None:
        """Where the command is on record, if need be after a barrier that closes it. None if the command is too old:
        its id may be forgotten, and a barrier would say nothing about the time before it."""
        found = await self._on_record(scope, command)
        if found is None:
            now = IdRecord(scope.view.next, scope.view.time, started_at.keyed)
            if not scope.view.remembers(started_at, now):
                return None
            found = await self._closed(scope, command, started_at.keyed)
        if scope.view.remembers(started_at, found) or isinstance(await self._record(scope, found.offset), Commit):
            return found
        return None

    async def _closed(self, scope: Scope, command: CommandId, keyed: bool) -> IdRecord:
        """Where the command is on record after a barrier for it. The caller bounds the time; in a scope that has failed
        it ends at once."""
        while True:
            settled: asyncio.Future[tuple[bool | None, int]] = asyncio.get_running_loop().create_future()

            def judged(pending: Pending, verdict: bool | None, offset: int, settled: Any = settled) -> None:
                if not settled.done():
                    settled.set_result((verdict, offset))

            scope.journal.append_barrier(command.target, command=command, keyed=keyed, settled=judged)
            verdict, offset = await settled
            applied = asyncio.Event()
            scope.applier.when_applied(offset, applied.set)
            await applied.wait()
            if (found := await self._on_record(scope, command)) is not None:
                return found
            if (
                verdict is not False
            ):  # else a later record of this instance landed first, and the barrier has closed nothing
                raise scope.unavailable()

    async def _on_record(self, scope: Scope, command: CommandId) -> IdRecord | None:
        reply = await self._cache.read(scope.partition, "", command.text)
        scope.mirror.observe_watermark(reply.watermark)
        return scope.view.remembered(command.text, reply.id)

    async def _record(self, scope: Scope, offset: int) -> Record:
        message = await self._reader.read(scope.partition, offset)
        if message is None:
            raise backend_away(f"the record {scope.where}/{offset} was not found")
        return records.decode(message.value)

    # -- records

    def append_failed(self, tx: str, reason: str, definite: bool) -> None:
        """An append failed. The record may be in the log or land later, unless it is ``definite`` that it does not."""
        for scope in self._scopes:
            pending = scope.journal.pending.get(tx)
            if pending is not None and definite:
                self._refused(scope, pending, reason)
                continue
            scope.journal.proofs.over(tx, read_back=False)
            if pending is None:
                continue
            logger.warning("an append to %s has an unknown outcome: %s", scope.where, reason)
            if isinstance(pending.record, Barrier):  # nobody waits for it any more, and it does no harm if it lands
                self._leave(scope, pending, pending.record)
            else:
                self.append_barrier(scope, pending.target)

    def _refused(self, scope: Scope, pending: Pending, reason: str) -> None:
        """The record is not in the log and never will be. The records chained behind it are void, and their commands
        are performed again."""
        problem = backend_away(f"Kafka refuses records of {scope.where}: {reason}")
        if (now := asyncio.get_running_loop().time()) - self._refusals_logged_at > EVERY_S:
            self._refusals_logged_at = now
            logger.error("%s. Commands are answered 503 and change nothing", problem)
        scope.journal.proofs.refused(pending.tx, problem)
        if isinstance(pending.record, Barrier):
            self._leave(scope, pending, pending.record)
        else:
            scope.journal.take(pending.tx)
            pending.refused(problem)
            pending.settled(pending, False, -1)

    def _leave(self, scope: Scope, pending: Pending, barrier: Barrier) -> None:
        """Stop waiting for this barrier, and append another one after a pause where one is still needed."""
        scope.journal.take(pending.tx)
        pending.settled(pending, None, -1)
        for name in barrier.aggregates:
            self._append_later(scope, name)

    def append_barrier(self, scope: Scope, name: str) -> None:
        """Append a barrier for an aggregate whose records are not read back, so that the commands behind them can go
        on."""
        pipeline = self._pipelines.get(name)
        if pipeline is None or not pipeline.in_flight or scope.journal.has_barrier(name):
            return
        try:
            scope.journal.append_barrier(name)
        except Problem as problem:
            logger.warning("a barrier for %s could not be appended: %s", name, problem)
            self._append_later(scope, name)

    def _append_later(self, scope: Scope, name: str) -> None:
        pause_s = BARRIER_AGAIN_S * (1 + random.random())
        asyncio.get_running_loop().call_later(pause_s, self.append_barrier, scope, name)

    def on_barrier(self, scope: Scope, barrier: Barrier, offset: int, verdict: bool) -> None:
        """A barrier has moved these heads. Records that were decided on the heads before it and have not landed by now
        are void forever. Records that were decided on an entry which the cache has given from beyond the barrier are
        not: this instance may read the barrier late. If a barrier of this instance is void (a later record of this
        instance landed first) or its verdict is unknown, another one follows."""
        for name in barrier.aggregates:
            if not verdict:
                self.append_barrier(scope, name)
                continue
            pipeline = self._pipelines.get(name)
            for pending in list(pipeline.in_flight.values()) if pipeline is not None else ():
                before = pending.target == name and pending.entries[name].at <= offset
                if before and scope.journal.take(pending.tx):
                    pending.settled(pending, False, -1)
