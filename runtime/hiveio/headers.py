"""What the headers of a request mean."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hiveio.errors import Refused, UnsupportedMediaType

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
_QUOTED = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_VERSION = re.compile(rb'(?:W/)?"(\d{1,18})"|(\d{1,18})')
_MEDIA_TYPE = re.compile(rb"application/(?:[\w.!#$&^-]+\+)?json", re.IGNORECASE)
_ONCE = {b"content-length", b"content-type", b"idempotency-key", b"if-match"}
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_CHARSET = re.compile(rb";\s*charset\s*=\s*\"?(?!utf-?8|us-ascii)", re.IGNORECASE)


class HeaderView(Mapping[str, str]):
    """A request's headers by their lower-case names, decoded only when somebody looks; ``pairs`` as they came."""

    __slots__ = ("_raw", "pairs")

    def __init__(self, raw: dict[bytes, bytes], pairs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._raw = raw
        self.pairs = pairs or raw.items()

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "HeaderView":
        """Headers given as texts, as they would look if a client had sent them."""
        return cls(dict(encoded(headers)))

    def __getitem__(self, name: str) -> str:
        return self._raw[name.lower().encode("latin-1")].decode("latin-1")

    def get(self, name: str, default: Any = None) -> Any:
        # Mapping's own raises and catches for a name that is not there: four times as long.
        value = self._raw.get(name.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._raw)

    def __len__(self) -> int:
        return len(self._raw)


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


def expected_version(raw: bytes) -> int:
    """An If-Match that names one version. Raises Refused."""
    match = _VERSION.fullmatch(raw.strip())
    if not match:
        raise Refused('If-Match names one version, as in If-Match: "5"')
    return int(match[1] or match[2])


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


def traceparent(headers: Mapping[str, str]) -> str:
    """The trace context that came with a message, as W3C writes it; "" where there is none, or none that is well."""
    value = headers.get("traceparent", "")
    return value if value and _TRACEPARENT.fullmatch(value) else ""


def sane_request_id(value: bytes | None) -> str | None:
    """The client's X-Request-Id where it may stand in a log line and a header."""
    return value.decode() if value and _REQUEST_ID.fullmatch(value) else None
