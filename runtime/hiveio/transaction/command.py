"""A command on its way, and what its perform reads and writes."""

import asyncio
import base64
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Raw

from hiveio.actor import Actor, Contract, Event
from hiveio.envelope import Envelope, Outcome
from hiveio.errors import Problem, SeveralScopes
from hiveio.headers import trace_context
from hiveio.transaction.cache import Entry
from hiveio.transaction.quarantine import refusal_of_another
from hiveio.transaction.record import CommandId, aggregate
from hiveio.transaction.rule import IdRecord
from hiveio.transaction.run import LockBusy
from hiveio.transaction.scope import Scope

if TYPE_CHECKING:
    from hiveio.transaction.engine import Engine
    from hiveio.transaction.performer import Waiting
    from hiveio.transaction.run import Run


class Command:
    """One command. ``needs`` are the aggregates that it is known to touch, ``attempts`` what it has cost so far."""

    def __init__(self, contract: Contract, envelope: Envelope, scope: Scope, id: CommandId, deadline: float) -> None:
        self.contract, self.envelope, self.scope, self.id, self.deadline = contract, envelope, scope, id, deadline
        self.since_s = time.monotonic()  # when its present phase began
        self.target = id.target
        self.keyed = envelope.key is not None
        self.hash = blake2b(envelope.body, digest_size=8).hexdigest() if self.keyed else ""
        self.trace = trace_context(envelope.headers)
        self.context = copy_context()  # the request's, for its actor: not that of whoever comes before it
        self.needs = {id.target}
        self.attempts = 0
        self.id_absent_from = scope.view.next
        self.started_at = IdRecord(scope.view.next, scope.view.time, self.keyed)  # before any record of it
        self.performed = False
        self.appended = False  # a record of it may be in the log and is not read back
        self.over = False  # answered: nothing is begun for it any more
        self.waiting: Waiting | None = None  # its perform, where that waits
        self.body, self.version = b"null", 0  # the answer
        self.events = False  # its record bears some
        self.refusal: Problem | None = None  # the answer, if its domain refuses
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def message(self) -> Any:
        """The message as it came, also if it is performed again after an actor has changed what it was given."""
        again, self.performed = self.performed, True
        if again and type(self.envelope.message) in self.contract.mutable:
            return self.contract.command_codec.decode(self.envelope.body)[0]
        return self.envelope.message

    @property
    def token(self) -> str:
        """The id to ask for the outcome with: see Token."""
        token = Token(self.contract.name, self.envelope.id, self.id.key, *self.started_at)
        return base64.urlsafe_b64encode(msgspec.json.encode(token)).rstrip(b"=").decode()


class Token(NamedTuple):
    """What the ``transaction`` of a 504 holds. It names the command, whose record may have had several attempts, and
    where the log and its time stood before the first: a command id is not remembered for ever."""

    actor: str
    id: str
    key: str
    offset: int
    time: int
    keyed: bool

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Raises ValueError."""
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4)), type=cls)
        except (ValueError, msgspec.MsgspecError, RecursionError):
            raise ValueError(text) from None

    @property
    def command(self) -> CommandId:
        return CommandId(aggregate(self.actor, self.id), self.key)

    @property
    def started_at(self) -> IdRecord:
        return IdRecord(self.offset, self.time, self.keyed)


class Reading:
    """The ``tx`` of one perform: what it has read, at which heads, and what it writes."""

    def __init__(self, engine: "Engine", command: Command, run: "Run", tip: Entry) -> None:
        self._engine, self._command = engine, command
        self.runs = {command.target: run}
        self.entries = {command.target: tip}
        self.events: dict[str, list[Event]] = {}
        self._closed = False

    @property
    def state(self) -> Any:
        return self._state(self._command.contract, self._command.target)

    def _state(self, contract: Contract, name: str) -> Any:
        entry = self.entries[name]
        return contract.own_state(entry.state, entry.snapshot)

    @property
    def version(self) -> int:
        return self.entries[self._command.target].version

    async def get(self, actor: type[Actor], id: str) -> Any:
        """See hiveio.Transaction. Raises LockBusy, which begins the command again with the whole set locked."""
        name = self._named(actor, id)
        if name not in self.entries:
            self._command.needs.add(name)
            if name not in self.runs:
                run = self.runs[name] = self._engine.run(self._command.scope, name)
                run.guests += 1
            entry = await self.runs[name].visit()
            if entry.fault:
                raise refusal_of_another()
            self.entries[name] = entry
        return self._state(self._engine.by_kind[actor], name)

    def emit(self, actor: type[Actor], id: str, event: Event) -> None:
        name = self._named(actor, id)
        self._engine.by_kind[actor].check_event(event)
        self.events.setdefault(name, []).append(event)

    @property
    def complete(self) -> bool:
        return self.events.keys() <= self.entries.keys()

    async def read_written(self) -> None:
        """Read the aggregates that are written and were not read: a write needs a head."""
        for name in self.events.keys() - self.entries.keys():
            actor, _, id = name.partition("/")
            await self.get(self._engine.contracts[actor].kind, id)

    def moved(self) -> bool:
        """Whether something read has moved on meanwhile."""
        return any(self.runs[name].latest() is not entry for name, entry in self.entries.items())

    def close(self) -> None:
        """Nothing is read or written by it any more, whoever has kept it."""
        self._closed = True
        runs, self.runs = self.runs, {}
        for name, run in runs.items():
            if name != self._command.target:
                run.leave()

    def _named(self, actor: type[Actor], id: str) -> str:
        if self._closed:
            raise LockBusy(f"the perform of {self._command.target} that this tx was given to is over")
        contract = self._engine.by_kind.get(actor)
        if contract is None:
            raise TypeError(f"{actor!r} is not an actor of this service")
        name = aggregate(contract.name, id)
        scope, mine = self._engine.partition(contract, id), self._command.scope.partition
        if scope != mine:
            raise SeveralScopes(
                f"{self._command.target} is in scope {mine} and {name} in scope {scope}: a transaction stays inside "
                "one scope. In a log that exists scope(id) and the number of partitions are fixed: write to each "
                "aggregate by a command of its own, or let actors of new names have a scope(id) that gives both the "
                "same. A new log may also be made with one partition",
                aggregates=[self._command.target, name],
                scopes=[mine, scope],
            )
        return name


def fresh_ids() -> Iterator[str]:
    """Ids that are never used twice, by no process: 64 random bits and a count."""
    prefix = os.urandom(8).hex()
    return map(f"{prefix}-{{:x}}".format, itertools.count(1))


def answer_body(events: Sequence[Raw]) -> bytes:
    """One event is its envelope, several are an array of them."""
    if len(events) == 1:
        return bytes(events[0])
    return b"[" + b",".join(map(bytes, events)) + b"]" if events else b"null"
