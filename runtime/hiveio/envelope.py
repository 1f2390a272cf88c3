"""The envelope: a Flux Standard Action on the wire, one decoded message inside.

On the wire the type is in the envelope, not in the payload (a domain may have a field named ``type``)::

    {"type": "Deposit", "payload": {"amount": 5}, "meta": {"source": "web"}}

One calling convention carries everything: ``Handler = Callable[[Envelope], Awaitable[Outcome]]``. An edge (HTTP, the
consumer loop) makes the envelope, a handler answers it.
"""

import re
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from types import UnionType
from typing import Any, Union

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from hiveio.conditions import Conditions
from hiveio.errors import Invalid, Malformed, TooLarge
from hiveio.headers import Headers
from hiveio.identity import Identity

META_LIMIT = 4096  # bytes
ID_LIMIT = 255  # bytes of UTF-8
NESTING = 100  # levels of a message from outside: it is read again inside a record, and by readers with other limits

OWN = ("hive-id", "hive-actor")  # headers of every message that hiveio writes to Kafka

Pairs = Sequence[tuple[str, bytes | None]]  # headers of a record

_encoder = msgspec.json.Encoder()
encode_json: Callable[[Any], bytes] = _encoder.encode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class Context(Struct, frozen=True, kw_only=True):
    """What surrounds a message. ``None`` where a role has no such thing.

    - ``id`` is the aggregate's: from the path of a request, or the key of a record as text. Bytes of a key that are not
      UTF-8 are in it as surrogate escapes (PEP 383), so that no two keys become one id; it cannot be stored as text.
    - ``key`` is the key of a record as Kafka has it.
    - ``headers`` gives text by name, and the bytes of every value by ``headers.get_all(name)``.
    - ``idempotency_key`` is that of the request, or of the request that a producer made the record of.
    - ``position`` is ``(partition, offset, index)`` in the transaction log, ``version`` the aggregate's version (stream
      processor: before the command; consumer: after the event), ``time`` seconds since the epoch.
    - ``identity`` is who sent the request, where AUTH_JWKS_URL is set. An event from a topic has none: who caused it
      stands in its header ``hive-subject``.
    - ``redriven`` marks an event from the dead-letter topic: later ones of its partition were handled before it.
    - ``topic_id`` is another one when a topic was recreated under its name: its offsets begin again.
    """

    id: str | None = None
    topic: str | None = None
    topic_id: str | None = None
    key: bytes | None = None
    idempotency_key: str | None = None
    partition: int | None = None
    offset: int | None = None
    position: tuple[int, int, int] | None = None
    version: int | None = None
    time: float | None = None
    headers: Headers = Headers()
    meta: Mapping[str, Any] | None = None
    identity: Identity | None = None
    redriven: bool = False


class Envelope(Struct, kw_only=True):
    """One message on its way to an actor.

    ``message`` is the decoded payload, ``id`` the aggregate's id (from the path, or the key of a record), ``meta`` the
    client's meta as it came, ``key`` the Idempotency-Key, ``conditions`` those of If-Match and If-None-Match,
    ``body`` what it was decoded from, ``identity`` who sent it.
    """

    message: Any
    id: str = ""
    meta: Raw | None = None
    key: str | None = None
    conditions: Conditions | None = None
    body: bytes = b""
    headers: Headers = Headers()
    identity: Identity | None = None
    record: Any = None  # the Context of what came from the log; of a batch, a list of them

    def context(self, version: int | None = None) -> Any:
        """The context that an actor sees. Made only for an actor that asks for it."""
        if self.record:
            return self.record
        meta = _decode_object(self.meta) if self.meta else None
        return Context(
            id=self.id or None,
            idempotency_key=self.key,
            version=version,
            headers=self.headers,
            meta=meta,
            identity=self.identity,
        )


class Outcome(Struct):
    """The answer to an envelope: one message, a list of them, any other value, or nothing."""

    value: Any = None
    status: int = 200
    headers: dict[str, str] = {}
    encoded: bytes | None = None  # the body, where it is encoded already


Handler = Callable[[Envelope], Awaitable[Outcome]]


class _Wire(Struct, omit_defaults=True):
    type: str
    payload: Any
    meta: Raw | None = None


class _Untyped(Struct, tag_field="type", tag=secrets.token_hex()):
    """Keeps every union a real one, so that a body without a type is an error and no default. Nobody has its type."""


def encode_message(message: Struct, meta: Raw | None = None) -> bytes:
    """The envelope of a message, as JSON."""
    return _encoder.encode(_Wire(type(message).__name__, message, meta))


class _Split(Struct):
    type: str | UnsetType = UNSET
    payload: Raw = Raw(b"{}")


