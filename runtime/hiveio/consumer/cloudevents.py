"""CloudEvents 1.0 as Kafka's binding writes them in binary mode: attributes in headers ``ce_…``, the data as value."""

from collections.abc import Collection, Iterable

import msgspec
from msgspec import Raw

from hiveio.envelope import encode_json

_one_value = msgspec.json.Decoder(Raw).decode


def to_action(headers: Iterable[tuple[str, bytes | None]], data: bytes, names: Collection[str]) -> bytes:
    """The event in the envelope that actors' events come in, the way back of the producer's EVENT_FORMAT=cloudevents.

    The type, or its last part (``com.example.Deposited``), is the name of the message; the attributes are its meta,
    unless the client's own is in ``hive-meta``. Data that is not JSON comes back as it is, and cannot be decoded.
    """
    found = {name: text.decode("utf-8", "replace") for name, text in headers if text is not None}
    attributes = {name.removeprefix("ce_"): text for name, text in found.items() if name.startswith("ce_")}
    try:
        _one_value(data)
    except (msgspec.DecodeError, RecursionError):
        return data
    kind = attributes.get("type", "")
    kind = kind if kind in names else kind.rpartition(".")[2]
    meta = found["hive-meta"].encode() if "hive-meta" in found else encode_json(attributes)
    return b'{"type":%b,"payload":%b,"meta":%b}' % (encode_json(kind), data, meta)
