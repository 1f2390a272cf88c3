"""The headers of a request or of a record, and what those of a request mean."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from hiveio.errors import ExpectationFailed, Refused, UnsupportedMediaType

MOST_HOST = 300  # bytes of a Host
MOST_HOSTS = 1_000  # values of Host that are known to be well; others are looked at each time

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
_QUOTED = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_MEDIA_TYPE = re.compile(rb"application/(?:[\w.!#$&^-]+\+)?json", re.IGNORECASE)
_ONCE = {b"content-length", b"content-type", b"idempotency-key"}
# RFC 3986, section 3.2.2, but for the comma: with one, two values may have become one.
_HOST = re.compile(rb"(\[[0-9A-Za-z:.%_~-]+\]|[A-Za-z0-9._~%!$&'()*+;=-]*)(:\d*)?")
# Version ff, a trace and a span of zeros are invalid: https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(rb"[\x20-\x7e\t]{1,512}")  # so many bytes have to be passed on; what is longer may be dropped
_CHARSET = re.compile(rb";\s*charset\s*=\s*\"?(?!utf-?8|us-ascii)", re.IGNORECASE)


Value = str | bytes | None


class Headers(Mapping[str, str]):
    """Headers as they came: in their order, repeated ones too, values as bytes.

    As a mapping it gives text: ``headers["name"]`` and ``get`` give the last value of a name, read as UTF-8 or else as
    Latin-1. ``get_all`` gives the bytes of every value of a name, and ``pairs`` all there is. A null value, which Kafka
    knows, stands in ``pairs`` only.
    """

    __slots__ = ("_pairs",)
    _pairs: Sequence[tuple[str, bytes | None]]

    def __init__(self, pairs: Mapping[str, Value] | Iterable[tuple[str, Value]] = ()) -> None:
        given = pairs.items() if isinstance(pairs, Mapping) else pairs
        self._pairs = [(name, value.encode() if isinstance(value, str) else value) for name, value in given]

    @classmethod
    def wrapping(cls, pairs: Sequence[tuple[str, bytes | None]]) -> Self:
        """Of what has the right form already, and is not changed any more: nothing is copied."""
        made = cls.__new__(cls)
        made._pairs = pairs
        return made

    @property
    def pairs(self) -> Sequence[tuple[str, bytes | None]]:
        return self._pairs

    def get_all(self, name: str) -> list[bytes]:
        return [value for known, value in self._pairs if known == name and value is not None]

    def get(self, name: str, default: Any = None) -> Any:
        for known, value in reversed(self._pairs):
            if known == name and value is not None:
                return _text(value)
        return default

    def __getitem__(self, name: str) -> str:
        found: str | None = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for name, value in self._pairs if value is not None))

    def __len__(self) -> int:
        return len({name for name, value in self._pairs if value is not None})

    def __repr__(self) -> str:
        return f"Headers({list(self.pairs)!r})"

    def replacing(self, changes: Mapping[str, str]) -> "Headers":
        """These, with other values of some names; an empty one removes the name."""
        kept = [pair for pair in self.pairs if pair[0] not in changes]
        return Headers.wrapping([*kept, *((name, value.encode()) for name, value in changes.items() if value)])


class HeaderView(Headers):
    """A request's headers by their names in any case, decoded only when somebody looks.

    The text of a repeated header is its values with a comma between them (RFC 9110 section 5.3), or a semicolon where
    they are cookies, which clients of HTTP/2 send one by one (RFC 9113 section 8.2.3).
    """

    __slots__ = ("_all", "_raw")

    def __init__(self, raw: dict[bytes, bytes], every: Sequence[tuple[bytes, bytes]]) -> None:
        """``every`` are the headers of ASGI, whose names are in lower case, and ``raw`` is a dict of them."""
        self._raw, self._all = raw, every

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "HeaderView":
        """Headers given as texts, as they would look if a client had sent them."""
        pairs = encoded(headers)
        return cls(dict(pairs), pairs)

    @property
    def pairs(self) -> Sequence[tuple[str, bytes | None]]:
        return [(name.decode("latin-1"), value) for name, value in self._all]

    def get_all(self, name: str) -> list[bytes]:
        raw = name.lower().encode("latin-1", "replace")
        return [value for known, value in self._all if known == raw] if raw in self._raw else []

    def get(self, name: str, default: Any = None) -> Any:
        raw = name.lower().encode("latin-1", "replace")
        value = self._raw.get(raw)
        if value is None:
            return default
        if len(self._raw) < len(self._all):
            between = b"; " if raw == b"cookie" else b", "
            value = between.join([value for known, value in self._all if known == raw])
        return _text(value)

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """As ASGI wants them. Raises ValueError for a line break in a value."""
    pairs = []
    for name, value in headers.items():
        if "\n" in value or "\r" in value:
            raise ValueError(f"the header {name} has a line break")
        pairs.append((name.lower().encode("latin-1"), value.encode("latin-1")))
    return pairs


def idempotency_key(raw: bytes) -> str:
    """An Idempotency-Key, bare or as the quoted string of the IETF draft. Raises Refused."""
    key = raw.strip()
    if key.startswith(b'"'):
        quoted = _QUOTED.fullmatch(key)
        key = re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else b""
    if not _KEY.fullmatch(key):
        raise Refused("Idempotency-Key has 1 to 255 printable ASCII characters")
    return key.decode()


class HeadCheck:
    """What the head of every request has to say, wherever it goes."""

    def __init__(self) -> None:
        self.hosts: set[bytes | None] = set()  # values of Host that were well; beyond ``MOST_HOSTS`` none is kept

    def check(self, headers: Mapping[bytes, bytes], every: Iterable[tuple[bytes, bytes]], older: bool) -> None:
        """``every`` are the headers, of which ``headers`` has the last of each name. ``older`` is HTTP/1.0, which has
        neither Host nor Expect. Raises Refused and ExpectationFailed."""
        host = headers.get(b"host")
        if host is None and not older:
            raise Refused("the request has no Host")
        if host is not None and not (len(host) <= MOST_HOST and _HOST.fullmatch(host)):
            raise Refused("the Host header must be a name or an address, with a port or without")
        if host is not None and len(self.hosts) < MOST_HOSTS:
            self.hosts.add(host)
        if b"expect" not in headers or older:
            return
        if any(value.lower() != b"100-continue" for name, value in every if name == b"expect"):
            raise ExpectationFailed("the Expect header may only be 100-continue")


def check_repeated(pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises Refused (400) for a header that means one thing and stands there twice: a proxy may read the other."""
    seen = set()
    for name, _ in pairs:
        if name in seen and name in _ONCE:
            raise Refused(f"the header {name.decode()} stands there twice")
        seen.add(name)


