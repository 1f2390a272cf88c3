"""The inbox of processes: an event that a consumer hands over becomes an input of its process.

The source of an event is where it is on its topic. Its process keeps the sources that it has taken for ever, so the
event may be handed over any number of times and in any order: after a crash, from a group that was reset, or as a dead
letter that is tried again. The handler returns after a definite verdict, and only then is the offset committed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Raw

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import Codec, Context, Envelope, Handler, Outcome, Pairs, encode_message
from hiveio.errors import ConfigError, Conflict, HiveError, Invalid, Quarantined, Unavailable, Unknown
from hiveio.headers import Headers
from hiveio.messages import CommandAccepted, CommandRefused
from hiveio.transaction.command import InFlight
from hiveio.transaction.component import TransactionLog
from hiveio.transaction.process import Input


def check_topics(settings: Settings) -> None:
    """Raises ConfigError where process managers would read the events of their own service without meaning to."""
    own, named = settings.written_topic, settings.consumer_topic
    if own in named:
        return
    if own in settings.read_topics:
        raise ConfigError(
            f"EVENT_STORE_CONSUMER_TOPIC is not set, so process managers would read {own}, to which this service "
            "writes: name the topics of the services whose events they take. If they are to take those of this "
            f"service too, name {own} as well"
        )
    # With the classic protocol the client matches the beginning of a name, with the other one a broker the whole.
    matches = re.match if settings.kafka.get("group.protocol", "").lower() == "classic" else re.fullmatch
    if matching := [name for name in named if name.startswith("^") and matches(name, own)]:
        raise ConfigError(
            f"EVENT_STORE_CONSUMER_TOPIC={matching[0]} matches {own}, to which this service writes: use an expression "
            "that does not, or name the topics"
        )


class AnswerCodec(Codec):
    """Takes the events that drive processes, and what else answers their commands: any record that has one of these as
    its cause. ``perform`` is not given that, and the process has its answer."""

    def __init__(self, contracts: Sequence[Contract], log: TransactionLog) -> None:
        kinds = {kind for contract in contracts for kind in contract.subscribes.values()}
        if any("CommandRefused" in contract.inputs for contract in contracts):
            kinds.add(CommandRefused)
        super().__init__(kinds, strict=False)
        self._log = log

    def decode(self, body: bytes, headers: Pairs | None = None) -> tuple[Any, Raw | None]:
        try:
            return super().decode(body, headers)
        except Invalid as error:
            found = Headers(headers) if headers and error.unknown_type is not None else None
            if found is None or not answered_by(found, self._log):
                raise
            return CommandAccepted(error.unknown_type or "", "", ""), None


def answered_by(headers: Headers, log: TransactionLog) -> tuple[str, str] | None:
    """The process of this service whose command was answered, and the position of the command in the outbox."""
    cause, process = headers.get("hive-cause", ""), headers.get("hive-process", "")
    if not (process and cause.startswith(log.outbox_stream)):
        return None
    return process, cause.rpartition("/")[2]


def inbox(contract: Contract, managers: Mapping[str, Contract], log: TransactionLog) -> Handler:
    """The handler that gives the events of topics to the processes of one manager. ``managers`` are all, by name.

    What answers a command says so to the process that has sent it, which the header ``hive-process`` names: with the
    event, where that is its own, or else besides.

    Raises Unavailable where the event has to be handed over again: nothing has happened, or nobody knows yet. Raises
    Invalid for an event that belongs to no process, and what the actor raises.
    """
    correlates = contract.correlates

    async def handle(envelope: Envelope) -> Outcome:
        event, source = envelope.message, source_of(envelope.record)
        sender, position = answered_by(envelope.headers, log) or ("", "")
        actor, _, sender_id = sender.partition("/")
        manager, kind = managers.get(actor), type(event).__name__
        if (correlate := correlates.get(kind)) is not None:
            id = correlate(event, envelope.id or None)
            if manager is contract and sender_id == id:
                await give(log, contract, id, envelope, Input(source, answers=position))
                return Outcome()
            await give(log, contract, id, envelope, Input(source))
        elif manager is contract and kind in contract.inputs:
            await give(log, contract, sender_id, envelope, Input(source, answers=position))
            return Outcome()
        if manager is not None and (manager is contract or kind not in manager.inputs):
            await give(log, manager, sender_id, envelope, Input(answers=position))
        return Outcome()

    return handle


async def give(log: TransactionLog, contract: Contract, id: str, envelope: Envelope, input: Input) -> None:
    """Give a process an input. Raises Unavailable where that has to be tried again."""
    event, meta, headers, record = envelope.message, envelope.meta, envelope.headers, envelope.record
    body = encode_message(event, meta)
    given = Envelope(message=event, id=id, meta=meta, body=body, headers=headers, record=record)
    await settled(log.engine.submit(contract, given, input))


async def settled(command: InFlight) -> Outcome:
    """The outcome of a command that a consumer has handed over. Raises Unavailable where that has to be done again,
    HiveError for an aggregate that takes no commands, and what the actor raises."""
    try:
        return await command.future
    except Quarantined as error:  # it concerns this aggregate alone, so the others must not wait for it
        raise HiveError(str(error)) from None
    except (Conflict, Unknown) as error:  # the aggregate knows whether it has taken the command
        raise Unavailable(str(error)) from None


def source_of(record: Context) -> str:
    """Where a record comes from. A topic that was recreated has another id."""
    return f"{record.topic}/{record.topic_id or ''}/{record.partition}/{record.offset}"
