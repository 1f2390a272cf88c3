"""Statements that are sent to PostgreSQL together, in one round trip.

A pipeline of psycopg takes a turn of the event loop for each statement, and the server parses and plans each. Here a
turn is enough for all, and statements with one text are parsed once. They have no name on the server, so nothing of
them stays in the session, and a pooler may be in between.
"""

import re
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection, OperationalError, abc
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

UNKNOWN, NULL = 0, -1  # a type that the server finds out; a value that is none
WIDTHS = {21: 2, 23: 4, 20: 8}  # in bytes, of the types of integers: psycopg takes the narrowest for each value
_PLACEHOLDER = re.compile(r"%(?:\((\w+)\)s|s|%|)")


class Query(NamedTuple):
    """A query as the server takes it, with ``$1`` for the first value. Its values have names, or are so many."""

    text: str
    names: tuple[str, ...]
    unnamed: int


class Statement(NamedTuple):
    text: str
    values: tuple[Any, ...]


@lru_cache(maxsize=1_000)
def converted(query: str) -> Query | None:
    """A query with ``%s`` or ``%(name)s`` for its values, as psycopg takes it; None where it has anything else."""
    names: list[str] = []
    count = 0

    def number(found: re.Match[str]) -> str:
        nonlocal count
        text, name = found[0], found[1]
        if text == "%%":
            return "%"
        if text == "%s":
            count += 1
            return f"${count}"
        if name is None:
            raise ValueError(text)
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    try:
        text = _PLACEHOLDER.sub(number, query)
    except ValueError:
        return None
    return None if names and count else Query(text, tuple(names), count)


class Call(NamedTuple):
    """A statement as it is sent. ``types`` are those of its values, NULL where there is none."""

    text: str
    types: tuple[int, ...]
    values: Sequence[Any]
    formats: Sequence[Any] | None


async def send(db: AsyncConnection[Any], statements: Sequence[Statement]) -> None:
    """Execute the statements in order. Raises the first error, and then none of those behind it has been executed."""
    encoding, calls = db.info.encoding, calls_of(Transformer(db), statements)
    pgconn, prepared = db.pgconn, None
    async with db.lock:
        try:
            pgconn.enter_pipeline_mode()
            for text, types, values, formats in calls:
                if prepared != (text, types):
                    pgconn.send_prepare(b"", text.encode(encoding), types)
                    prepared = text, types
                pgconn.send_query_prepared(b"", values, formats)
            pgconn.pipeline_sync()
            error = await db.wait(_until_sync(pgconn))
            pgconn.exit_pipeline_mode()
        except BaseException:
            pgconn.finish()  # in the middle of a pipeline it is of no use to anybody
            raise
    if error is not None:
        raise error_from_result(error, encoding)


def calls_of(transformer: abc.Transformer, statements: Sequence[Statement]) -> list[Call]:
    """The statements with their values as the server reads them. Those with one text have one form where they can."""
    calls: list[Call] = []
    forms: dict[str, dict[tuple[int, ...], None]] = {}  # the types of each text
    for text, values in statements:
        dumped = transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
        types = transformer.types or ()
        if None in dumped:
            types = tuple([NULL if value is None else kind for kind, value in zip(types, dumped, strict=True)])
        forms.setdefault(text, {})[types] = None
        calls.append(Call(text, types, dumped, transformer.formats))
    for text, known in forms.items():
        if len(known) > 1 or any(NULL in types for types in known):
            common = common_types([*known])
            calls = [call if call.text != text else _as(call, common) for call in calls]
    return calls


def common_types(forms: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Types that the values of all these forms can have, or None. NULL has any, and an integer any that is wider."""
    common = []
    for column in zip(*forms, strict=True):
        types = {*column} - {NULL}
        if len(types) > 1:
            if not types <= WIDTHS.keys():
                return None
            types = {max(types, key=WIDTHS.__getitem__)}
        common.append(types.pop() if types else UNKNOWN)
    return tuple(common)


def _as(call: Call, types: tuple[int, ...] | None) -> Call:
    if types is None:
        return call._replace(types=tuple([UNKNOWN if kind == NULL else kind for kind in call.types]))
    values = [
        value
        if kind in (wanted, NULL)
        else int.from_bytes(value, "big", signed=True).to_bytes(WIDTHS[wanted], "big", signed=True)
        for value, kind, wanted in zip(call.values, call.types, types, strict=True)
    ]
    return call._replace(types=types, values=values)


def _until_sync(pgconn: PGconn) -> Generator[Wait, Ready | int, PGresult | None]:
    """Send what is buffered, and read all answers. Returns the first that is an error.

    Both at once: a server that waits until its answers are read would read nothing more.
    """
    error: PGresult | None = None
    unsent = True
    while True:
        ready = yield Wait.RW if unsent else Wait.R
        if ready & Ready.W:
            unsent = pgconn.flush() != 0
        if ready & Ready.R:
            pgconn.consume_input()
        answered = True
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:  # it ends the answer to a statement; two of them say that there is no more
                if not answered:
                    break
                answered = False
                continue
            answered = True
            if result.status == ExecStatus.PIPELINE_SYNC:
                return error
            if result.status == ExecStatus.FATAL_ERROR and error is None:
                error = result
        if pgconn.status == ConnStatus.BAD:
            if error is not None:  # the server's last words
                return error
            raise OperationalError("the connection is lost")
