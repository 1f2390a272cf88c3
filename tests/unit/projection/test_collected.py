"""What an effect may do while its statements are only recorded, and what makes it run in a transaction of its own."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from psycopg.adapt import Transformer
from psycopg.types.json import Jsonb

from hiveio import Unavailable
from hiveio.projection.collected import MAX_BYTES, MAX_STATEMENTS, Collected, Recorder
from hiveio.projection.pipeline import NULL, Query, Statement, calls_of, common_types, converted
from hiveio.projection.position import OffsetRange

INSERT = "INSERT INTO line VALUES (%s)"
SENT = "INSERT INTO line VALUES ($1)"


def at(offset: int) -> OffsetRange:
    return OffsetRange("t", 0, offset, offset, False, "id")


class Sent:
    def __init__(self) -> None:
        self.groups: list[tuple[int, int, list[Statement]]] = []
        self.error: Exception | None = None

    async def __call__(self, offsets: OffsetRange, statements: list[Statement]) -> None:
        if self.error is not None:
            raise self.error
        self.groups.append((offsets.first, offsets.last, statements))


async def test_effects_are_sent_together_and_in_order() -> None:
    sent = Sent()
    collected = Collected(sent)
    for offset in (4, 5, 8):
        assert collected.takes(at(offset))
        assert not await collected.take(at(offset), lambda db, offset=offset: db.execute(INSERT, [offset]))  # type: ignore[misc]
    assert not collected.takes(at(8)), "twice"
    assert sent.groups == []
    await collected.commit()
    await collected.commit()
    assert sent.groups == [(4, 8, [(SENT, (4,)), (SENT, (5,)), (SENT, (8,))])]


async def test_an_effect_that_fails_leaves_nothing() -> None:
    sent = Sent()
    collected = Collected(sent)

    async def broken(db: Any) -> None:
        await db.execute(INSERT, (1,))
        raise ValueError("no")

    assert await collected.take(at(0), broken) == "ValueError: no"
    assert not await collected.take(at(1), lambda db: db.execute(INSERT, (2,)))
    await collected.commit()
    assert sent.groups == [(1, 1, [(SENT, (2,))])]


async def test_nothing_is_taken_behind_events_that_are_lost() -> None:
    sent = Sent()
    collected = Collected(sent)
    await collected.take(at(0), lambda db: db.execute(INSERT, (1,)))
    sent.error = Unavailable(inside="away")
    for _ in range(2):
        with pytest.raises(Unavailable, match="away"):
            await collected.commit()
    sent.error = None
    with pytest.raises(Unavailable, match="the events before were not stored: away"):
        await collected.take(at(1), lambda db: db.execute(INSERT, (2,)))
    assert sent.groups == []


async def answer(db: Any) -> None:
    if (await db.execute(INSERT, (1,))).rowcount == 0:
        raise AssertionError("nobody has sent it yet")


async def swallows(db: Any) -> None:
    try:
        await answer(db)
    except Exception:
        return


async def rows(db: Any) -> None:
    async for _ in await db.execute("DELETE FROM line RETURNING amount"):
        pass


async def entered(db: Any) -> None:
    async with await db.execute(INSERT, (1,)):
        pass


async def fetched(db: Any) -> None:
    await (await db.execute(INSERT, (1,))).fetchone()


async def nested(db: Any) -> None:
    async with db.transaction():
        await db.execute(INSERT, (1,))


async def cursor(db: Any) -> None:
    async with db.cursor() as made:
        await made.execute(INSERT, (1,))


EFFECTS: list[Callable[[Any], Awaitable[Any]]] = [answer, swallows, rows, entered, fetched, nested, cursor]


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.__name__)
async def test_an_effect_that_uses_an_answer_is_not_taken(effect: Callable[[Any], Awaitable[Any]]) -> None:
    sent = Sent()
    collected = Collected(sent)
    assert await collected.take(at(0), effect)
    await collected.commit()
    assert sent.groups == []


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("SELECT 1", None),
        ("COMMIT", None),
        ("INSERT INTO line VALUES (1); COMMIT", None),
        ("WITH gone AS (DELETE FROM line RETURNING *) SELECT * FROM gone", None),
        ("SET search_path TO other", None),
        (b"DELETE FROM line", None),
        (INSERT, (Jsonb({}),)),
        (INSERT, ([1, 2],)),
        (INSERT, {"a": {}}),
        (INSERT, "text"),
        (INSERT, ()),
        (INSERT, {"amount": 1}),
        ("UPDATE line SET amount = %(amount)s", {"other": 1}),
        ("UPDATE line SET amount = %(amount)s WHERE id = %s", (1,)),
        ("UPDATE line SET amount = %b", (1,)),
        ("DELETE FROM line WHERE name LIKE 'a%'", (1,)),
    ],
)
async def test_what_may_mean_something_else_later_is_not_taken(query: Any, parameters: Any) -> None:
    assert await Collected(Sent()).take(at(0), lambda db: db.execute(query, parameters))


async def test_parameters_are_taken_as_they_are_now() -> None:
    recorder, values, named = Recorder(), [1], {"amount": 1}
    await recorder.execute(INSERT, values)
    await recorder.execute("UPDATE line SET amount = %(amount)s", named)
    await recorder.execute("  delete from line where made < %s ;", (datetime(2026, 1, 1, tzinfo=UTC),))
    values[0] = named["amount"] = 2
    assert recorder.statements[:2] == [(SENT, (1,)), ("UPDATE line SET amount = $1", (1,))]
    assert not recorder.refused


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("a %s %s 100%%", Query("a $1 $2 100%", (), 2)),
        ("%(b)s %(a)s %(b)s", Query("$1 $2 $1", ("b", "a"), 0)),
        ("nothing", Query("nothing", (), 0)),
        ("100%", None),
        ("% s", None),
        ("%t", None),
        ("%(a b)s", None),
        ("%s %(a)s", None),
    ],
)
def test_placeholders_are_those_of_the_server(query: str, found: Query | None) -> None:
    assert converted(query) == found


async def test_a_percent_sign_is_itself_where_there_are_no_parameters() -> None:
    recorder = Recorder()
    for query in ("DELETE FROM line WHERE name LIKE 'a%'", "DELETE FROM line WHERE name = '%s'"):
        await recorder.execute(query)
        assert recorder.statements.pop() == (query, ())


async def test_a_group_is_bounded_in_statements_and_in_bytes() -> None:
    async def many(db: Any) -> None:
        for amount in range(MAX_STATEMENTS):
            await db.execute(INSERT, (amount,))

    for effect in (many, lambda db: db.execute(INSERT, ("x" * MAX_BYTES,))):
        collected = Collected(Sent())
        assert not await collected.take(at(0), lambda db: db.execute(INSERT, (1,)))
        assert not collected.full
        assert not await collected.take(at(1), effect)
        assert collected.full
        await collected.commit()
        assert not collected.full


@pytest.mark.parametrize(
    ("forms", "common"),
    [
        ([(21, 0), (23, 0), (NULL, NULL)], (23, 0)),
        ([(23,), (20,), (21,)], (20,)),
        ([(NULL,), (NULL,)], (0,)),
        ([(0,), (21,)], None),  # a text, and a number
        ([(701,), (21,)], None),
    ],
)
def test_statements_with_one_text_have_one_form_where_they_can(
    forms: list[tuple[int, ...]], common: tuple[int, ...] | None
) -> None:
    assert common_types(forms) == common


def test_integers_are_as_wide_as_the_widest_and_others_stay() -> None:
    rows = [(1, "a"), (-70_000, None), (2**40, "b"), (None, "1")]
    calls = calls_of(Transformer(), [Statement("a $1 $2", row) for row in rows])
    assert {call.types for call in calls} == {(20, 0)}
    numbers = [bytes(value) for value in (call.values[0] for call in calls) if value is not None]
    assert [int.from_bytes(number, "big", signed=True) for number in numbers] == [1, -70_000, 2**40]
    assert {len(number) for number in numbers} == {8}
    mixed = calls_of(Transformer(), [Statement("a $1", (value,)) for value in (1, "1", None)])
    assert [call.types for call in mixed] == [(21,), (0,), (0,)]
