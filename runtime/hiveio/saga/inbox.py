"""The inbox of processes: an event that a consumer hands over becomes an input of its process.

The source of an event is where it is on its topic. Its process keeps the sources that it has taken for ever, so the
event may be handed over any number of times and in any order: after a crash, from a group that was reset, or as a dead
letter that is tried again. The handler returns after a definite verdict, and only then is the offset committed.
"""

import re

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import Context, Envelope, Handler, Outcome, encode_message
from hiveio.errors import ConfigError, Conflict, HiveError, Quarantined, Unavailable, Unknown
from hiveio.headers import Headers
from hiveio.messages import CommandRefused
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
    if matching := [name for name in named if name.startswith("^") and re.fullmatch(name, own)]:
        raise ConfigError(
            f"EVENT_STORE_CONSUMER_TOPIC={matching[0]} matches {own}, to which this service writes: use an expression "
            "that does not, or name the topics"
        )


def inbox(contract: Contract, log: TransactionLog) -> Handler:
    """The handler that gives the events of topics to their processes.

    The refusal of a command comes to the process that has sent it, which the header ``hive-process`` names.

    Raises Unavailable where the event has to be handed over again: nothing has happened, or nobody knows yet. Raises
    Invalid for an event that belongs to no process, and what the actor raises.
    """
    correlates = contract.correlates

    async def handle(envelope: Envelope) -> Outcome:
        event, record = envelope.message, envelope.record
        if isinstance(event, CommandRefused):
            actor, _, id = _process(envelope.headers, log.outbox_stream).partition("/")
            if actor != contract.name:
                return Outcome()  # a command of another service, or of another process manager
        else:
            id = correlates[type(event).__name__](event, envelope.id or None)
        body = encode_message(event, envelope.meta)
        given = Envelope(message=event, id=id, meta=envelope.meta, body=body, headers=envelope.headers, record=record)
        try:
            return await log.engine.submit(contract, given, Input(source_of(record))).future
        except Quarantined as error:  # it concerns this process alone, so the others must not wait for it
            raise HiveError(str(error)) from None
        except (Conflict, Unknown) as error:  # the process knows whether it has taken the event
            raise Unavailable(str(error)) from None

    return handle


def _process(headers: Headers, outbox_stream: str) -> str:
    """The process of this service whose command was answered, or "" where it is one of another service."""
    return headers.get("hive-process", "") if headers.get("hive-cause", "").startswith(outbox_stream) else ""


def source_of(record: Context) -> str:
    """Where a record comes from. A topic that was recreated has another id."""
    return f"{record.topic}/{record.topic_id or ''}/{record.partition}/{record.offset}"
