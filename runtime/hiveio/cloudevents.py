"""CloudEvents 1.0: over HTTP, and in records in Kafka's binding.

In binary mode the attributes are in headers (``ce-id`` over HTTP, ``ce_id`` in Kafka) and the data is the body or the
value; in structured mode one JSON object has both. Inside the service an event is a message like others: its attributes
are the message's meta, its data the payload, and its type, or the last part of it (``com.example.Deposit``), the name
of the message. In a record the client's own meta may be in the header ``hive-meta``.
"""

import base64
import binascii
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct

from hiveio.envelope import Envelope, encode_json, untouched_payload, with_integers
from hiveio.errors import Invalid, Malformed
from hiveio.headers import Headers
from hiveio.headers import trace_context as well_formed

JSON = "application/json"
STRUCTURED, BATCH = b"application/cloudevents+json", b"application/cloudevents-batch+json"
MARK = "ce_specversion"  # a header that each event in binary mode has in Kafka
REQUIRED = ("specversion", "id", "source", "type")
_NAME = re.compile(r"[a-z0-9]+")
_MAX_NAME = 64  # characters of an attribute's name, over HTTP
_members = msgspec.json.Decoder(dict[str, Raw]).decode
_one_value = msgspec.json.Decoder(Raw).decode
_batch = msgspec.json.Decoder(list[Raw]).decode


# -- over HTTP


def from_structured_request(body: bytes, headers: Mapping[bytes, bytes], names: Collection[str]) -> bytes:
    """The envelope of an event in structured mode. Raises Malformed (400), Invalid (422)."""
    try:
        members = _members(body)
        data: bytes | None = bytes(members.pop("data")) if "data" in members else None
        if (encoded := members.pop("data_base64", None)) is not None:
            data = base64.b64decode(msgspec.json.decode(encoded, type=str), validate=True)
            _one_value(data)
        attributes = {name: with_integers(msgspec.json.decode(value)) for name, value in members.items()}
    except msgspec.ValidationError:
        raise Invalid("A CloudEvent must be a JSON object, and its data_base64 must be a text.") from None
    except binascii.Error:
        raise Invalid("The data_base64 of the CloudEvent is not base64.", pointer="/data_base64") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"The CloudEvent is not JSON: {error}.") from None
    return _from_request(attributes, data, names)


def from_binary_request(body: bytes, headers: Mapping[bytes, bytes], names: Collection[str]) -> bytes:
    """The envelope of an event in binary mode. Raises Malformed (400), Invalid (422)."""
    attributes: dict[str, Any] = {
        name[3:].decode("latin-1"): unquote(value.decode("latin-1"))
        for name, value in headers.items()
        if name.startswith(b"ce-")
    }
    if b"content-type" in headers:
        attributes["datacontenttype"] = headers[b"content-type"].decode("latin-1")
    try:
        if body:
            _one_value(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"The data of the CloudEvent is not JSON: {error}.") from None
    return _from_request(attributes, body or None, names)


def _from_request(attributes: dict[str, Any], data: bytes | None, names: Collection[str]) -> bytes:
    for name in REQUIRED:
        if not isinstance(value := attributes.get(name), str) or not value:
            raise Invalid(f"The CloudEvent lacks the attribute {name}, a text that is not empty.", pointer=f"/{name}")
    if attributes["specversion"] != "1.0":
        text = f"The CloudEvent has specversion {attributes['specversion']!r}; only 1.0 is supported."
        raise Invalid(text, pointer="/specversion")
    _check_attributes(attributes, _MAX_NAME)
    return _envelope(attributes, data, names)


# -- in records


def media_type(content_type: bytes) -> bytes:
    """Without parameters."""
    return content_type.partition(b";")[0].strip().lower()


def is_structured(content_type: bytes) -> bool:
    return media_type(content_type).startswith(b"application/cloudevents")


def from_structured_record(content_type: bytes, value: bytes, names: Collection[str]) -> bytes:
    """The envelope of an event in structured mode, or in a batch of one. Raises Problem, and msgspec's errors."""
    kind = media_type(content_type)
    if kind not in (STRUCTURED, BATCH):
        text = f"The content type is {kind.decode('ascii', 'replace')}; CloudEvents are read as {STRUCTURED.decode()}."
        raise Invalid(text)
    if kind == BATCH:
        events = _batch(value)
        if len(events) != 1:
            raise Invalid(
                f"The batch has {len(events)} CloudEvents; a record may have only one, because it has one offset."
            )
        value = bytes(events[0])
    members = _members(value)
    data = members.pop("data", None)
    if (encoded := members.pop("data_base64", None)) is not None:
        if data is not None:
            raise Invalid("The CloudEvent has both data and data_base64; it may have only one of them.")
        data = Raw(base64.b64decode(msgspec.json.decode(encoded, type=str), validate=True))
    attributes = {name: msgspec.json.decode(text) for name, text in members.items()}
    return _from_record(
        {name: text for name, text in attributes.items() if text is not None},
        b"" if data is None or bytes(data) == b"null" else bytes(data),
        names,
    )


