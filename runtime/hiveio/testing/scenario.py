"""given / when / then: plain tests in which one message follows the other.

The events that were given, and those of earlier messages, are in a log in memory. Each ``when`` starts the actor with
this log, as a new instance would start with the real one, sends the message through the wire format, and stops. So
every test folds the state from the log.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Self
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Raw, Struct

from hiveio.actor import Actor, Contract, performing
from hiveio.conditions import Conditions
from hiveio.consumer.envelopes import as_batch
from hiveio.consumer.position import position_of
from hiveio.envelope import Codec, Context, Envelope, Handler, encode_json, encode_message, encode_value
from hiveio.errors import Problem, VersionMismatch
from hiveio.headers import HeaderView
from hiveio.http.problem import encode_problem
from hiveio.http.routes import queries
from hiveio.identity import Identity
from hiveio.messages import CommandRefused, Deadline, Event, Query, Tombstone
from hiveio.service import awaited
from hiveio.testing.checked import checked
from hiveio.testing.memory import MEMORY
from hiveio.testing.processes import fires_next, scheduled, sent
from hiveio.testing.results import Received, Results
from hiveio.testing.service import Answer, Service, Version, admit, asking
from hiveio.transaction import record as records
from hiveio.transaction.record import CommandId, Commit, Write, aggregate

TOPIC = "memory"
FIRED = 1_000  # the most deadlines that fire in one `after`


def given(actor: type[Actor], *events: Event, id: str = "1") -> "Scenario":
    """The events that have happened to the aggregate ``id``; for a consumer, the events of ``id`` that it has
    received."""
    return Scenario(actor, id).and_given(actor, id, *events)


class Scenario(Results):
    """``given(…).when(…).then(…)``; ``when`` and ``then`` may follow each other as often as the test needs.

    A check that fails raises an AssertionError. An error of the actor that is no Problem (a bug) is raised by ``when``.
    ``reply``, ``problem``, ``headers``, ``events`` and ``state`` are the results of the last message, for assertions of
    your own.
    """

    # -- given

    def and_given(self, actor: type[Actor], id: str, *events: Event) -> Self:
        """The events that have happened to another aggregate. Without events it only adds the actor, so that ``tx`` can
        use its aggregates."""
        contract = self._contract(actor)
        name = aggregate(contract.name, id)
        for event in events:
            if contract.model is None:
                self._received.append(Received(actor, id, _recorded(contract, event), HeaderView.of({})))
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

        An event comes to the process that ``correlates`` names, from where ``then`` goes on with that process; ``id``
        is the key of its record.
        """
        contract, target = self._contract(self._actor), self._id if id is None else id
        if contract.process and isinstance(message, Event):
            return self._deliver(contract, target, message, meta, headers)
        self._begin(f"{contract.name}/{target} when {message!r}")
        body = encode_message(message, None if meta is None else Raw(encode_json(meta)))
        if contract.model is None:
            asked = asking(if_match, if_none_match)
            view = HeaderView.of(headers or {})
            asyncio.run(self._ask(contract, target, message, body, key, asked, view, identity, meta))
        else:

            async def submit(service: Service) -> Answer:
                return await service.submit(
                    contract.kind,
                    target,
                    message,
                    key=key,
                    if_match=if_match,
                    if_none_match=if_none_match,
                    meta=meta,
                    headers=headers,
                    identity=identity,
                )

            asyncio.run(self._run(contract, target, submit))
        return self._checked()

    def _deliver(
        self,
        contract: Contract,
        key: str,
        event: Event,
        meta: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
    ) -> Self:
        """Give an event to its process."""
        name, own = type(event).__name__, isinstance(event, CommandRefused)
        if isinstance(event, Deadline):
            raise AssertionError(f"{name} is a deadline: it comes when its time is over, which `after` lets go by")
        if name not in contract.inputs:
            raise AssertionError(f"{contract.kind.__name__}.perform does not take {name}")
        self._id = key if own else contract.correlates[name](event, key)
        self._begin(f"{contract.name}/{self._id} when {event!r}")
        source = f"{TOPIC}/{MEMORY}/0/{self._inputs}"
        self._inputs += 1

        async def deliver(service: Service) -> Answer:
            id = key if own else None
            return await service.deliver(
                contract.kind, event, source=source, id=id, key=key, meta=meta, headers=headers
            )

        asyncio.run(self._run(contract, self._id, deliver))
        return self._checked()

    def after(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> Self:
        """Let so much time go by. The deadlines that become due come to their processes, one after the other in the
        order in which they are due; ``then`` and the others see what all of them have led to. Those of a process that
        is stuck stay pending."""
        contract = self._contract(self._actor)
        passed = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        self._begin(f"{contract.name}/{self._id} after {passed}")
        asyncio.run(self._pass(contract, self._log.folds[0].time + passed // timedelta(milliseconds=1)))
        return self._checked()

    async def _pass(self, contract: Contract, until: int) -> None:
        before, fired = len(self._log.partitions[0]), 0
        while self.problem is None and (due := fires_next(self._log)) and due.due <= until:
            if fired == FIRED:
                raise AssertionError(f"{self._message}: {FIRED} deadlines fire, and more are due")
            self._clock.move(self._log, due.due)
            await self._run(contract, self._id, partial(Service.fire, deadline=due), before)
            fired += 1
        self._clock.move(self._log, until)
        if not fired:
            await self._run(contract, self._id)
        self.events = self.emitted.get(aggregate(contract.name, self._id), [])

    def _checked(self) -> Self:
        if self._faults:
            raise AssertionError(self._faults[0])
        return self

    async def _run(
        self,
        contract: Contract,
        id: str,
        send: Callable[[Service], Awaitable[Answer]] | None = None,
        before: int | None = None,
    ) -> None:
        """Start the actors, send them something, and look at what all records from the offset ``before`` on have led
        to; by default at those that come now."""
        before = len(self._log.partitions[0]) if before is None else before
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
                    if send is not None:
                        answer = await send(service)
                        self.events, self.headers = answer.events, HeaderView.of(answer.headers)
                except Problem as problem:
                    self._answered_with(problem)
            by_name = {other.name: other for other in self._kinds.values()}
            self.emitted, self.states = {}, {}
            for offset, record, verdict in self._log.judged(0):
                for write in record.writes if isinstance(record, Commit) and verdict else ():
                    name, _, of = write.aggregate.partition("/")
                    if write.aggregate not in self.states:
                        self.states[write.aggregate] = await service.read(by_name[name].kind, of)
                    if offset >= before:
                        found = self.emitted.setdefault(write.aggregate, [])
                        found += [by_name[name].event_codec.decode(event)[0] for event in write.events]
        written = self._log.judged(0, before)
        self.sent, self.scheduled = sent(written), scheduled(written, contract)
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
        meta: Mapping[str, Any] | None,
    ) -> None:
        """Send a message to an actor without aggregates, which is started again and first given the events before."""
        self._kinds = {kind: checked(Contract(kind), self._faults) for kind in self._kinds}
        contract = self._kinds[contract.kind]
        handlers = {other.name: performing(other) for other in self._kinds.values() if other.model is None}
        async with _opened(self._kinds.values()):
            for offset, received in enumerate(self._received):
                listener = self._kinds[received.actor]
                position = await position_of(listener, TOPIC, 0)
                if position is None or offset >= position[0]:
                    await handlers[listener.name](self._record(offset))
            if asked is None or (isinstance(message, Query) and asked.match is None):
                await self._answer(contract, handlers[contract.name], id, message, body, key, headers, identity, meta)
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
        meta: Mapping[str, Any] | None,
    ) -> None:
        read = isinstance(message, Event) and (
            contract.tombstones if isinstance(message, Tombstone) else type(message).__name__ in contract.subscribes
        )
        try:
            if not read:
                admit(contract, identity)
            if isinstance(message, Query):
                envelope = _query(contract, handler, id, message)
                envelope.headers, envelope.identity = headers, identity
            elif isinstance(message, Event) and read:
                self._received.append(Received(contract.kind, id, _recorded(contract, message), headers, meta))
                envelope = self._record(len(self._received) - 1)
            else:
                decoded, raw = contract.command_codec.decode(body)
                envelope = Envelope(
                    message=decoded, id=id, meta=raw, key=key, body=body, headers=headers, identity=identity
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

    def _record(self, offset: int) -> Envelope:
        """An event of the topic, as the consumer gives it to its actor."""
        actor, id, event, headers, meta = self._received[offset]
        context = Context(
            id=id,
            topic=TOPIC,
            key=id.encode("utf-8", "surrogateescape"),
            partition=0,
            offset=offset,
            position=(0, offset + 1, 0),
            version=sum(other.id == id for other in self._received[: offset + 1]),
            time=0.0,
            headers=headers,
            meta=meta,
        )
        envelope = Envelope(message=event, id=id, record=context)
        return as_batch(envelope) if self._contract(actor).batch else envelope


@asynccontextmanager
async def _opened(contracts: Iterable[Contract]) -> AsyncIterator[None]:
    for contract in contracts:
        await awaited(contract.actor.start())
    try:
        yield
    finally:
        for contract in contracts:
            await awaited(contract.actor.stop())


def _recorded(contract: Contract, event: Event) -> Event:
    """The event as it is read from its record; a tombstone is one without a value."""
    if isinstance(event, Tombstone) and contract.tombstones:
        return event
    found: Event = _round_trip(contract.subscribed_codec, event)
    return found


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
