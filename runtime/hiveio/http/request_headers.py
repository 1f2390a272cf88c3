"""What the headers of a request mean, and which of them are refused."""

import re
from collections.abc import Iterable, Mapping

from hiveio.errors import ExpectationFailed, Refused, UnsupportedMediaType

MAX_HOST_BYTES = 300  # bytes of a Host
MAX_KNOWN_HOSTS = 1_000  # values of Host that are known to be valid; others are checked each time

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
_QUOTED = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_MEDIA_TYPE = re.compile(rb"application/(?:[\w.!#$&^-]+\+)?json", re.IGNORECASE)
_ONCE = {b"authorization", b"content-length", b"content-type", b"idempotency-key"}
# RFC 3986, section 3.2.2, but for the comma: with one, two values may have become one.
_HOST = re.compile(rb"(\[[0-9A-Za-z:.%_~-]+\]|[A-Za-z0-9._~%!$&'()*+;=-]*)(:\d*)?")
_CHARSET = re.compile(rb";\s*charset\s*=\s*\"?(?!utf-?8|us-ascii)", re.IGNORECASE)


def idempotency_key(raw: bytes) -> str:
    """An Idempotency-Key, bare or as the quoted string of the IETF draft. Raises Refused."""
    key = raw.strip()
    if key.startswith(b'"'):
        quoted = _QUOTED.fullmatch(key)
        key = re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else b""
    if not _KEY.fullmatch(key):
        raise Refused("Idempotency-Key must be 1 to 255 printable ASCII characters.")
    return key.decode()


class HeadCheck:
    """What the head of every request must have, on every path."""

    def __init__(self) -> None:
        self.hosts: set[bytes | None] = set()  # valid values of Host; at most ``MAX_KNOWN_HOSTS`` are kept

    def check(self, headers: Mapping[bytes, bytes], every: Iterable[tuple[bytes, bytes]], older: bool) -> None:
        """``every`` are the headers, of which ``headers`` has the last of each name. ``older`` is HTTP/1.0, which has
        neither Host nor Expect. Raises Refused and ExpectationFailed."""
        host = headers.get(b"host")
        if host is None and not older:
            raise Refused("The request has no Host header.")
        if host is not None and not (len(host) <= MAX_HOST_BYTES and _HOST.fullmatch(host)):
            raise Refused("The Host header must be a name or an address, with a port or without.")
        if host is not None and len(self.hosts) < MAX_KNOWN_HOSTS:
            self.hosts.add(host)
        if b"expect" not in headers or older:
            return
        if any(value.lower() != b"100-continue" for name, value in every if name == b"expect"):
            raise ExpectationFailed("The Expect header may only be 100-continue.")


def check_repeated(pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises Refused (400) for a header that means one thing and occurs twice: a proxy may read the other."""
    seen = set()
    for name, _ in pairs:
        if name in seen and name in _ONCE:
            raise Refused(f"The header {name.decode()} occurs more than once. Send it once.")
        seen.add(name)


def check_media_type(value: bytes) -> None:
    """Raises UnsupportedMediaType (415) for what is not JSON in UTF-8."""
    if not _MEDIA_TYPE.fullmatch(value.partition(b";")[0].strip()) or _CHARSET.search(value):
        raise UnsupportedMediaType(
            "The media type of the body is not supported. Send JSON in UTF-8 as application/json."
        )


def check_content_coding(value: bytes) -> None:
    """Raises UnsupportedMediaType (415) for a body that is compressed: RFC 9110, 8.4 and 12.5.3."""
    if any(coding.strip().lower() not in (b"identity", b"") for coding in value.split(b",")):
        raise UnsupportedMediaType(
            "The body is compressed, which is not supported. Send it without Content-Encoding.",
            headers={"Accept-Encoding": "identity"},
        )


def sane_request_id(value: bytes | None) -> str | None:
    """The client's X-Request-Id where it may be in a log line and a header."""
    return value.decode() if value and _REQUEST_ID.fullmatch(value) else None
