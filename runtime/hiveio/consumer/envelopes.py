"""The envelopes that handlers get of the records of one partition."""

from typing import Any

import msgspec

from hiveio.consumer.dead_letters.format import PREFIX as DEAD_LETTER_PREFIX
from hiveio.consumer.dead_letters.format import TOPIC_ID, key_of, origin_of, time_of
from hiveio.consumer.dead_letters.format import headers_of as dead_letter_headers
from hiveio.consumer.reading import event_of, parse_position, read, version_of
from hiveio.consumer.routing import Target
from hiveio.envelope import Codec, Context, Envelope
from hiveio.headers import Headers
from hiveio.kafka import Message, Start
from hiveio.kafka.headers import Pairs
from hiveio.kafka.headers import headers_of as all_headers


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """A record to be handled, which is no repeat. Where it cannot be read, ``event`` is the Problem.

    ``keyed`` and ``versioned``: it may have a header hive-key, or hive-version; others need not be looked for.
    """

    message: Message
    offset: int
    event: Any
    meta: Any
    headers: Pairs | None
    position: bytes | None
    keyed: bool
    versioned: bool


class Envelopes:
    """Makes the envelopes of the records of one partition, and of its dead letters."""

    def __init__(self, start: Start, codec: Codec) -> None:
        self._topic, self._partition, self._topic_id = start.topic, start.partition, start.topic_id
        self._codec = codec

    def decode_again(self, record: NewRecord) -> tuple[Any, Any]:
        """Event and meta of a record, decoded once more: an actor may have changed the ones before."""
        return event_of(read(record.headers or [], record.message.value(), self._codec))

    def make(self, record: NewRecord, event: Any, meta: Any, target: Target) -> Envelope:
        message = record.message
        key: Any = message.key()
        # The same as ``id_of``, without the cost of another call for each record.
        id = key.decode("utf-8", "surrogateescape") if key else ""
        if not target.with_record:
            return Envelope(message=event, id=id, meta=meta)
        found, position = Headers.wrapping(record.headers or ()), record.position
        idempotency_key = found.get("hive-key") if record.keyed else None
        context = Context(
            id=id or None,
            topic=self._topic,
            topic_id=self._topic_id or None,
            key=key,
            idempotency_key=idempotency_key,
            partition=self._partition,
            offset=record.offset,
            position=parse_position(position) if position is not None else None,
            version=version_of(found) if record.versioned else None,
            time=message.timestamp()[1] / 1000,
            headers=found,
            meta=msgspec.json.decode(meta) if meta else None,
        )
        return Envelope(message=event, id=id, meta=meta, key=idempotency_key, headers=found, record=context)

    def again(self, record: NewRecord, target: Target) -> Envelope:
        """The envelope for another attempt: the attempt before may have changed the event that it was given."""
        envelope = self.make(record, *self.decode_again(record), target)
        return as_batch(envelope) if target.batch else envelope

    def of_dead_letter(self, dead_letter: Message, original: Message) -> Envelope:
        """The envelope of the record of a dead letter, which ``original`` holds.

        Raises the Problem for which it cannot be read.
        """
        found = dead_letter_headers(dead_letter)
        origin = origin_of(found)
        assert origin is not None
        headers = [pair for pair in all_headers(original) if not pair[0].startswith(DEAD_LETTER_PREFIX)]
        event, meta = event_of(read(headers, original.value(), self._codec))
        key = key_of(original)
        id, wrapped = id_of(key), Headers.wrapping(headers)
        positions, idempotency_key = wrapped.get_all("hive-position"), wrapped.get("hive-key")
        context = Context(
            id=id or None,
            topic=self._topic,
            topic_id=found.get(TOPIC_ID, b"").decode("utf-8", "replace") or None,
            key=key,
            idempotency_key=idempotency_key,
            partition=self._partition,
            offset=origin[2],
            position=parse_position(positions[-1]) if positions else None,
            version=version_of(wrapped),
            time=time_of(found) / 1000,
            headers=wrapped,
            meta=msgspec.json.decode(meta) if meta else None,
            redriven=True,
        )
        return Envelope(message=event, id=id, meta=meta, key=idempotency_key, headers=wrapped, record=context)


def as_batch(envelope: Envelope) -> Envelope:
    """One event as a batch."""
    return Envelope(message=[envelope.message], id=envelope.id, record=[envelope.record] if envelope.record else None)


def id_of(key: str | bytes | None) -> str:
    """A key as text. No two keys have the same text: see ``Context.id``."""
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key or ""
