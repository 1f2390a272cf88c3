"""CloudEvents 1.0 in Kafka's binding, as actions: the way back of the producer's EVENT_FORMAT=cloudevents.

In binary mode the attributes stand in headers ``ce_…`` and the data is the value; in structured mode the value is a
JSON object that has both. The type, or its last part (``com.example.Deposited``), is the name of the message, the data
its payload, and the attributes are its meta, unless the client's own is in the header ``hive-meta``.
"""

import base64
import re
from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Raw

from hiveio.envelope import encode_json
from hiveio.errors import Invalid, Malformed
from hiveio.headers import Headers

STRUCTURED, BATCH = b"application/cloudevents+json", b"application/cloudevents-batch+json"
MARK = "ce_specversion"  # a header that each event in binary mode has
_NAME = re.compile(r"[a-z0-9]+")
_one_value = msgspec.json.Decoder(Raw).decode
_members = msgspec.json.Decoder(dict[str, Raw]).decode
_batch = msgspec.json.Decoder(list[Raw]).decode


def media_type(content_type: bytes) -> bytes:
    """Without parameters."""
    return content_type.partition(b";")[0].strip().lower()


def is_structured(content_type: bytes) -> bool:
    return media_type(content_type).startswith(b"application/cloudevents")


def from_structured(content_type: bytes, value: bytes, names: Collection[str]) -> bytes:
    """The action of an event in structured mode, or in a batch of one. Raises Problem, and msgspec's errors."""
    kind = media_type(content_type)
    if kind not in (STRUCTURED, BATCH):
        raise Invalid(f"CloudEvents are read as {STRUCTURED.decode()}, and this is {kind.decode('ascii', 'replace')}")
    if kind == BATCH:
        events = _batch(value)
        if len(events) != 1:
            raise Invalid(f"the batch has {len(events)} CloudEvents: a record, which has one offset, is one event")
        value = bytes(events[0])
    members = _members(value)
    data = members.pop("data", None)
    if (encoded := members.pop("data_base64", None)) is not None:
        if data is not None:
            raise Invalid("a CloudEvent has data or data_base64, and not both")
        data = Raw(base64.b64decode(msgspec.json.decode(encoded, type=str), validate=True))
    attributes = {name: msgspec.json.decode(text) for name, text in members.items()}
    return _action(
        {name: text for name, text in attributes.items() if text is not None},
        b"" if data is None or bytes(data) == b"null" else bytes(data),
        names,
    )


def from_binary(headers: Headers, value: bytes | None, names: Collection[str]) -> bytes:
    """The action of an event in binary mode. Raises Problem, and ValueError for what is not UTF-8."""
    attributes: dict[str, Any] = {
        name.removeprefix("ce_"): text.decode()
        for name, text in headers.pairs
        if name.startswith("ce_") and text is not None
    }
    if content_type := headers.get("content-type"):
        attributes["datacontenttype"] = content_type
    meta = headers.get_all("hive-meta")
    return _action(attributes, value or b"", names, meta[-1] if meta else None)


def _action(attributes: dict[str, Any], data: bytes, names: Collection[str], meta: bytes | None = None) -> bytes:
    kind, version = attributes.get("type"), attributes.get("specversion")
    if not isinstance(kind, str) or not kind:
        raise Invalid("a CloudEvent has the attribute type, a text")
    if not isinstance(version, str) or not version.startswith("1."):
        raise Invalid(f"the CloudEvent has the specversion {version!r}; 1.0 is read")
    for name, text in attributes.items():
        if not _NAME.fullmatch(name) or not isinstance(text, str | int | bool):
            raise Invalid(f"{name!r} is no attribute: a name of a-z 0-9, and a text, a whole number, true or false")
    kind = kind if kind in names else kind.rpartition(".")[2]
    for part, text in (("data", data), ("header hive-meta", meta)):  # both stand in the action as they are
        try:
            if text:
                _one_value(text)
        except msgspec.DecodeError as error:
            raise Malformed(f"the {part} is not JSON: {error}") from None
    payload = b'"payload":%b,' % data if data else b""
    return b'{"type":%b,%b"meta":%b}' % (encode_json(kind), payload, meta or encode_json(attributes))
