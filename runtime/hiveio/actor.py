"""The actor and its messages: what a user writes, and what the runtime reads from its annotations.

The annotations of ``perform`` and ``replay`` are the routing, the validation and the schema, declared once.
"""

import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin

import msgspec
from msgspec import Struct

from hiveio.annotations import (
    by_name,
    called,
    check_class,
    check_fields,
    check_output,
    check_takes_nothing,
    hints_of,
    members_of,
)
from hiveio.correlation import Correlate, check_no_process, check_process, correlations, sends_of
from hiveio.envelope import Codec, Context, Envelope, Handler, Outcome, UpcastingCodec
from hiveio.errors import BadAnnotation, NameTaken, contained, is_cancelled
from hiveio.immutable import is_immutable
from hiveio.messages import Command, CommandRefused, Deadline, Event, Model, Query, Tombstone


class Transaction(Protocol):
    """The ``tx`` of a ``perform``: what is written, sent and scheduled with it happens if the events that it returns
    do, and only then. ``send``, ``schedule``, ``cancel`` and ``end`` are there for process managers."""

    async def get(self, actor: type["Actor"], id: str) -> Any:
        """The state of another aggregate, at the snapshot of everything read before; None if it does not exist."""

    def emit(self, actor: type["Actor"], id: str, event: Event) -> None:
        """Write an event to another aggregate, in the same transaction."""

    def send(self, service: str, id: str, command: Command) -> None:
        """Send a command to the aggregate ``id`` of another service, which its event topic names. It is executed once,
        and answered with its events or with CommandRefused."""

    def schedule(self, deadline: Deadline, *, after: timedelta, name: str = "") -> None:
        """Let this deadline come to the process after a time. A process has one of each class and ``name``: one that is
        pending is put off to that."""

    def cancel(self, kind: type[Deadline], name: str = "") -> None:
        """Cancel the deadline of this class and name, if it is pending."""

    def end(self) -> None:
        """End the process. Its deadlines are cancelled, and what comes for it later is skipped. Its events stay in the
        log; its state is not kept: GET and commands are answered with 404."""


class Actor:
    """The domain rules of one kind of aggregate. Derive from it, and write ``perform`` and, for a state, ``replay``.

    - ``perform(self, state, message)`` or ``perform(self, message)``; two further parameters are known by their
      names: ``context`` (a Context) and ``tx`` (a Transaction; stream processor). It returns one event, a list of
      events or None; in base and consumer any value, as the reply. ``Rejected``, ``NotFound``, ``Forbidden`` and
      ``Unauthorized`` refuse. It may run several times for one command, so in the stream processor it has no effects
      of its own.
    - ``replay(self, state, event)`` returns the state after the event. It is a pure function and never refuses.
    - ``topic`` is where its events are written (producer; default: EVENT_STORE_TOPIC), ``key`` the field of its events
      that is their key on the topic (producer; default: the id in the path).
    - ``upcast(self, type, payload)``, where there is one, makes today's event of what older versions wrote: before
      ``replay`` it is given type and payload (a dict) of each event in the log, and returns both. Today's events come
      back unchanged. So an event may be renamed or reshaped while the log stays as it was written.
    - ``start``, ``stop`` and ``ready`` may be plain or ``async``.
    - Consumer: ``perform`` takes one event, or, annotated with a list of events, those that came at once, in order
      (``context`` is then a list too). ``position`` and ``reset`` are described in docs/consumer.md.
    """

    path: ClassVar[str] = ""
    name: ClassVar[str] = ""  # in the log; default: the name of the class
    topic: ClassVar[str] = ""
    key: ClassVar[str] = ""
    # The scope that a token must have, or several with spaces between them, for each request to this actor. It needs
    # AUTH_JWKS_URL: the start fails where nobody would ask for a token.
    requires: ClassVar[str] = ""
    # Its state is in memory, or in a file of one process. Then CLUSTER_SIZE must be 1, because each worker would answer
    # from the part of the events that it was given.
    single_process: ClassVar[bool] = False
    isolation: ClassVar[Literal["snapshot", "serializable"]] = "snapshot"
    # What its reads, and its refusals without an Idempotency-Key, rest on: docs/transactions.md, Reads.
    reads: ClassVar[Literal["current", "linearizable"]] = "current"
    # Raise it when replay or upcast changes: snapshots are folded anew, as they are when fields of the model change.
    schema_version: ClassVar[int] = 1
    # Consumer: what becomes of a record whose type ``perform`` takes and which does not fit it (or is no JSON), and of
    # one of a type that no actor of the container takes: kept in the dead-letter topic, or skipped and counted.
    undecodable: ClassVar[Literal["dead", "skip"]] = "dead"
    unknown: ClassVar[Literal["dead", "skip"]] = "dead"
    # Consumer: how a query is answered about a key whose events wait as dead letters: from what was handled, with
    # ``Hive-Parked: 1``, or with 503.
    parked: ClassVar[Literal["answer", "unavailable"]] = "answer"

    perform: Callable[..., Any]
    replay: Callable[..., Any] | None = None
    upcast: Callable[..., Any] | None = None

    def scope(self, id: str) -> str:
        """Aggregates of one scope share a partition of the log; a transaction stays inside one scope. It is a pure
        function of the id, and stays what it is once the log has aggregates of this actor: the start compares."""
        return id

    def start(self) -> Awaitable[None] | None:
        """Open what the actor needs; awaited before the first message."""
        return None

    def stop(self) -> Awaitable[None] | None:
        """Close it; awaited after the last message."""
        return None

    def ready(self) -> Awaitable[bool] | bool:
        """Joins the readiness of the service."""
        return True