def check_media_type(value: bytes) -> None:
    """Raises UnsupportedMediaType (415) for what is not JSON in UTF-8."""
    if not _MEDIA_TYPE.fullmatch(value.partition(b";")[0].strip()) or _CHARSET.search(value):
        raise UnsupportedMediaType("the body is JSON in UTF-8: send it as application/json")


def check_content_coding(value: bytes) -> None:
    """Raises UnsupportedMediaType (415) for a body that is compressed: RFC 9110, 8.4 and 12.5.3."""
    if any(coding.strip().lower() not in (b"identity", b"") for coding in value.split(b",")):
        raise UnsupportedMediaType(
            "the body is compressed; send it as it is, without Content-Encoding",
            headers={"Accept-Encoding": "identity"},
        )


def trace_context(headers: Headers) -> dict[str, str]:
    """``traceparent`` and ``tracestate`` of a message, as W3C writes them; empty where it carries no valid context.

    Of several ``traceparent`` none counts, because nobody can tell which is right; several ``tracestate`` are one list.
    """
    parents = headers.get_all("traceparent")
    if len(parents) != 1 or not _TRACEPARENT.fullmatch(parents[0]):
        return {}
    context = {"traceparent": parents[0].decode()}
    state = b",".join(headers.get_all("tracestate"))
    if _TRACESTATE.fullmatch(state):
        context["tracestate"] = state.decode()
    return context


def sane_request_id(value: bytes | None) -> str | None:
    """The client's X-Request-Id where it may stand in a log line and a header."""
    return value.decode() if value and _REQUEST_ID.fullmatch(value) else None
