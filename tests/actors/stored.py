"""What the benchmark of projections serves: each event is stored through ``once``, alone or in a list."""

import os
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from hiveio import Context, Event, Query
from hiveio.projection import SqliteProjection
from hiveio.projection.postgres import PostgresProjection

RECORDS = int(os.environ.get("BENCH_RECORDS", "0"))
WARM = RECORDS // 10  # records before the clock starts: the first ones find cold code
TABLES = "CREATE TABLE IF NOT EXISTS total (account TEXT PRIMARY KEY, amount BIGINT)"
SQLITE = "INSERT INTO total VALUES (?, ?) ON CONFLICT DO UPDATE SET amount = amount + excluded.amount"
POSTGRES = (
    "INSERT INTO total VALUES (%s, %s) ON CONFLICT (account) DO UPDATE SET amount = total.amount + excluded.amount"
)


class Visited(Event):
    page: str
    duration_ms: int


class Progress(Query):
    path = "/progress"


class Clocks:
    """The clocks are read at the first event that counts and at the last."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.clocks: list[tuple[float, float, int]] = []  # seconds, CPU seconds, the count

    def counted(self, events: int) -> None:
        before, self.count = self.count, self.count + events
        if before < WARM <= self.count or before < RECORDS <= self.count:
            self.clocks.append((time.monotonic(), time.process_time(), self.count))

    def progress(self) -> dict[str, object]:
        return {"count": self.count, "clocks": self.clocks}


def rows(events: Sequence[Visited], contexts: Sequence[Context]) -> list[tuple[str | None, int]]:
    return [(context.id, event.duration_ms) for event, context in zip(events, contexts, strict=True)]


class Sqlite(Clocks, SqliteProjection):
    path = "/sqlite"
    database = os.environ.get("BENCH_DATABASE", "")
    tables = TABLES

    def perform(self, message: Visited | Progress, context: Context) -> dict[str, object] | None:
        if isinstance(message, Progress):
            return self.progress()
        row = context.id, message.duration_ms
        self.once(context, lambda db: db.execute(SQLITE, row))
        self.counted(1)
        return None


class SqliteLists(Clocks, SqliteProjection):
    path = "/sqlite"
    database = os.environ.get("BENCH_DATABASE", "")
    tables = TABLES

    def perform(self, message: list[Visited] | Progress, context: Any) -> dict[str, object] | None:
        if isinstance(message, Progress):
            return self.progress()

        def effect(db: sqlite3.Connection) -> None:
            db.executemany(SQLITE, rows(message, context))

        self.once(context, effect)
        self.counted(len(message))
        return None


class Postgres(Clocks, PostgresProjection):
    path = "/postgres"
    schema = os.environ.get("BENCH_DATABASE", "")
    tables = TABLES

    async def perform(self, message: Visited | Progress, context: Context) -> dict[str, object] | None:
        if isinstance(message, Progress):
            return self.progress()
        row = context.id, message.duration_ms
        await self.once(context, lambda db: db.execute(POSTGRES, row))
        self.counted(1)
        return None


class PostgresLists(Clocks, PostgresProjection):
    path = "/postgres"
    schema = os.environ.get("BENCH_DATABASE", "")
    tables = TABLES

    async def perform(self, message: list[Visited] | Progress, context: Any) -> dict[str, object] | None:
        if isinstance(message, Progress):
            return self.progress()

        async def effect(db: Any) -> None:
            async with db.cursor() as cursor:
                await cursor.executemany(POSTGRES, rows(message, context))

        await self.once(context, effect)
        self.counted(len(message))
        return None