_split = msgspec.json.Decoder(_Split).decode


def untouched(name: str, body: bytes, meta: Raw | None = None) -> bytes:
    """The envelope of a message, with its payload as it came in ``body``. Raises Malformed."""
    tail = b"}" if meta is None else b',"meta":%b}' % bytes(meta)
    return b'{"type":"%b","payload":%b%b' % (name.encode(), untouched_payload(body), tail)


def untouched_payload(body: bytes) -> bytes:
    """The payload as it came in ``body``, which a ``Codec`` has decoded.

    Members that the type does not know, and the form of numbers, are kept; the decoder has skipped them, so what it
    does not look at there is checked here. Raises Malformed for what is not UTF-8.
    """
    split = _split(body)
    payload = body if split.type is UNSET else bytes(split.payload)
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"The payload is not UTF-8: {error.reason} at byte {error.start}.") from None
    return payload


_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # +1 and -1 as signed bytes
_OTHERS = bytes(set(range(256)) - set(b"[{]}"))


def nesting(body: bytes) -> int:
    """Levels of arrays and objects in a JSON text. In linear time, and without a stack that could end."""
    # Without escapes, a quote opens or closes a string: every second part is outside.
    outside = b"".join(body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    return max(accumulate(memoryview(outside.translate(_STEPS, _OTHERS)).cast("b")), default=0)


def encode_value(value: Any, meta: Raw | None = None) -> bytes:
    """The body of an answer: a message in its envelope, several as an array of them, any other value as itself."""
    if isinstance(value, Struct):
        return encode_message(value, meta)
    if isinstance(value, list | tuple) and value and all(isinstance(item, Struct) for item in value):
        return b"[" + b",".join([encode_message(item, meta) for item in value]) + b"]"
    return _encoder.encode(value)


class Codec:
    """Decodes envelopes of a fixed set of message types, in one pass.

    ``strict`` is for what comes from outside: it refuses unknown members of the envelope, and more levels than NESTING,
    which could be read here and in no place after; the log's own are ignored. Where a strict one has just one type, a
    body without ``type`` is the payload: the path has said what it is.
    """

    def __init__(self, types: Iterable[type[Struct]], *, strict: bool = True) -> None:
        self.types = {kind.__name__: kind for kind in types}
        self._deep = 2 * NESTING if strict else sys.maxsize
        self._only = next(iter(self.types)) if strict and len(self.types) == 1 else None
        self.envelopes = {name: _envelope_type(name, kind, strict) for name, kind in self.types.items()}
        union: Any = Union[(_Untyped, *self.envelopes.values())]  # made at run time
        self._decode = msgspec.json.Decoder(union).decode
        self._payloads = {name: msgspec.json.Decoder(kind) for name, kind in self.types.items()}

    def decode(self, body: bytes, headers: Pairs | None = None) -> tuple[Any, Raw | None]:
        """The message and its meta.

        A missing payload is an empty one. With the ``headers`` of a record it is so only where one of ``OWN`` is among
        them: else it is Invalid, because the body may be anything that has a member ``type``.

        Raises Malformed (400) for what is not JSON, Invalid (422) with a JSON pointer for what does not fit.
        """
        try:
            # What is short, or opens little, cannot be deep.
            if len(body) > self._deep and body.count(b"{") + body.count(b"[") > NESTING and nesting(body) > NESTING:
                raise Malformed(f"The body is nested deeper than {NESTING} levels.")
            try:
                envelope = self._decode(body)
            except msgspec.ValidationError as error:
                if self._only is not None and str(error) == "Object missing required field `type`":
                    return self._payloads[self._only].decode(body), None
                if (again := _with_integers(body, error)) is not None:
                    return self.decode(again, headers)
                raise self._invalid(error) from None
            payload = envelope.payload
            if payload is UNSET:
                if headers is not None and not any(name in OWN for name, _ in headers):
                    raise Invalid("The message has no payload.", pointer="/payload")
                name = type(envelope).__struct_config__.tag
                try:
                    payload = self._payloads[name].decode(b"{}")
                except msgspec.ValidationError as error:
                    raise invalid(error, "/payload") from None
            meta = envelope.meta
            if meta is UNSET:
                return payload, None
            return payload, _checked(meta)
        except msgspec.ValidationError as error:
            if (again := _with_integers(body, error)) is not None:
                return self.decode(again, headers)
            raise invalid(error) from None
        except msgspec.DecodeError as error:
            raise Malformed(f"The body is not JSON: {error}.") from None
        except UnicodeDecodeError as error:
            raise Malformed(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from None
        except RecursionError:
            raise Malformed("The body is nested too deeply.") from None

    def _invalid(self, error: msgspec.ValidationError) -> Invalid:
        known = ", ".join(sorted(self.types))
        text = str(error)
        if text == "Object missing required field `type`":
            return Invalid(f"The message has no type. This path takes: {known}.", pointer="/type")
        if text.startswith("Invalid value") and text.endswith("at `$.type`"):
            value = re.match(r"Invalid value '(.*)'", text, re.DOTALL)
            kind = value[1] if value else ""
            unknown = Invalid(f"The type {kind!r} is unknown. This path takes: {known}.", pointer="/type")
            unknown.unknown_type = kind
            return unknown
        return invalid(error)


class _Old(Struct):
    type: str
    payload: dict[str, Any] = {}
    meta: Raw | UnsetType = UNSET


Upcast = Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]]


