"""Writes the events that an actor returns to an event topic, and answers when Kafka has stored them."""

import asyncio
import itertools
import os
import secrets
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote

from msgspec import Raw

from hiveio import cloudevents
from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import ID_LIMIT, Envelope, Handler, Outcome, encode_message, untouched
from hiveio.errors import ConfigError, Invalid, Problem, Unknown, detached
from hiveio.headers import PassedHeaders, trace_context
from hiveio.kafka import Sender
from hiveio.kafka.delivery import Headers, Late
from hiveio.messages import Event
from hiveio.producer.keys import Claim, Keys
from hiveio.types import DeliveryFuture, RecordMetadata

CONTENT_TYPE = ("content-type", b"application/json")


def topic_of(contract: Contract, settings: Settings) -> str:
    """The topic that an actor's events are written to. Raises ConfigError if none is named."""
    if not contract.topic and not settings.written_topic:
        raise ConfigError(f"EVENT_STORE_TOPIC is not set, and {contract.name} names no topic of its own to write to")
    return contract.topic or settings.written_topic


class Submission(NamedTuple):
    """Events that were accepted. ``stored`` is done when Kafka has them, and empty if there was nothing to write."""

    outcome: Outcome
    stored: list[DeliveryFuture]
    id: str
    claim: Claim | None = None
    meta: Raw | None = None


class Publishing:
    """The handler of one actor: writes the events that ``handler`` returns, and answers after the delivery reports.

    One record an event, in ``contract.topic`` or ``settings.written_topic``: key = the event's field ``contract.key``,
    or else the id in the path (none without); value = the event's envelope with the request's meta, in which the
    payload of a message that the actor returns unchanged keeps its bytes; headers ``hive-actor``, ``hive-id``
    (``<id>.<index>``), ``content-type``, and, where the request carried them, ``traceparent``, ``tracestate``,
    ``hive-key`` (the Idempotency-Key) and those of EVENT_HEADERS, as they came; and ``hive-subject`` where requests are
    authenticated. With EVENT_FORMAT=cloudevents the value is the payload, and the attributes are headers too. The
    answer is the events, and ``Hive-Position`` is the position of the last one. Without events nothing is written.
    With PRODUCER_ACK=queued it does not wait, and has no position. With ``keys`` a request whose Idempotency-Key was
    used before gets the first answer again, and is written once.

    Raises Unavailable (503), TooLarge (413), Invalid (422) and Forbidden (403) if nothing was written; Unknown (504)
    with the records' ``id`` when Kafka did not confirm them all in time: each may be stored, now or later.
    """

    def __init__(
        self, handler: Handler, contract: Contract, sender: Sender, settings: Settings, keys: Keys | None = None
    ) -> None:
        self._handler, self.contract, self._sender, self._keys = handler, contract, sender, keys
        self._topic = topic_of(contract, settings)
        self._queued = settings.producer_ack == "queued"
        self._source = (
            f"{quote(settings.client_id)}/{quote(contract.name)}" if settings.event_format != "action" else ""
        )
        self._shared: Headers = [("hive-actor", contract.name.encode())]
        self._passed = PassedHeaders(settings.event_headers)
        self._next_id = identities()

    async def __call__(self, envelope: Envelope) -> Outcome:
        claim = None if envelope.key is None else await self.claim(envelope)
        return await self.settled(await self.submit(envelope, claim))

    async def claim(self, envelope: Envelope) -> Claim | Outcome | None:
        """The claim on its Idempotency-Key if keys are remembered, or the answer that the first request got. Raises
        Unavailable as long as the topic is not known."""
        if envelope.key is None or self._keys is None:
            return None
        id = self._sender.rules.topic_id(self._topic)
        return await self._keys.claim(self._topic, id, self.contract.name, envelope, self._next_id())

    async def submit(
        self, envelope: Envelope, claim: Claim | Outcome | None = None, *, gather: bool = False
    ) -> Submission:
        """Perform, and give the events to the sender: all or none; with ``gather`` they keep the order of the calls."""
        if claim is None:
            return await self._submit(envelope, self._next_id(), gather, None)
        if isinstance(claim, Outcome):
            return Submission(claim, [], "")
        assert self._keys is not None
        try:
            return await self._submit(envelope, claim.token, gather, claim)
        except asyncio.CancelledError:  # the deadline passed while the actor was performing
            self._keys.later(self._keys.release(claim))
            raise
        except Exception:
            await self._keys.release(claim)
            raise

    async def _submit(self, envelope: Envelope, id: str, gather: bool, claim: Claim | None) -> Submission:
        outcome = await self._handler(envelope)
        events = self.contract.checked_events(outcome.value)
        stored: list[DeliveryFuture] = []
        if len(events) == 1:
            value, key, headers = self._record(events[0], envelope, id + ".0", self._headers(envelope))
            stored = [self._sender.send(self._topic, value, key, headers, gather=gather)]
            if outcome.value is events[0] and not self._source:
                outcome.encoded = value  # the answer is the same envelope
        elif events:
            shared = self._headers(envelope)
            records = [self._record(event, envelope, f"{id}.{index}", shared) for index, event in enumerate(events)]
            stored = self._sender.send_all(self._topic, records, gather=gather)
        return Submission(outcome, stored, id, claim, envelope.meta)

    async def settled(self, submission: Submission) -> Outcome:
        """The answer, once it is known. Raises Unknown (504), or the problem of a refusal: then nothing is stored."""
        outcome, stored, id, claim, _ = submission
        if stored and not self._queued:
            try:
                metadata = await _confirmed(stored, keep=claim is not None)
            except Unknown as error:
                if self._keys is not None and claim is not None:
                    self._keys.later(self._settled_late(submission))
                raise Unknown(error.detail, id=id) from None
            except Problem:
                if self._keys is not None and claim is not None:
                    await self._keys.release(claim)
                raise
            outcome.headers = {**outcome.headers, **self._position(metadata)}
        if claim is not None:
            await self._keep(submission)
        return outcome

    def _position(self, metadata: RecordMetadata) -> dict[str, str]:
        return (
            {"Hive-Position": f"{self._topic}/{metadata.partition}/{metadata.offset}"} if metadata.offset >= 0 else {}
        )

    async def pace(self, submission: Submission) -> None:
        """Make a caller that sends many records and waits for none wait while the queue is crowded."""
        if self._queued and submission.stored and self._sender.crowded:
            await asyncio.wait(submission.stored)

    async def _settled_late(self, submission: Submission) -> None:
        """Keep the answer once Kafka has confirmed all records, so that a repeat gets it; release the key if Kafka has
        refused all of them.
        """
        try:
            metadata = _combined(await _outcomes(submission.stored, late=True))
        except Unknown:
            return
        except Problem:
            if self._keys is not None and submission.claim is not None:
                await self._keys.release(submission.claim)
            return
        submission.outcome.headers.update(self._position(metadata))
        await self._keep(submission)

    async def _keep(self, submission: Submission) -> None:
        if self._keys is not None and submission.claim is not None:
            await self._keys.keep(submission.claim, submission.outcome, submission.meta)

    def _record(self, event: Event, envelope: Envelope, id: str, shared: Headers) -> tuple[bytes, str | None, Headers]:
        """Value, key and headers."""
        key = self._key(event) if self.contract.key else envelope.id or None
        if self._source:
            value, attributes = cloudevents.to_record(event, envelope, id, key, self._source)
            return value, key, [*shared, ("hive-id", id), *attributes.items()]
        if event is envelope.message:
            value = untouched(type(event).__name__, envelope.body, envelope.meta)
        else:
            value = encode_message(event, envelope.meta)
        return value, key, [*shared, ("hive-id", id), CONTENT_TYPE]

    def _key(self, event: Event) -> str | None:
        value = getattr(event, self.contract.key)
        if value is None:
            return None
        key = str(value)
        if not 1 <= len(key.encode()) <= ID_LIMIT:
            raise Invalid(f"A key must have 1 to {ID_LIMIT} bytes.", pointer=f"/payload/{self.contract.key}")
        return key

    def _headers(self, envelope: Envelope) -> Headers:
        shared, given = [*self._shared], envelope.headers
        shared += (trace_context(given) or cloudevents.trace_context(envelope.meta)).items()
        if envelope.key is not None:
            shared.append(("hive-key", envelope.key))
        if envelope.identity is not None:
            shared.append(("hive-subject", envelope.identity.subject))
        if self._passed:
            shared += self._passed.of(given)
        return shared


