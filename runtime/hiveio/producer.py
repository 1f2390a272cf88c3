"""The producer role: what an actor gives becomes records of an event topic, answered when Kafka has stored them."""

import asyncio
import itertools
import os
import secrets
from collections.abc import Callable

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import Envelope, Handler, Outcome, encode_message
from hiveio.errors import Unknown
from hiveio.kafka.sender import Headers, Sender

CONTENT_TYPE = ("content-type", b"application/json")


def publishing(handler: Handler, contract: Contract, sender: Sender, settings: Settings) -> Handler:
    """Writes the events that ``handler`` gives to ``settings.written_topic`` and answers after the delivery reports.

    One record an event: key = the id in the path (none without), value = the event's envelope with the request's meta,
    headers ``hive-actor``, ``hive-id`` (``<id>.<index>``), ``content-type``, and ``traceparent`` and ``hive-key`` (the
    Idempotency-Key) where the request carried them. The answer is 200 with the events, and ``Hive-Position`` says where
    the last one stands. Without events nothing is written.

    Raises Unavailable (503) and TooLarge (413) when nothing was written; Unknown (504) with the records' ``id`` when
    Kafka did not confirm them all in time: each may be stored, now or later.
    """
    settings.need(written_topic="the producer writes its events to it")
    topic = settings.written_topic
    actor = ("hive-actor", contract.name.encode())
    next_id = identities()

    async def handle(envelope: Envelope) -> Outcome:
        outcome = await handler(envelope)
        events = contract.checked_events(outcome.value)
        if not events:
            return outcome
        id = next_id()
        shared: Headers = [actor, CONTENT_TYPE]
        if (trace := envelope.headers.get("traceparent")) is not None:
            shared.append(("traceparent", trace))
        if envelope.key is not None:
            shared.append(("hive-key", envelope.key))
        key = envelope.id or None
        try:
            if len(events) == 1:
                value = encode_message(events[0], envelope.meta)
                partition, offset = await sender.send(topic, value, key, [*shared, ("hive-id", id + ".0")])
                if outcome.value is events[0]:
                    outcome.encoded = value  # the answer is the same envelope
            else:
                records = [
                    (encode_message(event, envelope.meta), [*shared, ("hive-id", f"{id}.{index}")])
                    for index, event in enumerate(events)
                ]
                partition, offset = (await asyncio.gather(*sender.send_all(topic, records, key)))[-1]
        except Unknown as error:
            raise Unknown(f"{error.detail}; it may be stored all the same", id=id) from None
        outcome.headers = {**outcome.headers, "Hive-Position": f"{topic}/{partition}/{offset}"}
        return outcome

    return handle


def identities() -> Callable[[], str]:
    """Ids that are unique over all processes, for less than a uuid: a random prefix of the process and a counter."""
    counter = itertools.count(1)
    prefix, process = "", 0

    def identity() -> str:
        nonlocal prefix, process
        if process != os.getpid():  # workers are forked: a prefix drawn before would be theirs in common
            prefix, process = secrets.token_hex(8), os.getpid()
        return f"{prefix}-{next(counter)}"

    return identity