class ProcessManager(Actor):
    """A kind of long-running process, in a stream processor. Its aggregates are processes. Events of other services
    drive them, and they send commands to services and set themselves deadlines, by ``tx``.

    - ``perform`` takes events of topics, classes of Deadline, CommandRefused, and commands that come over HTTP.
    - ``correlates`` says to which process an event of a topic belongs: by the field that has its id, or by KEY where
      the key of the record is the id.
    - ``sends`` names the commands to each service: AsyncAPI describes them, and ``tx.send`` refuses others.
    - Each event has its effect once, also where it is delivered again. ``perform`` returns None where it means nothing
      to the process. Where it raises, the process is stuck, and its inputs wait.
    """

    correlates: ClassVar[Mapping[type[Event], str]] = {}
    sends: ClassVar[Mapping[str, Sequence[type[Command]]]] = {}
    unknown = "skip"  # the topics of other services have more than what drives a process


Invoke = Callable[[Any, Any, Context | None, Transaction | None], Any]
_MESSAGES = (Command, Event, Query)
_KNOWN, _LISTS = ("context", "tx"), (list, Sequence)


class Contract:
    """An actor with what its annotations say. Made once a process; raises BadAnnotation.

    ``commands``, ``queries`` and ``events`` are message types by name; ``model`` is the type of the state, or None.
    ``commands`` holds whatever ``perform`` takes over POST; ``subscribes`` the events that it takes from a log, with
    ``batch`` as a list, and ``tombstones`` says whether it takes records without a value too. ``inputs`` is all that
    drives a process: ``subscribes``, for each of which ``correlates`` gives the id of the process, deadlines and
    CommandRefused. ``mutable`` are those of ``commands``, ``subscribes`` and ``inputs`` whose messages an actor could
    change.
    """

    def __init__(self, kind: type[Actor]) -> None:
        self.kind = kind
        self.name = kind.name or kind.__name__
        self.path, self.topic, self.key = kind.path, kind.topic, kind.key
        self.serializable, self.reads = kind.isolation == "serializable", kind.reads
        check_class(kind)
        self.requires = frozenset(kind.requires.split(" ")) - {""}
        self._read_perform(kind)
        self._read_replay(kind)
        check_output(kind, self.events.values())
        messages = self.commands, self.queries, self.events, self.subscribes, self.inputs
        for found in {kind for kinds in messages for kind in kinds.values()}:
            check_fields(found)
        if self.model is not None:
            check_fields(self.model)
        check_takes_nothing(kind)
        self.actor = kind()
        self.invoke: Invoke = self._invoker(self.actor)
        self.replay: Callable[[Any, Any], Any] | None = self.actor.replay
        self.command_codec = Codec(self.commands.values())
        self.event_codec = self._event_codec(kind)
        self.subscribed_codec = Codec(self.subscribes.values(), strict=False)
        self.input_codec = Codec(self.inputs.values(), strict=False)
        self.model_decoder = msgspec.json.Decoder(self.model | None if self.model else Any)
        self._shares_state = self.model is None or is_immutable(self.model)
        taken = {*self.commands.values(), *self.subscribes.values(), *self.inputs.values()}
        self.mutable = frozenset(kind for kind in taken if not is_immutable(kind))

    def _read_perform(self, kind: type[Actor]) -> None:
        name = f"{kind.__name__}.perform"
        hints = hints_of(kind.perform, name)
        parameters = list(inspect.signature(kind.perform).parameters.values())[1:]
        for p in parameters:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise BadAnnotation(f"{name} takes *{p.name}; it takes state, message and, by name, context and tx")
        ours = [p.name for p in parameters if p.name not in _KNOWN]
        self.wants_context, self.wants_tx = (any(p.name == known for p in parameters) for known in _KNOWN)
        if len(ours) not in (1, 2):
            raise BadAnnotation(
                f"{name} takes {len(ours)} parameters; it takes (self, state, message) or (self, message)"
            )
        self.stateful = len(ours) == 2
        if ours[-1] not in hints:
            raise BadAnnotation(f"{name}: the parameter {ours[-1]} has no annotation; name the messages that it takes")
        self._state = (ours[0], hints[ours[0]]) if self.stateful and ours[0] in hints else None
        members = members_of(hints[ours[-1]])
        lists = [m for m in members if get_origin(m) in _LISTS]
        batch = [m for found in lists for m in members_of(get_args(found)[0])]
        taken = [m for m in members if m not in lists]
        events = [t for t in taken if isinstance(t, type) and issubclass(t, Event)]
        if batch and (events or not all(isinstance(t, type) and issubclass(t, Event) for t in batch)):
            raise BadAnnotation(f"{name}: {ours[-1]} takes events, or a list of events and nothing else in a list")
        for member in (*taken, *batch):
            if member in _MESSAGES:
                raise BadAnnotation(f"{name}: {ours[-1]} takes any {called(member)}; name the classes that it takes")
            if not (isinstance(member, type) and issubclass(member, _MESSAGES)):
                text = f"{ours[-1]} takes {called(member)}, which is not a Command, an Event or a Query"
                raise BadAnnotation(f"{name}: {text}")
        self.commands: dict[str, type[Struct]] = by_name(t for t in taken if not issubclass(t, Query | Tombstone))
        subscribed = batch or events
        self.tombstones = Tombstone in subscribed
        named = (t for t in subscribed if t is not Tombstone)  # which has no name on a wire
        self.subscribes: dict[str, type[Struct]] = by_name(named)
        self.batch = bool(batch)
        self.queries: dict[str, type[Query]] = by_name(t for t in taken if issubclass(t, Query))
        self._read_inputs(kind)
        if "return" not in hints:
            raise BadAnnotation(
                f"{name} has no return annotation; name the events that it gives (-> Opened | Deposited), or else what "
                "it answers with; -> None where that is nothing"
            )
        self.returned = hints["return"]  # the annotation as it is written
        self.returns = members_of(self.returned, into_lists=True)
        self.is_async = inspect.iscoroutinefunction(kind.perform)

    @property
    def takes_records(self) -> bool:
        """Whether a consumer has something for it."""
        return bool(self.subscribes) or self.tombstones or CommandRefused in self.inputs.values()

    def _read_inputs(self, kind: type[Actor]) -> None:
        self.process = issubclass(kind, ProcessManager)
        self.inputs: dict[str, type[Event]] = {}
        self.correlates: dict[str, Correlate] = {}
        self.sends: dict[str, tuple[type[Command], ...]] = {}
        if not issubclass(kind, ProcessManager):
            check_no_process(kind, self.subscribes.values())
            return
        check_process(kind, "a list of events" if self.batch else "Tombstone" if self.tombstones else "")
        self.sends = sends_of(kind, kind.sends)
        self.inputs = {name: event for name, event in self.subscribes.items() if issubclass(event, Event)}
        self.correlates = correlations(kind, kind.correlates, self.inputs.values())
        self.subscribes = {name: event for name, event in self.inputs.items() if name in self.correlates}
        self.commands = {name: t for name, t in self.commands.items() if not issubclass(t, Event)}

    def _read_replay(self, kind: type[Actor]) -> None:
        self.model: type[Model] | None = None
        events = [t for t in self.returns if isinstance(t, type) and issubclass(t, Event)]
        if kind.replay is None:
            self.events: dict[str, type[Event]] = by_name(events)
            return
        name = f"{kind.__name__}.replay"
        hints = hints_of(kind.replay, name)
        parameters = list(inspect.signature(kind.replay).parameters)[1:]
        if len(parameters) != 2:
            raise BadAnnotation(f"{name} takes {len(parameters)} parameters; it takes (self, state, event)")
        if inspect.iscoroutinefunction(kind.replay):
            raise BadAnnotation(f"{name} is async; it must be a plain function of state and event")
        event = parameters[1]
        if event not in hints:
            raise BadAnnotation(f"{name}: the parameter {event} has no annotation; name the events that it folds")
        for member in (folded := members_of(hints[event])):
            if not (isinstance(member, type) and issubclass(member, Event)) or member is Event:
                raise BadAnnotation(f"{name}: {event} takes {called(member)}, which is not an Event")
        if "return" not in hints:
            raise BadAnnotation(f"{name} has no return annotation; name the Model that it folds")
        models = [t for t in members_of(hints["return"]) if t is not types.NoneType]
        if len(models) != 1 or not (isinstance(models[0], type) and issubclass(models[0], Model)):
            raise BadAnnotation(f"{name} returns {called(hints['return'])}, which is not a Model")
        self.model = models[0]
        parameter, annotation = self._state or ("", None)
        for state in members_of(annotation):
            if isinstance(state, type) and issubclass(state, Model) and not issubclass(self.model, state):
                text = f"takes {called(state)}, and {name} folds {called(self.model)}"
                raise BadAnnotation(f"{kind.__name__}.perform: {parameter} {text}")
        self.events = by_name(folded)
        for t in events:
            if t not in folded:
                raise BadAnnotation(f"{kind.__name__}.perform returns {t.__name__}, which {name} does not take")

    def _event_codec(self, kind: type[Actor]) -> Codec:
        if kind.upcast is None:
            return Codec(self.events.values(), strict=False)
        if len(inspect.signature(kind.upcast).parameters) != 3 or inspect.iscoroutinefunction(kind.upcast):
            raise BadAnnotation(f"{kind.__name__}.upcast is a plain function (self, type, payload) of a stored event")
        assert self.actor.upcast is not None
        return UpcastingCodec(self.events.values(), self.actor.upcast)

    def _invoker(self, actor: Actor) -> Invoke:
        perform, stateful = actor.perform, self.stateful
        wants_context, wants_tx = self.wants_context, self.wants_tx
        if not (wants_context or wants_tx):
            if stateful:
                return lambda state, message, context, tx: perform(state, message)
            return lambda state, message, context, tx: perform(message)

        if not (stateful or wants_tx):  # a projection, which gets many events
            return lambda state, message, context, tx: perform(message, context=context)

        def invoke(state: Any, message: Any, context: Context | None, tx: Transaction | None) -> Any:
            known: dict[str, Any] = {}
            if wants_context:
                known["context"] = context
            if wants_tx:
                known["tx"] = tx
            return perform(state, message, **known) if stateful else perform(message, **known)

        return invoke

    def own_state(self, state: Any, snapshot: bytes) -> Any:
        """The state, to be given to ``perform`` or ``replay``: what these do to it reaches nobody else."""
        return state if self._shares_state or state is None else self.model_decoder.decode(snapshot)

    def checked_events(self, returned: Any) -> list[Event]:
        """What ``perform`` returned, as a list. Raises TypeError (a fault of the actor) for what is not its event."""
        if returned is None:
            return []
        events = list(returned) if isinstance(returned, list | tuple) else [returned]
        for event in events:
            self.check_event(event)
        return events

    def check_event(self, event: Any) -> None:
        if self.events.get(type(event).__name__) is not type(event):
            known = ", ".join(self.events) or "none"
            raise TypeError(f"{self.name} gave {event!r}, which is not one of its events: {known}")


