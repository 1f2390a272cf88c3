"""A command in flight: what is known of it from the request to its answer."""

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from hiveio.actor import Contract
from hiveio.envelope import Envelope, Outcome
from hiveio.errors import Problem, contained
from hiveio.headers import trace_context
from hiveio.transaction import faults
from hiveio.transaction.record import CommandId, aggregate
from hiveio.transaction.rule import IdRecord
from hiveio.transaction.scope import Scope


class InFlight:
    """One command. It completes itself, once, by ``answer`` or ``fail``: both end its ``future``, and call ``on_over``
    with what became of it. ``needs`` are the aggregates that it is known to touch, ``attempts`` the retries so far.
    """

    def __init__(
        self,
        contract: Contract,
        envelope: Envelope,
        scope: Scope,
        id: CommandId,
        deadline: float,
        on_over: Callable[["InFlight", str], None],
    ) -> None:
        self.contract, self.envelope, self.scope, self.id, self.deadline = contract, envelope, scope, id, deadline
        self._on_over = on_over
        self._phase_at = time.monotonic()  # when its present phase began
        self.target = id.target
        self.keyed = envelope.key is not None
        self.hash = blake2b(envelope.body, digest_size=8).hexdigest() if self.keyed else ""
        self.trace = trace_context(envelope.headers)
        self.context = copy_context()  # the request's, for its actor: not that of whoever comes before it
        self.needs = {id.target}
        self.attempts = 0
        self.id_absent_from = scope.view.next  # from there on its id is known not to be on record
        self.started_at = IdRecord(scope.view.next, scope.view.time, self.keyed)  # in the log, before any record of it
        self.over = False  # answered: nothing is begun for it any more
        self.maybe_recorded = False  # a record of it may be in the log and is not read back, or is in the log
        self._performed = False
        self._cancel: Callable[[], None] | None = None  # ends its perform, where that waits
        self.refusal: Problem | None = None  # the answer, if its domain refuses
        self._body, self._version, self._has_events = b"null", 0, False  # the answer, if not
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def message(self) -> Any:
        """The message as it came, also if it is performed again after an actor has changed what it was given."""
        again, self._performed = self._performed, True
        if again and type(self.envelope.message) in self.contract.mutable:
            return self.contract.command_codec.decode(self.envelope.body)[0]
        return self.envelope.message

    @property
    def token(self) -> str:
        """The id to ask for the outcome with: see Token."""
        token = Token(self.contract.name, self.envelope.id, self.id.key, *self.started_at)
        return base64.urlsafe_b64encode(msgspec.json.encode(token)).rstrip(b"=").decode()

    def next_phase(self) -> float:
        """How long the phase took that ends now, in seconds."""
        now = time.monotonic()  # uvloop counts whole milliseconds
        before, self._phase_at = self._phase_at, now
        return now - before

    # -- what becomes of it on its way

    def looked_up(self, offset: int) -> None:
        """Its id is not on record below this offset."""
        self.id_absent_from = offset

    def need(self, aggregate: str) -> None:
        """It touches this aggregate too: the next attempt locks all of them."""
        self.needs.add(aggregate)

    def retried(self) -> None:
        self.attempts += 1

    def performing(self, cancel: Callable[[], None]) -> None:
        """Its perform waits, until ``cancel`` is called or it is ``performed``."""
        self._cancel = cancel

    def performed(self) -> None:
        self._cancel = None

    @property
    def waits(self) -> bool:
        """Whether its perform waits."""
        return self._cancel is not None

    def cancel_perform(self) -> None:
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def decided(
        self, refusal: Problem | None, events: Sequence[Raw] = (), version: int = 0, has_events: bool = False
    ) -> None:
        """What it will be answered with: a refusal; or the events of its target, and the version that they lead to.
        ``has_events``: its record has some, of whichever aggregate."""
        self.refusal = refusal
        self._body, self._version, self._has_events = answer_body(events), version, has_events

    def recorded(self) -> None:
        """A record of it may be in the log from now on: at its deadline nobody may say that nothing has happened."""
        self.maybe_recorded = True

    def read_back(self, verdict: bool | None) -> None:
        """Its record is read back, or nobody can say what became of it."""
        self.maybe_recorded = verdict is None

    # -- its end

    def answer(self, offset: int) -> None:
        """Answer as it was decided; ``offset``: of its record, or -1 where none was needed."""
        if faults.armed:
            faults.hit("answering", self.target)
        self._over("accepted" if self.refusal is None else "refused")
        if self.future.done():
            return
        if self.refusal is not None:
            self.future.set_exception(self.refusal)
        elif offset < 0:
            self.future.set_result(Outcome(encoded=b"null"))
        else:
            headers = {"ETag": f'"{self._version}"'}
            if self._has_events:  # without any, nobody who waits for the position would ever see it on the event topic
                headers["Hive-Position"] = f"{self.scope.where}/{offset}"
            self.future.set_result(Outcome(encoded=self._body, headers=headers))

    def fail(self, error: BaseException) -> None:
        error = contained(error)  # no future takes a StopIteration
        self._over(error.title if isinstance(error, Problem) else "fault")
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # a client that hung up asks no more: that is no fault to report

    def _over(self, outcome: str) -> None:
        if not self.over:
            self.over = True
            self._on_over(self, outcome)


class Token(NamedTuple):
    """What the ``transaction`` of a 504 holds. It names the command, whose record may have had several attempts, and
    where the log and its time stood before the first: a command id is not remembered forever."""

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


def shown(name: str) -> str:
    """The aggregate as clients read of it: ``Account ada``."""
    return name.replace("/", " ", 1)


def answer_body(events: Sequence[Raw]) -> bytes:
    """One event is its envelope, several are an array of them."""
    if len(events) == 1:
        return bytes(events[0])
    return b"[" + b",".join(map(bytes, events)) + b"]" if events else b"null"
