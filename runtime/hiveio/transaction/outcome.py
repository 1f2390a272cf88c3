"""What became of a command: read from its record, or made definite by a barrier which closes it."""

import asyncio
from collections.abc import Callable
from typing import Any

from msgspec import Raw

from hiveio.errors import Conflict, KeyReused, Problem, Rejected, Unavailable, backend_away
from hiveio.kafka.log_reader import LogReader
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache
from hiveio.transaction.command import Command, answer_body
from hiveio.transaction.pending import Pending
from hiveio.transaction.record import Barrier, CommandId, Commit, Record
from hiveio.transaction.rule import IdRecord
from hiveio.transaction.scope import Scope

FORGOTTEN = "too many records or too much time ago: its id is remembered no more; `hiveio transaction` reads the log"

Append = Callable[[Scope, Pending], None]


class Outcomes:
    """Looks outcomes up. ``append`` sends a record, ``fresh`` makes a transaction id."""

    def __init__(self, cache: Cache, reader: LogReader, append: Append, fresh: Callable[[], str]) -> None:
        self._cache, self._reader, self._append, self._fresh = cache, reader, append, fresh

    async def record(self, scope: Scope, offset: int) -> Record:
        message = await self._reader.read(scope.partition, offset)
        if message is None:
            raise backend_away(f"{scope.where}/{offset} is not there")
        return records.decode(message.value)

    async def repeat(self, command: Command, found: IdRecord) -> IdRecord:
        """Give a command that is on record the answer that it had the first time, and return its place. Raises
        KeyReused, Conflict."""
        record = await self.record(command.scope, found.offset)
        if not isinstance(record, Commit):
            raise Conflict("this Idempotency-Key is closed: its command was not executed and never will be")
        if record.hash != command.hash:
            raise KeyReused(f"Idempotency-Key {command.id.key!r} came first with another body")
        command.refusal = _refusal(dict(record.refusal), record.headers) if record.refusal else None
        write = record.writes[0]
        command.body, command.version = answer_body(write.events), write.version + len(write.events)
        command.events = any(write.events for write in record.writes)
        return found

    async def told(self, scope: Scope, command: CommandId, started_at: IdRecord) -> dict[str, Any]:
        """The definite outcome, for whoever asks. ``started_at``: where the log stood before its first record."""
        found = await self.definite(scope, command, started_at)
        if found is None:
            return {"outcome": "unknown", "detail": FORGOTTEN}
        record = await self.record(scope, found.offset)
        if not isinstance(record, Commit):
            return {"outcome": "closed", "detail": "it was not executed and never will be"}
        position = f"{scope.where}/{found.offset}"
        if record.refusal is not None:
            return {"outcome": "refused", "position": position, "problem": record.refusal}
        write = record.writes[0]
        version = write.version + len(write.events)
        return {
            "outcome": "accepted",
            "position": position,
            "version": version,
            "value": Raw(answer_body(write.events)),
        }

    async def definite(self, scope: Scope, command: CommandId, started_at: IdRecord) -> IdRecord | None:
        """Where the command is on record; if it is not, after a barrier which closes it. None if that is too long
        ago: then the barrier's own word would say nothing about the time before."""
        found = await self._on_record(scope, command)
        if found is None:
            now = IdRecord(scope.view.next, scope.view.time, started_at.keyed)
            if not scope.remembers(started_at, now):
                return None
            found = await self._closed(scope, command, started_at.keyed)
        if scope.remembers(started_at, found) or isinstance(await self.record(scope, found.offset), Commit):
            return found
        return None

    async def _closed(self, scope: Scope, command: CommandId, keyed: bool) -> IdRecord:
        """Where the command is on record, after a barrier for it. Bounded by the caller; where the scope has failed it
        ends at once."""
        while True:
            settled: asyncio.Future[tuple[bool | None, int]] = asyncio.get_running_loop().create_future()

            def judged(pending: Pending, verdict: bool | None, offset: int, settled: Any = settled) -> None:
                if not settled.done():
                    settled.set_result((verdict, offset))

            barrier = Barrier((command.target,), command, keyed, scope.view.next)
            self._append(scope, Pending(self._fresh(), barrier, {}, -1, judged, None))
            verdict, offset = await settled
            applied = asyncio.Event()
            scope.applier.when_applied(offset, applied.set, soon=True)
            await applied.wait()
            if (found := await self._on_record(scope, command)) is not None:
                return found
            if verdict is not False:  # else a later record of ours was faster, and the barrier has closed nothing
                raise scope.unavailable()

    async def close(self, command: Command, problem: Conflict) -> IdRecord:
        """Out of retries: nothing happened under this key, and after this nothing will. Raises the problem; if the
        command turns out to be on record, its answer is given to it and its place returned."""
        found = await self.definite(command.scope, command.id, command.started_at)
        if found is None:
            raise Unavailable(FORGOTTEN)
        if not isinstance(await self.record(command.scope, found.offset), Commit):
            raise problem
        return await self.repeat(command, found)

    async def _on_record(self, scope: Scope, command: CommandId) -> IdRecord | None:
        watermark, (_, id) = await self._cache.begin(scope.partition, "", command.text)
        scope.mirror.observe_watermark(watermark)
        return scope.remembered(command.text, id)


def _refusal(problem: dict[str, Any], headers: dict[str, str]) -> Problem:
    """The problem of a record again."""
    refusal = Rejected(problem.pop("detail", ""))
    refusal.urn, refusal.title, refusal.status = problem.pop("type"), problem.pop("title"), problem.pop("status")
    refusal.members, refusal.headers = problem, headers
    return refusal
