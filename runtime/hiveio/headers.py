"""The headers of a request or of a record, as they came."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from hiveio.errors import HeadersTooLarge

PASSED_LIMIT = 4_096  # bytes of the headers that go on to records, with their names: each event of a request has them

# Version ff, a trace and a span of zeros are invalid: https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(rb"[\x20-\x7e\t]{1,512}")  # so many bytes have to be passed on; what is longer may be dropped


Value = str | bytes | None


class Headers(Mapping[str, str]):
    """Headers as they came: in their order, repeated ones too, values as bytes.

    As a mapping it gives text: ``headers["name"]`` and ``get`` give the last value of a name, read as UTF-8 or else as
    Latin-1. ``get_all`` gives the bytes of every value of a name, and ``pairs`` all there is. A null value, which Kafka
    allows, is in ``pairs`` only.
    """

    __slots__ = ("_pairs",)
    _pairs: Sequence[tuple[str, bytes | None]]

    def __init__(self, pairs: Mapping[str, Value] | Iterable[tuple[str, Value]] = ()) -> None:
        given = pairs.items() if isinstance(pairs, Mapping) else pairs
        self._pairs = [(name, value.encode() if isinstance(value, str) else value) for name, value in given]

    @classmethod
    def wrapping(cls, pairs: Sequence[tuple[str, bytes | None]]) -> Self:
        """Headers of pairs that have the right form and do not change any more. Nothing is copied."""
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
    """The headers of a request, by their names in any case. They are decoded when they are read.

    The text of a repeated header is its values with a comma between them (RFC 9110 section 5.3), or a semicolon where
    they are cookies, which clients of HTTP/2 send one by one (RFC 9113 section 8.2.3).
    """

    __slots__ = ("_all", "_raw")

    def __init__(self, raw: dict[bytes, bytes], every: Sequence[tuple[bytes, bytes]]) -> None:
        """``every`` are the headers of ASGI, whose names are in lower case, and ``raw`` is a dict of them."""
        self._raw, self._all = raw, every

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "HeaderView":
        """Headers given as texts, in the form of headers that a client sent."""
        pairs = encoded(headers)
        return cls(dict(pairs), pairs)

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[str, bytes]]) -> "HeaderView":
        """The headers whose ``pairs`` these are."""
        every = [(name.encode("latin-1"), value) for name, value in pairs]
        return cls(dict(every), every)

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
    """The headers as ASGI takes them. Raises ValueError for a line break in a value."""
    pairs = []
    for name, value in headers.items():
        if "\n" in value or "\r" in value:
            raise ValueError(f"the header {name} has a line break")
        pairs.append((name.lower().encode("latin-1"), value.encode("latin-1")))
    return pairs


class PassedHeaders:
    """The headers of a request that go on to the records of its events: those of EVENT_HEADERS."""

    def __init__(self, names: Iterable[str]) -> None:
        """Names, or beginnings of names that end with ``*``."""
        listed = list(names)
        self._names = {name for name in listed if not name.endswith("*")}
        self._prefixes = tuple(name[:-1] for name in listed if name.endswith("*"))

    def __bool__(self) -> bool:
        return bool(self._names or self._prefixes)

    def of(self, headers: Headers) -> list[tuple[str, bytes]]:
        """Their names and the bytes that came, of each value of a repeated one. Raises HeadersTooLarge."""
        passed = [
            (name, value)
            for name, value in headers.pairs
            if value is not None and (name in self._names or name.startswith(self._prefixes))
        ]
        if (size := sum(len(name) + len(value) for name, value in passed)) > PASSED_LIMIT:
            raise HeadersTooLarge(
                f"The headers that go on to the events ({', '.join(sorted({name for name, _ in passed}))}) have {size} "
                f"bytes; the limit is {PASSED_LIMIT} bytes."
            )
        return passed


def trace_context(headers: Headers) -> dict[str, str]:
    """``traceparent`` and ``tracestate`` of a message, as W3C writes them; empty where it carries no valid context.

    If there are several ``traceparent``, none counts, because nobody can tell which is right. Several ``tracestate``
    are one list.
    """
    if not (parents := headers.get_all("traceparent")):
        return {}
    if len(parents) != 1 or not _TRACEPARENT.fullmatch(parents[0]):
        return {}
    context = {"traceparent": parents[0].decode()}
    state = b",".join(headers.get_all("tracestate"))
    if _TRACESTATE.fullmatch(state):
        context["tracestate"] = state.decode()
    return context