def contracts(kinds: Sequence[type[Actor]]) -> list[Contract]:
    """The contracts of all actors of a container. Raises NameTaken for two messages or two actors of one name."""
    made = [Contract(kind) for kind in kinds]
    actors: dict[str, Contract] = {}
    messages: dict[str, type] = {}
    for contract in made:
        if contract.name in actors:
            raise NameTaken(f"Two actors are named {contract.name}; give one of them another `name`")
        actors[contract.name] = contract
        for group in (contract.commands, contract.queries, contract.events):
            for name, kind in group.items():
                if messages.setdefault(name, kind) is not kind:
                    raise NameTaken(
                        f"Two messages are named {name}: {messages[name].__module__}.{messages[name].__qualname__} and "
                        f"{kind.__module__}.{kind.__qualname__}; rename one, because JSON has only the name"
                    )
    return made


@functools.cache
def performing(contract: Contract) -> Handler:
    """The innermost handler: runs the actor without a state and answers with what it returns. Raises BadAnnotation."""
    if contract.process:
        raise BadAnnotation(f"{contract.kind.__name__} is a ProcessManager: use the image of the stream processor")
    if contract.wants_tx:
        raise BadAnnotation(f"{contract.kind.__name__}.perform takes tx, and only a stream processor has transactions")
    invoke, is_async, wants_context = contract.invoke, contract.is_async, contract.wants_context
    events_only = bool(contract.events) and all(
        t is types.NoneType or (isinstance(t, type) and issubclass(t, Event)) for t in contract.returns
    )
    events = {*contract.events.values(), types.NoneType}

    async def handle(envelope: Envelope) -> Outcome:
        try:
            result = invoke(None, envelope.message, envelope.context() if wants_context else None, None)
            # inspect.isawaitable asks for more, and costs as much as the rest
            if is_async or (result is not None and hasattr(result, "__await__")):
                result = await result
        except BaseException as error:
            if is_cancelled(error) or contained(error) is error:
                raise
            raise contained(error) from error
        if events_only and type(result) not in events:
            contract.checked_events(result)
        return Outcome(result)

    return handle


def query_decoder(kind: type[Query]) -> Callable[[dict[str, Any]], Query]:
    """Decodes a query from its parameters: text is converted to the types of its fields. Raises Invalid (422)."""
    sequences = (list, tuple, set, frozenset)
    lists = {
        f.name
        for f in msgspec.structs.fields(kind)
        if any((get_origin(t) or t) in sequences for t in members_of(f.type))
    }

    def decode(parameters: dict[str, Any]) -> Query:
        values = {
            name: value if name in lists or not isinstance(value, list) else value[-1] if len(value) == 1 else value
            for name, value in parameters.items()
        }
        try:
            return msgspec.convert(values, kind, strict=False)
        except msgspec.ValidationError as error:
            from hiveio.envelope import invalid

            raise invalid(error) from None

    return decode
