"""CloudEvents 1.0: read from HTTP, written to Kafka.

Binary mode has the attributes in headers (``ce-id`` over HTTP, ``ce_id`` on Kafka) and the data as the body; structured
mode has all in one JSON object. On the way through an actor the attributes are the message's meta, the data its
payload, and the last part of ``type`` (``com.example.Deposit``) the name of the message.
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
REQUIRED = ("specversion", "id", "source", "type")
_NAME = re.compile(r"[a-z0-9]{1,64}")
_members = msgspec.json.Decoder(dict[str, Raw]).decode
_one_value = msgspec.json.Decoder(Raw).decode


def from_structured(body: bytes, headers: Mapping[bytes, bytes], names: Collection[str]) -> bytes:
    """The envelope of an event in structured mode. Raises Malformed (400), Invalid (422)."""
    try:
        members = _members(body)
        data: bytes | None = bytes(members.pop("data")) if "data" in members else None
        if (encoded := members.pop("data_base64", None)) is not None:
            data = base64.b64decode(msgspec.json.decode(encoded, type=str), validate=True)
            _one_value(data)
        attributes = {name: with_integers(msgspec.json.decode(value)) for name, value in members.items()}
    except msgspec.ValidationError:
        raise Invalid("a CloudEvent is a JSON object, its data_base64 a text") from None
    except binascii.Error:
        raise Invalid("data_base64 is not base64", pointer="/data_base64") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"the CloudEvent is not JSON: {error}") from None
    return _action(attributes, data, names)


def from_binary(body: bytes, headers: Mapping[bytes, bytes], names: Collection[str]) -> bytes:
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
        raise Malformed(f"the data is not JSON: {error}") from None
    return _action(attributes, body or None, names)


def _action(attributes: dict[str, Any], data: bytes | None, names: Collection[str]) -> bytes:
    for name in REQUIRED:
        if not isinstance(value := attributes.get(name), str) or not value:
            raise Invalid(f"a CloudEvent has the attribute {name}, a text", pointer=f"/{name}")
    if attributes["specversion"] != "1.0":
        raise Invalid(f"specversion is {attributes['specversion']!r}; 1.0 is taken", pointer="/specversion")
    for name, value in attributes.items():
        if not _NAME.fullmatch(name) or not isinstance(value, str | int | bool):
            raise Invalid(f"{name!r} is no attribute: a name of a-z 0-9, and a text, a whole number, true or false")
    kind = attributes["type"] if attributes["type"] in names else attributes["type"].rpartition(".")[2]
    payload = b"" if data is None else b'"payload":%b,' % data
    return b'{"type":%b,%b"meta":%b}' % (encode_json(kind), payload, encode_json(attributes))


def to_record(event: Struct, envelope: Envelope, id: str, key: str | None, source: str) -> tuple[bytes, dict[str, str]]:
    """Value and headers of an event in the Kafka binding, binary mode.

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


def trace_context(meta: Raw | None) -> dict[str, str]:
    """The trace in which a CloudEvent was made, by its extension for distributed tracing; empty where there is none."""
    if not meta or b'"traceparent"' not in (text := bytes(meta)) or b'"specversion"' not in text:
        return {}
    found = msgspec.json.decode(text)
    names = ("traceparent", "tracestate")
    return well_formed(Headers({name: found[name] for name in names if isinstance(found.get(name), str)}))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else encode_json(value).decode()
