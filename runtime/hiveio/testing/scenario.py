"""given / when / then: plain tests in which one message follows the other.

The events that were given, and those of earlier messages, are in a log in memory. Each ``when`` starts the actor with
this log, as a new instance would start with the real one, sends the message through the wire format, and stops. So
every test folds the state from the log.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn, Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Raw, Struct

from hiveio.actor import Actor, Contract, Event, Query, contracts, performing
from hiveio.conditions import Conditions
from hiveio.consumer.position import position_of
from hiveio.envelope import Codec, Context, Envelope, Handler, encode_json, encode_message, encode_value
from hiveio.errors import Invalid, Problem, Rejected, VersionMismatch
from hiveio.headers import HeaderView
from hiveio.http.problem import encode_problem
from hiveio.http.routes import queries
from hiveio.identity import Identity
from hiveio.service import awaited
from hiveio.testing.checked import checked
from hiveio.testing.memory import MemoryLog
from hiveio.testing.service import Service, Version, admit, asking, memory_settings
from hiveio.transaction import record as records
from hiveio.transaction.record import CommandId, Commit, Write, aggregate

TOPIC = "memory"
P = TypeVar("P", bound=Problem)


def given(actor: type[Actor], *events: Event, id: str = "1") -> "Scenario":
    """The events that have happened to the aggregate ``id``; for a consumer, the events of ``id`` that it has
    received."""
    return Scenario(actor, id).and_given(actor, id, *events)


class Scenario:
    """``given(…).when(…).then(…)``; ``when`` and ``then`` may follow each other as often as the test needs.

    A check that fails raises an AssertionError. An error of the actor that is no Problem (a bug) is raised by ``when``.
    ``reply``, ``problem``, ``headers``, ``events`` and ``state`` are the results of the last message, for assertions of
    your own.
    """

    def __init__(self, actor: type[Actor], id: str) -> None:
        self._actor, self._id = actor, id
        self._kinds: dict[type[Actor], Contract] = {}
        self._log = MemoryLog(memory_settings(None))
        self._received: list[tuple[type[Actor], str, Event, HeaderView]] = []
        self._faults: list[str] = []  # of the actor, as sentences
        self._message = ""
        self.reply: Any = None
        self.problem: Problem | None = None
        self.headers: Mapping[str, str] = HeaderView.of({})  # of the answer
        self.events: list[Event] = []  # of the aggregate that the message went to
        self.emitted: dict[str, list[Event]] = {}  # of all aggregates, by "<actor>/<id>"
        self.state: Any = None
        self.states: dict[str, tuple[Any, int]] = {}  # state and version

    # -- given

    def and_given(self, actor: type[Actor], id: str, *events: Event) -> Self:
        """The events that have happened to another aggregate. Without events it only adds the actor, so that ``tx`` can
        use its aggregates."""
        contract = self._contract(actor)
        name = aggregate(contract.name, id)
        for event in events:
            if contract.model is None:
                self._received.append((actor, id, _round_trip(contract.subscribed_codec, event), HeaderView.of({})))
                continue
            contract.check_event(event)
            _round_trip(contract.event_codec, event)
            written, tx = self._log.folds[0].aggregates.get(name), f"given-{len(self._log.partitions[0])}"
            head, version = (written.head, written.version) if written else ("", 0)
            write = Write(name, head, version, (Raw(encode_message(event)),))
            self._log.append(0, tx, records.encode(Commit(CommandId(name, tx), (write,))))
        return self

    # -- when

    def when(
        self,
        message: Struct,
        *,
        id: str | None = None,
        key: str | None = None,
        if_match: Version = None,
        if_none_match: Version = None,
        meta: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        identity: Identity | None = None,
    ) -> Self:
        """Send a command, a query or an event. ``key`` is an Idempotency-Key. ``if_match`` is the version that the
        aggregate must have, ``if_none_match`` a version that it must not have; both may be ``"*"``.

        ``headers`` are those of the request or of the record of the event, which the actor finds in
        ``context.headers``. ``identity`` is who sends the message, such as ``Identity.of("ada", "accounts:write")``.
        """
        contract, target = self._contract(self._actor), self._id if id is None else id
        self._message = f"{contract.name}/{target} when {message!r}"
        self.reply = self.problem = self.state = None
        self.events, self.emitted, self.states, self.headers = [], {}, {}, HeaderView.of({})
        body = encode_message(message, None if meta is None else Raw(encode_json(meta)))
        if contract.model is None:
            asked = asking(if_match, if_none_match)
            asyncio.run(self._ask(contract, target, message, body, key, asked, HeaderView.of(headers or {}), identity))
        else:
            asyncio.run(self._command(contract, target, message, key, if_match, if_none_match, meta, headers, identity))
        if self._faults:
            raise AssertionError(self._faults[0])
        return self

    async def _command(
        self,
        contract: Contract,
        id: str,
        message: Struct,
        key: str | None,
        if_match: Version,
        if_none_match: Version,
        meta: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        identity: Identity | None,
    ) -> None:
        before = len(self._log.partitions[0])
        async with Service(*self._kinds.values(), log=self._log) as service:
            async with _opened(self._kinds.values()):
                scope = service.transactions.scopes[0]
                quarantined = scope.quarantine.entries.items()
                broken = [f"{name} cannot be folded: {entry.reason}" for name, entry in quarantined]
                if scope.failed or broken:
                    wrong = [
                        *self._faults,
                        *(f"the given events are wrong: {text}" for text in (scope.failed, *broken) if text),
                    ]
                    raise AssertionError(wrong[0])
                try:
                    answer = await service.submit(
                        contract.kind,
                        id,
                        message,
                        key=key,
                        if_match=if_match,
                        if_none_match=if_none_match,
                        meta=meta,
                        headers=headers,
                        identity=identity,
                    )
                    self.events, self.headers = answer.events, HeaderView.of(answer.headers)
                except Problem as problem:
                    self._answered_with(problem)
            by_name = {other.name: other for other in self._kinds.values()}
            for offset, record, verdict in self._log.judged(0):
                for write in record.writes if isinstance(record, Commit) and verdict else ():
                    name, _, of = write.aggregate.partition("/")
                    if write.aggregate not in self.states:
                        self.states[write.aggregate] = await service.read(by_name[name].kind, of)
                    if offset >= before:
                        found = self.emitted.setdefault(write.aggregate, [])
                        found += [by_name[name].event_codec.decode(event)[0] for event in write.events]
        self.state = self.states.get(aggregate(contract.name, id), (None, 0))[0]

    async def _ask(
        self,
        contract: Contract,
        id: str,
        message: Struct,
        body: bytes,
        key: str | None,
        asked: Conditions | None,
        headers: HeaderView,
        identity: Identity | None,
    ) -> None:
        """Send a message to an actor without aggregates, which is started again and first given the events before."""
        self._kinds = {kind: checked(Contract(kind), self._faults) for kind in self._kinds}
        contract = self._kinds[contract.kind]
        handlers = {other.name: performing(other) for other in self._kinds.values() if other.model is None}
        async with _opened(self._kinds.values()):
            for offset, (of, at, event, sent) in enumerate(self._received):
                listener = self._kinds[of]
                position = await position_of(listener, TOPIC, 0)
                if position is None or offset >= position[0]:
                    await handlers[listener.name](self._event(offset, at, event, sent))
            if asked is None or (isinstance(message, Query) and asked.match is None):
                await self._answer(contract, handlers[contract.name], id, message, body, key, headers, identity)
            else:
                self._answered_with(VersionMismatch("An actor without aggregates has no versions."))

    async def _answer(
        self,
        contract: Contract,
        handler: Handler,
        id: str,
        message: Struct,
        body: bytes,
        key: str | None,
        headers: HeaderView,
        identity: Identity | None,
    ) -> None:
        try:
            if not (isinstance(message, Event) and type(message).__name__ in contract.subscribes):
                admit(contract, identity)
            if isinstance(message, Query):
                envelope = _query(contract, handler, id, message)
                envelope.headers, envelope.identity = headers, identity
            elif isinstance(message, Event) and type(message).__name__ in contract.subscribes:
                event = _round_trip(contract.subscribed_codec, message)
                self._received.append((contract.kind, id, event, headers))
                envelope = self._event(len(self._received) - 1, id, event, headers)
            else:
                decoded, meta = contract.command_codec.decode(body)
                envelope = Envelope(
                    message=decoded, id=id, meta=meta, key=key, body=body, headers=headers, identity=identity
                )
            outcome = await handler(envelope)
            self.reply, self.headers = outcome.value, HeaderView.of(outcome.headers)
            encode_value(self.reply)  # it raises if HTTP could not answer with it
        except Problem as problem:
            self._answered_with(problem)
            return
        given = self.reply if isinstance(self.reply, list | tuple) else [self.reply]
        self.events = [event for event in given if isinstance(event, Event)]

    def _answered_with(self, problem: Problem) -> None:
        encode_problem(problem)
        self.problem, self.headers = problem, HeaderView.of(problem.headers)

    def _event(self, offset: int, id: str, event: Event, headers: HeaderView) -> Envelope:
        version = sum(at == id for _, at, _, _ in self._received[: offset + 1])
        context = Context(
            id=id,
            topic=TOPIC,
            partition=0,
            offset=offset,
            position=(0, offset + 1, 0),
            version=version,
            time=0.0,
            headers=headers,
        )
        return Envelope(message=event, id=id, record=context)

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

    def then_state(self, state: Any, actor: type[Actor] | None = None, id: str | None = None) -> Self:
        """The aggregate has this state now, whatever the answer was. None: it has never existed."""
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


@asynccontextmanager
async def _opened(contracts: Iterable[Contract]) -> AsyncIterator[None]:
    for contract in contracts:
        await awaited(contract.actor.start())
    try:
        yield
    finally:
        for contract in contracts:
            await awaited(contract.actor.stop())


def _round_trip(codec: Codec, message: Any) -> Any:
    """The event after it was encoded and decoded. Raises AssertionError if it is not the same."""
    try:
        found = codec.decode(encode_message(message))[0]
    except Problem as problem:
        raise AssertionError(f"{message!r} could not be read from the log again: {problem}") from None
    assert found == message, f"{message!r} would be read from the log as {found!r}"
    return found


def _query(contract: Contract, handler: Handler, id: str, message: Query) -> Envelope:
    """The query after it was encoded as a URL and decoded."""
    fields = {
        name: [_text(item) for item in (value if isinstance(value, list) else [value])]
        for name, value in msgspec.to_builtins(message).items()
        if value is not None
    }
    route = next(route for route in queries(contract, handler) if type(message) in route.takes)
    path = {name: fields.pop(name)[0] for name in route.names if name != "id" and name in fields}
    path_id = fields.pop("id")[0] if "id" in route.names and "id" in fields else id
    if len(route.takes) > 1:
        fields["type"] = [type(message).__name__]
    in_path = path_id if "id" in route.names else ""
    decoded, _ = route.decode(b"", in_path, path, urlencode(fields, True, quote_via=quote).encode())
    return Envelope(message=decoded, id=path_id)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else encode_json(value).decode()