async def _confirmed(stored: list[DeliveryFuture], *, keep: bool) -> RecordMetadata:
    """The position of the last of a request's events; with ``keep`` their outcome is known also later. Raises Unknown,
    also where the request's own deadline comes first: an event loop that had no CPU for long finds that both are over.
    """
    try:
        if keep:
            return _combined(await _outcomes([asyncio.shield(each) for each in stored]))
        return await stored[0] if len(stored) == 1 else _combined(await _outcomes(stored))
    except asyncio.CancelledError:
        if all(each.done() and not each.cancelled() for each in stored):
            return _combined(await _outcomes(stored))
        raise Unknown("Kafka did not confirm the record in time. It may be stored all the same.") from None


async def _outcomes(stored: list[DeliveryFuture], *, late: bool = False) -> list[RecordMetadata | Problem]:
    """The outcome of each; with ``late``, also of those that are not confirmed in time."""
    outcomes: list[RecordMetadata | Problem] = []
    for each in stored:
        try:
            try:
                outcomes.append(await each)
            except Late as error:
                if not late:
                    raise
                outcomes.append(await error.fate or Unknown("Kafka did not confirm the record."))
        except Problem as problem:
            outcomes.append(detached(problem))
    return outcomes


def _combined(outcomes: list[RecordMetadata | Problem]) -> RecordMetadata:
    """The position of the last of a request's events. Raises the refusal if all were refused, Unknown if some."""
    stored_at = [outcome for outcome in outcomes if not isinstance(outcome, Problem)]
    problems = [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    for problem in problems:
        if isinstance(problem, Unknown):
            raise problem
    if problems and stored_at:
        raise Unknown(
            f"{problems[0].detail} Of its {len(outcomes)} events {len(stored_at)} are stored, and the others are not."
        )
    if problems:
        raise problems[0]
    return stored_at[-1]


def identities() -> Callable[[], str]:
    """Ids that are unique over all processes, for less than a uuid: a random prefix of the process and a counter."""
    counter = itertools.count(1)
    prefix, process = "", 0

    def identity() -> str:
        nonlocal prefix, process
        if process != os.getpid():  # workers are forked: they would share a prefix drawn before
            prefix, process = secrets.token_hex(8), os.getpid()
        return f"{prefix}-{next(counter)}"

    return identity
