"""Statements that are sent to PostgreSQL together, in one round trip.

A pipeline of psycopg takes a turn of the event loop for each statement, and the server parses and plans each. Here a
turn is enough for all, and statements with one text are parsed once. They have no name on the server, so nothing of
them stays in the session, and a pooler may be in between.
"""

import re
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection, OperationalError
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

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


async def send(db: AsyncConnection[Any], statements: Sequence[Statement]) -> None:
    """Execute the statements in order. Raises the first error, and then none of those behind it has been executed."""
    transformer, encoding, calls = Transformer(db), db.info.encoding, []
    for text, values in statements:
        dumped = transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
        calls.append(((text, transformer.types), dumped, transformer.formats))
    pgconn, prepared = db.pgconn, None
    async with db.lock:
        try:
            pgconn.enter_pipeline_mode()
            for form, dumped, formats in calls:
                if form != prepared:
                    pgconn.send_prepare(b"", form[0].encode(encoding), form[1])
                    prepared = form
                pgconn.send_query_prepared(b"", dumped, formats)
            pgconn.pipeline_sync()
            error = await db.wait(_until_sync(pgconn))
            pgconn.exit_pipeline_mode()
        except BaseException:
            pgconn.finish()  # in the middle of a pipeline it is of no use to anybody
            raise
    if error is not None:
        raise error_from_result(error, encoding)


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
