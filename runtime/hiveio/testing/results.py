"""What the last message of a test has led to, and the checks of that."""

import dataclasses
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

from hiveio.actor import Actor, Contract, contracts
from hiveio.errors import Invalid, Problem, Rejected
from hiveio.headers import HeaderView
from hiveio.messages import Command, Deadline, Event
from hiveio.testing.checked import checked
from hiveio.testing.memory import MemoryLog
from hiveio.testing.processes import Clock, Sent, pending_of, process_of
from hiveio.testing.service import memory_settings
from hiveio.transaction.record import aggregate

WINDOW_S = 10 * 365 * 86_400  # the log's clock goes on by a sixtieth of it in one step
P = TypeVar("P", bound=Problem)


class Received(NamedTuple):
    """An event of a topic that an actor without aggregates has received."""

    actor: type[Actor]
    id: str
    event: Event
    headers: HeaderView
    meta: Mapping[str, Any] | None = None


class Results:
    """The actors, the log and the last message of a test. A check that fails raises an AssertionError."""

    def __init__(self, actor: type[Actor], id: str) -> None:
        self._actor, self._id = actor, id
        self._kinds: dict[type[Actor], Contract] = {}
        self._clock = Clock()
        self._log = MemoryLog(dataclasses.replace(memory_settings(None), idempotency_time_s=WINDOW_S), self._clock)
        self._inputs = 0  # events that were given to processes
        self._received: list[Received] = []
        self._faults: list[str] = []  # of the actor, as sentences
        self._message = ""
        self.reply: Any = None
        self.problem: Problem | None = None
        self.headers: Mapping[str, str] = HeaderView.of({})  # of the answer
        self.events: list[Event] = []  # of the aggregate that the message went to
        self.emitted: dict[str, list[Event]] = {}  # of all aggregates, by "<actor>/<id>"
        self.sent: list[Sent] = []  # by processes, to other services
        self.scheduled: list[tuple[Deadline, timedelta]] = []
        self.state: Any = None
        self.states: dict[str, tuple[Any, int]] = {}  # state and version

    def _begin(self, message: str) -> None:
        """Forget the results of the last message."""
        self._message = message
        self.reply = self.problem = self.state = None
        self.events, self.emitted, self.states, self.headers = [], {}, {}, HeaderView.of({})
        self.sent, self.scheduled = [], []

    # -- then

    def then(self, *events: Event) -> Self:
        """Exactly these events were written to the aggregate, in this order. Without events: the message was accepted,
        and none were written."""
        self._succeeded()
        return self._same("events", list(events), self.events)

    def then_emitted(self, actor: type[Actor], id: str, *events: Event) -> Self:
        """Exactly these events were written to another aggregate, in the same transaction."""
        self._succeeded()
        name = aggregate(self._contract(actor).name, id)
        return self._same(f"events of {name}", list(events), self.emitted.get(name, []))

    def then_sent(self, *commands: tuple[str, str, Command]) -> Self:
        """Exactly these commands were sent, in this order: each is the service, the id of the aggregate there and the
        command. Without commands: none were sent."""
        self._succeeded()
        return self._same("commands", [Sent.expected(*command) for command in commands], self.sent)

    def then_scheduled(self, *deadlines: tuple[Deadline, timedelta]) -> Self:
        """Exactly these deadlines were scheduled, each after so much time. Without deadlines: none were scheduled."""
        self._succeeded()
        return self._same("deadlines", list(deadlines), self.scheduled)

    def then_pending(self, *deadlines: Deadline) -> Self:
        """Exactly these deadlines of the process are pending now, in the order in which they are due."""
        found = pending_of(self._log, self._contract(self._actor), self._id)
        return self._same("pending deadlines", list(deadlines), found)

    def then_stuck(self, text: str = "") -> Self:
        """The process cannot go on: ``perform`` raised Stuck, or another error, whose text has ``text`` in it."""
        found = process_of(self._log, self._contract(self._actor), self._id).stuck
        if not found or text not in found:
            self._fail(f"a process that is stuck: {text}", found or "it is not stuck")
        return self

    def then_ended(self) -> Self:
        """The process has ended: what comes for it is skipped."""
        if not process_of(self._log, self._contract(self._actor), self._id).ended:
            self._fail("a process that has ended", "it goes on")
        return self

    def then_state(self, state: Any, actor: type[Actor] | None = None, id: str | None = None) -> Self:
        """The aggregate of ``given``, the process that the last event went to, or what is named here has this state
        now, whatever the answer was. None: it has never existed."""
        name = aggregate(self._contract(actor or self._actor).name, self._id if id is None else id)
        return self._same(f"state of {name}", state, self.states.get(name, (None, 0))[0])

    def then_reply(self, reply: Any) -> Self:
        """For base, producer and consumer: the message was answered with this value."""
        self._succeeded()
        return self._same("reply", reply, self.reply)

    def then_rejected(self, text: str = "", **members: Any) -> Self:
        """The actor raised Rejected. Its detail contains ``text``, and its members have these values."""
        problem = self._refused(Rejected)
        if text not in problem.detail:
            self._fail(f"rejected with {text!r}", f"rejected with {problem.detail!r}")
        return self._same("members", members, {name: problem.members.get(name) for name in members})

    def then_invalid(self, pointer: str) -> Self:
        """The message does not match its schema (422). ``pointer`` is the JSON pointer to the field."""
        return self._same("pointer", pointer, self._refused(Invalid).members.get("pointer"))

    def then_problem(self, status: int, text: str = "", **members: Any) -> Self:
        """The answer is a problem with this status. Its detail contains ``text``, and its members have these values."""
        problem = self._refused(Problem)
        if problem.status != status or text not in problem.detail:
            self._fail(f"{status} {text}", f"{problem.status} {problem.detail}")
        return self._same("members", members, {name: problem.members.get(name) for name in members})

    def then_header(self, name: str, value: str | None) -> Self:
        """The answer, or the problem, has this value in a header. None: it does not have the header."""
        return self._same(f"header {name}", value, self.headers.get(name))

    # -- inside

    def _contract(self, actor: type[Actor]) -> Contract:
        if actor not in self._kinds:
            contracts([*self._kinds, actor])  # raises for two actors of one name, as the start of a service does
            self._kinds[actor] = checked(Contract(actor), self._faults)
        return self._kinds[actor]

    def _succeeded(self) -> None:
        if self._actor in self._kinds and (stuck := process_of(self._log, self._kinds[self._actor], self._id).stuck):
            self._fail("success", f"the process is stuck: {stuck}")
        if self.problem is not None:
            self._fail("success", f"{self.problem.title} ({self.problem.status}): {self.problem.detail}")

    def _refused(self, kind: type[P]) -> P:
        if not isinstance(self.problem, kind):
            found = repr(self.reply if self.events == [] else self.events) if self.problem is None else None
            self._fail(kind.__name__, found or f"{type(self.problem).__name__}: {self.problem}")
        return self.problem

    def _same(self, what: str, expected: Any, found: Any) -> Self:
        if expected != found:
            self._fail(f"{what} {expected!r}", f"{what} {found!r}")
        return self

    def _fail(self, expected: str, found: str) -> NoReturn:
        raise AssertionError(
            f"{self._message or 'nothing was sent yet: call `when` first'}\n  expected {expected}\n  found    {found}"
        )
