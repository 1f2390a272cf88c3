"""A command in flight: its state from the request to its answer."""

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
from hiveio.errors import Problem, SeveralScopes, TooLarge, Unavailable, Unknown, contained, detached
from hiveio.headers import trace_context
from hiveio.transaction import faults
from hiveio.transaction.process import Input
from hiveio.transaction.record import CommandId, aggregate
from hiveio.transaction.rule import IdRecord
from hiveio.transaction.scope import Scope

MAY_BE_EXECUTED = "so the command may be executed. Ask GET /transactions/<transaction>."


class Shared(NamedTuple):
    """What an instance that executes the command of another one has to know: the key of its command id, and the end and
    the time of the log before any record of it."""

    key: str
    started_at: IdRecord


class InFlight:
    """One command. It completes itself once, by ``answer``, ``pass_on`` or ``fail``: each ends its ``future`` and calls
    ``on_over`` with the outcome. ``needs`` are the aggregates that it is known to touch, ``attempts`` counts its
    retries so far.

    A *shared* command is one that another instance may execute too. ``repeatable`` are those with an Idempotency-Key
    and those that are shared: their id is looked up before they are executed, and every definite answer is on record.
    """

    def __init__(
        self,
        contract: Contract,
        envelope: Envelope,
        scope: Scope,
        id: CommandId,
        deadline: float,
        on_over: Callable[["InFlight", str], None],
        passed: Sequence[tuple[str, bytes]] = (),
        input: Input | None = None,
        shared: Shared | None = None,
    ) -> None:
        """``passed`` are the headers of the request that its events have too. ``input`` says where it comes from, where
        that is no client, and ``shared`` what is known of it where another instance has forwarded it."""
        self.input = input
        self.shared, self._given = shared is not None, shared
        self.elsewhere = False  # another instance has it and has not declined it
        self.contract, self.envelope, self.scope, self.id, self.deadline = contract, envelope, scope, id, deadline
        self._on_over = on_over
        self._came_at = self._phase_at = time.monotonic()  # when its current phase began
        self.target = id.target
        self.keyed = envelope.key is not None
        self.repeatable = self.keyed or self.shared
        self.hash = blake2b(envelope.body, digest_size=8).hexdigest() if self.keyed else ""
        self.trace = trace_context(envelope.headers)
        self.passed = passed
        self.context = (
            copy_context()
        )  # the context of the request, for its actor: another command may be the one that calls perform
        self.needs = {id.target}
        self.attempts = 0
        self.begin()
        self.over = False  # it is answered, so nothing is started for it any more
        self._answer: Outcome | BaseException | None = None
        self.maybe_recorded = False  # a record of it is in the log, or may be and is not read back
        self._performed = False
        self._cancel: Callable[[], None] | None = None  # ends its perform, if that waits
        self.refusal: Problem | None = None  # the answer, if its actor refuses it
        self._body, self._version, self._has_events = b"null", 0, False  # the answer, if it is accepted
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        """Its scope is open, and it begins from what the scope knows now."""
        view = self.scope.view
        # The end of the log before any record of it.
        self.started_at = self._given.started_at if self._given else IdRecord(view.next, view.time, self.keyed)
        self.id_absent_from = self.started_at.offset  # no record below this offset has its id

    def message(self) -> Any:
        """The message as it came, also for a second perform after the actor has changed the message that it was
        given."""
        again, self._performed = self._performed, True
        if again and type(self.envelope.message) in self.contract.mutable:
            is_command = self.input is None or self.input.cause is not None
            codec = self.contract.command_codec if is_command else self.contract.input_codec
            return codec.decode(self.envelope.body)[0]
        return self.envelope.message

    @property
    def token(self) -> str:
        """The id by which a client asks for the outcome: see Token."""
        at = self.started_at
        token = Token(self.contract.name, self.envelope.id, self.id.key, at.offset, at.time, at.keyed)
        return base64.urlsafe_b64encode(msgspec.json.encode(token)).rstrip(b"=").decode()

    @property
    def age_s(self) -> float:
        """How long ago it came, in seconds."""
        return time.monotonic() - self._came_at

    def next_phase(self) -> float:
        """End the current phase and return how long it took, in seconds."""
        now = time.monotonic()  # the clock of uvloop has whole milliseconds only
        before, self._phase_at = self._phase_at, now
        return now - before

    # -- before its answer

    def share(self) -> None:
        """It is forwarded to another instance, which may execute it from now on."""
        self.shared = self.repeatable = self.elsewhere = True

    def unshare(self) -> None:
        """The other instance has not executed it and never will."""
        self.shared = self.elsewhere = False
        self.repeatable = self.keyed

    def looked_up(self, offset: int) -> None:
        """Its id was not on record below this offset."""
        self.id_absent_from = offset

    def need(self, aggregate: str) -> None:
        """It touches this aggregate too, so the next attempt locks all of them."""
        self.needs.add(aggregate)

    def retried(self) -> None:
        self.attempts += 1

    def performing(self, cancel: Callable[[], None]) -> None:
        """Its perform waits, until it is ``performed`` or ``cancel`` is called."""
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
        """Set the answer: a refusal, or the events of its target and the version after them. ``has_events`` says that
        its record has events, of any aggregate."""
        self.refusal = None if refusal is None else detached(refusal)
        self._body, self._version, self._has_events = answer_body(events), version, has_events

    def recorded(self) -> None:
        """A record of it may be in the log from now on, so its answer must not be that nothing has happened."""
        self.maybe_recorded = True

    def read_back(self, verdict: bool | None) -> None:
        """Its record is read back; ``verdict`` is None if nobody can say."""
        self.maybe_recorded = verdict is None

    # -- its answer

    def answer(self, offset: int) -> None:
        """Give the answer that was decided. ``offset`` is that of its record, or -1 if it needed none."""
        if faults.armed:
            faults.hit("answering", self.target)
        if self.refusal is not None:
            self._complete("refused", self.refusal)
        elif offset < 0:
            self._complete("accepted", Outcome(encoded=b"null"))
        else:
            headers = {"ETag": f'"{self._version}"'}
            if (
                self._has_events
            ):  # without events the position never appears on the event topic, and a client would wait for it
                headers["Hive-Position"] = f"{self.scope.where}/{offset}"
            self._complete("accepted", Outcome(encoded=self._body, headers=headers))

    def pass_on(self, answer: Outcome | Problem) -> None:
        """Give the answer that another instance has given."""
        self._complete("forwarded", answer)

    def fail(self, error: BaseException) -> None:
        error = contained(error)  # a future does not take a StopIteration
        if self.elsewhere and (
            not isinstance(error, Problem) or isinstance(error, Unavailable | TooLarge | SeveralScopes)
        ):
            unknown = Unknown(f"Another instance has not answered, {MAY_BE_EXECUTED}", transaction=self.token)
            unknown.__cause__ = error  # a fault of the actor has its line in the log all the same
            error = unknown
        self._complete(error.title if isinstance(error, Problem) else "fault", error)

    def outcome(self) -> Outcome:
        """The answer of a command that is over, whatever has become of its future. Raises it, where it is an error."""
        answer = self._answer
        assert answer is not None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _complete(self, outcome: str, answer: Outcome | BaseException) -> None:
        if self.over:
            return
        self.over, self._answer = True, answer
        self._on_over(self, outcome)
        if self.future.done():  # it was cancelled, at the deadline of its request
            return
        if isinstance(answer, Outcome):
            self.future.set_result(answer)
        else:
            self.future.set_exception(answer)
            self.future.exception()  # if the client has gone, the loop must not report it


class Token(NamedTuple):
    """The content of ``transaction`` in a 504. It names the command, which may have had several records, and the end
    and the time of the log before the first one, since a command id is not remembered forever."""

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
    """The name of an aggregate as clients read it: ``Account ada``."""
    return name.replace("/", " ", 1)


def answer_body(events: Sequence[Raw]) -> bytes:
    """The JSON of an answer: the envelope of one event, an array of several, or null."""
    if len(events) == 1:
        return bytes(events[0])
    return b"[" + b",".join(map(bytes, events)) + b"]" if events else b"null"