def from_binary_record(headers: Headers, value: bytes | None, names: Collection[str]) -> bytes:
    """The envelope of an event in binary mode. Raises Problem, and ValueError for what is not UTF-8."""
    attributes: dict[str, Any] = {
        name.removeprefix("ce_"): text.decode()
        for name, text in headers.pairs
        if name.startswith("ce_") and text is not None
    }
    if content_type := headers.get("content-type"):
        attributes["datacontenttype"] = content_type
    meta = headers.get_all("hive-meta")
    return _from_record(attributes, value or b"", names, meta[-1] if meta else None)


def _from_record(attributes: dict[str, Any], data: bytes, names: Collection[str], meta: bytes | None = None) -> bytes:
    kind, version = attributes.get("type"), attributes.get("specversion")
    if not isinstance(kind, str) or not kind:
        raise Invalid("The CloudEvent lacks the attribute type, a text that is not empty.")
    if not isinstance(version, str) or not version.startswith("1."):
        raise Invalid(f"The CloudEvent has specversion {version!r}; only 1.0 is supported.")
    _check_attributes(attributes)
    for part, text in (("data", data), ("header hive-meta", meta)):  # both stand in the envelope as they are
        try:
            if text:
                _one_value(text)
        except msgspec.DecodeError as error:
            raise Malformed(f"The {part} is not JSON: {error}.") from None
    return _envelope(attributes, data, names, meta)


def to_record(event: Struct, envelope: Envelope, id: str, key: str | None, source: str) -> tuple[bytes, dict[str, str]]:
    """Value and headers of an event in binary mode.

    An event that is the message itself keeps its attributes. Any other is a new event, with ``id``, ``source`` and the
    name of its type; subject and extensions (traceparent, partitionkey and the like) go on from the message.
    """
    meta: dict[str, Any] = msgspec.json.decode(envelope.meta) if envelope.meta else {}
    attributes = {"specversion": "1.0", "id": id, "source": source, "type": type(event).__name__}
    headers = {} if not meta or "specversion" in meta else {"hive-meta": bytes(envelope.meta or b"").decode()}
    passed = event is envelope.message
    if "specversion" in meta:
        own = {*REQUIRED, "time", "dataschema", "datacontenttype"}
        attributes |= {name: _text(value) for name, value in meta.items() if passed or name not in own}
    attributes.setdefault("time", datetime.now(UTC).isoformat(timespec="milliseconds"))
    if key:
        attributes.setdefault("subject", key)
    headers["content-type"] = attributes.pop("datacontenttype", JSON)
    value = untouched_payload(envelope.body) if passed else encode_json(event)
    return value, headers | {f"ce_{name}": text for name, text in attributes.items()}


# -- both


def trace_context(meta: Raw | None) -> dict[str, str]:
    """The trace in which a CloudEvent was made, by its extension for distributed tracing; empty where there is none."""
    if not meta or b'"traceparent"' not in (text := bytes(meta)) or b'"specversion"' not in text:
        return {}
    found = msgspec.json.decode(text)
    names = ("traceparent", "tracestate")
    return well_formed(Headers({name: found[name] for name in names if isinstance(found.get(name), str)}))


def _check_attributes(attributes: dict[str, Any], max_name: int | None = None) -> None:
    for name, value in attributes.items():
        well_named = _NAME.fullmatch(name) and (max_name is None or len(name) <= max_name)
        if not well_named or not isinstance(value, str | int | bool):
            raise Invalid(
                f"{name!r} is not an attribute of a CloudEvent: its name must consist of a-z and 0-9, and its "
                "value must be a text, a whole number, true or false."
            )


def _envelope(
    attributes: dict[str, Any], data: bytes | None, names: Collection[str], meta: bytes | None = None
) -> bytes:
    kind = attributes["type"] if attributes["type"] in names else attributes["type"].rpartition(".")[2]
    payload = b'"payload":%b,' % data if data else b""
    return b'{"type":%b,%b"meta":%b}' % (encode_json(kind), payload, meta or encode_json(attributes))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else encode_json(value).decode()