class UpcastingCodec(Codec):
    """Decodes what older versions wrote: ``upcast`` makes today's type and payload of each message first."""

    def __init__(self, types: Iterable[type[Struct]], upcast: Upcast) -> None:
        super().__init__(types, strict=False)
        self._upcast = upcast
        self._decode_old = msgspec.json.Decoder(_Old).decode

    def decode(self, body: bytes, headers: Pairs | None = None) -> tuple[Any, Raw | None]:
        """As Codec.decode; raises what ``upcast`` raises too."""
        try:
            old = self._decode_old(body)
            name, payload = self._upcast(old.type, old.payload)
            if name not in self._payloads:
                known = ", ".join(sorted(self.types))
                raise Invalid(f"The type {name!r} is unknown. Known types: {known}.", pointer="/type")
            decode = self._payloads[name].decode
            # By way of JSON: only its decoder takes the texts that keys are there for numbers, and any value as Raw.
            try:
                message = decode(encode_json(payload))
            except msgspec.ValidationError as error:
                if not _lacks_integer(error):
                    raise
                message = decode(encode_json(with_integers(payload)))
            return message, None if old.meta is UNSET else old.meta
        except msgspec.ValidationError as error:
            raise invalid(error, "/payload") from None


def _envelope_type(name: str, kind: type[Struct], strict: bool) -> type[Struct]:
    # A name of its own (DepositMessage): the description has the schema of the envelope and that of the payload.
    fields: list[tuple[str, type | UnionType, Any]] = [
        ("payload", kind | UnsetType, UNSET),
        ("meta", Raw | UnsetType, UNSET),
    ]
    return msgspec.defstruct(
        f"{name}Message", fields, tag_field="type", tag=name, forbid_unknown_fields=strict, module=kind.__module__
    )


def _checked(meta: Raw) -> Raw | None:
    """Raw passes what is not UTF-8 and never looks inside: look before it goes on to a topic."""
    if len(meta) > META_LIMIT:
        raise TooLarge(f"The meta has {len(meta)} bytes; the limit is {META_LIMIT} bytes.", pointer="/meta")
    if bytes(meta) == b"null":
        return None
    try:
        _decode_object(meta)
    except msgspec.ValidationError:
        raise Invalid("The meta is not a JSON object.", pointer="/meta") from None
    return meta.copy()  # a view of the whole body would keep it in memory


def with_integers(value: Any) -> Any:
    """A value of JSON in which 5.0 and 5e0 are 5: JSON Schema calls them integers, and msgspec reads them as floats."""
    if isinstance(value, dict):
        return {name: with_integers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _with_integers(body: bytes, error: msgspec.ValidationError) -> bytes | None:
    """The body with its whole floats as integers, where the error may be for one of them."""
    if not _lacks_integer(error):
        return None
    try:
        value = msgspec.json.decode(body)
        changed = encode_json(with_integers(value))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # beyond the place at which the decoder stopped
        return None
    return changed if changed != encode_json(value) else None


def _lacks_integer(error: msgspec.ValidationError) -> bool:
    text = str(error).partition(" - at ")[0]
    return "int" in text and text.endswith("got `float`")


def invalid(error: msgspec.ValidationError, base: str = "") -> Invalid:
    """msgspec's message as a 422 with the JSON pointer of the field."""
    text, _, where = str(error).rpartition(" - at `") if " - at `" in str(error) else (str(error), "", "")
    pointer = base + _pointer(where.rstrip("`"))
    if field := re.search(r"(?:missing required|unknown) field `(.+?)`", text):
        pointer += "/" + _escaped(field[1])
    return Invalid(text, pointer=pointer)


def _pointer(path: str) -> str:
    """``$.lines[0].sku`` → ``/lines/0/sku``; ``[...]`` (somewhere in a dict or set) ends the pointer."""
    parts = []
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", path.removeprefix("key in ")):
        if index == "...":
            break
        parts.append(_escaped(name or index))
    return "".join("/" + part for part in parts)


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
