"""What became of a command: read from its record, or made definite by a barrier which closes it."""

import asyncio
from collections.abc import Callable
from typing import Any

from msgspec import Raw

from hiveio.errors import Conflict, KeyReused, Problem, Rejected, Unavailable
from hiveio.kafka.tail import LogReader
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache, known
from hiveio.transaction.command import Command, answer_body
from hiveio.transaction.record import Barrier, CommandId, Commit, Record
from hiveio.transaction.rule import Known
from hiveio.transaction.scope import Pending, Scope

Append = Callable[[Scope, Pending], None]


class Outcomes:
    """Looks outcomes up. ``append`` sends a record, ``fresh`` makes a transaction id."""

    def __init__(self, cache: Cache, reader: LogReader, append: Append, fresh: Callable[[], str]) -> None:
        self._cache, self._reader, self._append, self._fresh = cache, reader, append, fresh

    async def record(self, scope: Scope, offset: int) -> Record:
        message = await self._reader.read(scope.partition, offset)
        if message is None:
            raise Unavailable(f"{scope.where}/{offset} is not there")
        return records.decode(message.value)

    async def repeat(self, command: Command, found: Known) -> None:
        """Give a command that is on record the answer that it had the first time. Raises KeyReused, Conflict."""
        record = await self.record(command.scope, found.offset)
        if not isinstance(record, Commit):
            raise Conflict("this Idempotency-Key is closed: its command was not executed and never will be")
        if record.hash != command.hash:
            raise KeyReused(f"Idempotency-Key {command.id.key!r} came first with another body")
        command.refusal = _refusal(dict(record.refusal)) if record.refusal else None
        write = record.writes[0]
        command.body, command.version = answer_body(write.events), write.version + len(write.events)

    async def told(self, scope: Scope, command: CommandId, keyed: bool) -> dict[str, Any]:
        """The definite outcome, for whoever asks."""
        found = await self.definite(scope, command, keyed)
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

    async def definite(self, scope: Scope, command: CommandId, keyed: bool) -> Known:
        """Where the command is on record; if it is not, after a barrier which closes it."""
        if (found := await self._on_record(scope, command)) is not None:
            return found
        settled: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def judged(pending: Pending, verdict: bool | None, offset: int) -> None:
            if not settled.done():
                settled.set_result(offset)

        barrier = Barrier((command.target,), command, keyed)
        self._append(scope, Pending(self._fresh(), barrier, {}, -1, judged, None))
        applied = asyncio.Event()
        scope.when_applied(await settled, applied.set)
        await applied.wait()
        if (found := await self._on_record(scope, command)) is None:
            raise Unavailable(scope.state or "the cache is being folded anew")
        return found

    async def close(self, command: Command, problem: Conflict) -> None:
        """Out of retries: nothing happened under this key, and after this nothing will. Raises the problem; returns
        only if the command turns out to be on record, with its answer given to it."""
        found = await self.definite(command.scope, command.id, command.keyed)
        if not isinstance(await self.record(command.scope, found.offset), Commit):
            raise problem
        await self.repeat(command, found)

    async def _on_record(self, scope: Scope, command: CommandId) -> Known | None:
        stands, (_, id) = await self._cache.begin(scope.partition, "", command.text)
        scope.saw(stands)
        return scope.view.knows(command.text) or known(id)


def _refusal(problem: dict[str, Any]) -> Problem:
    """The problem of a record again."""
    urn, title, status = problem.pop("type"), problem.pop("title"), problem.pop("status")
    refusal = Rejected(problem.pop("detail", ""), **problem)
    refusal.urn, refusal.title, refusal.status = urn, title, status
    return refusal
