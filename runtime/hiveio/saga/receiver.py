"""Commands that processes of services have sent: a stream processor takes them from topics of commands, each once.

The consumer gives each aggregate its commands in the order of the topic, each after the one before it is settled: it is
on record, executed or refused, or it waits as a dead letter and parks those behind it. So the aggregate keeps only the
highest position that it has taken of each topic, and what is not above it is a repeat. It is modelled in Saga.tla.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hiveio.actor import Actor, Contract
from hiveio.config import Settings
from hiveio.consumer import Consumer
from hiveio.envelope import ID_LIMIT, Codec, Envelope, Handler, Outcome, Pairs
from hiveio.errors import ConfigError, Invalid, Malformed, NotFound, Refused, Rejected, detached
from hiveio.http.problem import problem_document
from hiveio.messages import Event
from hiveio.saga.inbox import settled
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.process import Input
from hiveio.transaction.record import Cause

SUFFIX = ".commands"  # of the topics of commands
CONCURRENCY = 32  # aggregates whose commands are performed at once, in each partition


Traced = Callable[[Handler, str], Handler]


class ReceivedCommand(Event, frozen=True):
    """A record of a topic of commands that is for this service, as it came."""

    body: bytes


class Commands(Actor):
    """What the consumer gives commands to. It is no actor of a user."""

    name = "commands"
    unknown = "skip"  # commands for other services

    def perform(self, event: ReceivedCommand) -> None:
        raise NotImplementedError


class CommandCodec(Codec):
    """Takes the records that are for some services; whoever performs a command decodes it."""

    def __init__(self, *services: str) -> None:
        super().__init__([ReceivedCommand], strict=False)
        self._services = frozenset(service.encode() for service in services)

    def decode(self, body: bytes, headers: Pairs | None = None) -> tuple[Any, msgspec.Raw | None]:
        for name, text in headers or ():
            if name == "hive-service" and text in self._services:
                return ReceivedCommand(body), None
        foreign = Invalid("it is a command for another service")
        foreign.unknown_type = "a command for another service"
        raise foreign


class _Typed(msgspec.Struct):
    type: str


_decode = msgspec.json.Decoder(_Typed).decode


def check_command_topics(settings: Settings) -> None:
    """Raises ConfigError for names that cannot be topics of commands."""
    for name in settings.command_topics:
        if name.startswith("^") or not name.endswith(SUFFIX):
            raise ConfigError(
                f"COMMAND_TOPICS={name}: the commands of a service are on the topic <its event topic>{SUFFIX}; name "
                "these topics, as in COMMAND_TOPICS=orders.commands"
            )


def receiver(settings: Settings, contracts: Sequence[Contract], log: TransactionLog, traced: Traced) -> Consumer:
    """The consumer of the topics of commands. Raises ConfigError.

    Each service takes all commands and skips those for others, so it has a group of its own, which its event topic
    names. A new group begins at the first command. ``traced`` wraps the handler of a group.
    """
    check_command_topics(settings)
    reading = dataclasses.replace(
        settings,
        consumer_topic=settings.command_topics,
        group_id=receiver_group(settings),
        from_start=True,
        consumer_concurrency=max(CONCURRENCY, settings.consumer_concurrency),
    )
    handler = traced(receiving(contracts, log, settings.written_topic), reading.group_id)
    codec = CommandCodec(settings.written_topic)
    return Consumer(reading, [(Contract(Commands), handler)], name="receiver", with_record=True, codec=codec)


def receiver_group(settings: Settings) -> str:
    return f"{settings.written_topic}.receiver"


def receiving(contracts: Sequence[Contract], log: TransactionLog, service: str) -> Handler:
    """The handler that performs commands from topics. It returns after a definite verdict. Raises ConfigError.

    Raises Unavailable where the command has to be handed over again: nothing has happened, or nobody knows yet. Raises
    Invalid for a record that no process has sent, and what the actor raises, but for its refusals: these are on record.
    Raises a refusal that not even the log takes.
    """
    by_type = _by_type(contracts)

    async def handle(envelope: Envelope) -> Outcome:
        body = envelope.message.body
        cause, id = cause_of(envelope, type_of(body)), _id(envelope.id)
        contract = by_type.get(cause.command)
        given = Envelope(message=None, id=id, body=body, headers=envelope.headers)
        refusal: Refused | None = None
        if contract is None:  # the refusal is on record all the same: any aggregate can hold it
            refusal, contract = NotFound(f"{service} takes no command {cause.command!r}."), contracts[0]
        else:
            try:
                given.message, given.meta = contract.command_codec.decode(body)
            except Refused as error:
                refusal = detached(error)
        while True:
            input = Input(cause=cause, refusal=None if refusal is None else recorded(refusal))
            command = log.engine.submit(contract, given, input)
            try:
                return await settled(command)
            except Refused as error:
                if command.refusal is not error and input.refusal is not None:
                    raise
                refusal = detached(error)
                if command.refusal is refusal:
                    return Outcome()

    return handle


def _by_type(contracts: Sequence[Contract]) -> dict[str, Contract]:
    """Who takes a command. Raises ConfigError."""
    found: dict[str, Contract] = {}
    for contract in contracts:
        for name in contract.commands:
            if (other := found.setdefault(name, contract)) is not contract:
                raise ConfigError(
                    f"COMMAND_TOPICS: {other.name} and {contract.name} both take {name}, and a command from a topic "
                    "names no actor; give one of them a command with another name"
                )
    return found


def cause_of(envelope: Envelope, command: str) -> Cause:
    """Which command of which process a record is. Raises Invalid."""
    record, headers = envelope.record, envelope.headers
    log, process = headers.get("hive-log", ""), headers.get("hive-process", "")
    if not (log and process and record.position):
        raise Invalid("it has no hive-log, hive-process or hive-position, so no process has sent it")
    partition, offset, index = record.position
    return Cause(f"{record.topic}/{log}/{partition}", offset, index, process, command)


def recorded(refusal: Refused) -> Rejected:
    """The refusal as a decision that is recorded like that of an actor."""
    document = problem_document(refusal)
    same = Rejected(document.pop("detail", ""))
    same.urn, same.title, same.status = document.pop("type"), document.pop("title"), document.pop("status")
    same.members = document
    return same


def type_of(body: bytes | msgspec.Raw) -> str:
    """The type of a command, or "" where there is none."""
    try:
        return _decode(body).type
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def _id(id: str) -> str:
    """Raises Malformed for a key that is no id of an aggregate."""
    try:
        if 0 < len(id.encode()) <= ID_LIMIT:
            return id
    except UnicodeEncodeError:
        pass
    raise Malformed(f"the key {id!r} is no id of an aggregate: that has 1 to {ID_LIMIT} bytes of UTF-8")
