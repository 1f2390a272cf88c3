"""Stores that cannot take an event: full, read-only, locked, away, behind a pooler. No event is to blame for it."""

import asyncio
import gc
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from hiveio import Context, Unavailable, outages
from hiveio.config import Settings
from hiveio.errors import AWAY, ConfigError
from hiveio.projection import SqliteProjection, pool
from hiveio.projection.postgres import PostgresProjection
from tests.conftest import required
from tests.integration.consumers import Deposited, Member, member, plain, settings
from tests.integration.test_dead_letters import QUICK
from tests.integration.test_projection import Postgresql, Sqlite, at
from tests.integration.topics import make_topic, write
from tests.process import Role, wait_until
from tests.services import Kafka, Pgbouncer, Postgres, free_port

__all__ = ["settings"]

Made = Callable[..., Settings]


async def waits(one: Member, kafka: Kafka, amount: int, reason: str) -> None:
    """Write an event, and see that it waits for its backend."""
    before = one.consumer.counts.retried
    write(kafka.brokers, one.topic, plain([amount]))
    await one.until(lambda: one.consumer.counts.retried > before + QUICK["consumer_attempts"])
    unready = await one.consumer.ready()
    assert unready is not None
    assert "waits for its backend" in unready
    assert reason in unready
    assert one.consumer.counts.dead == 0


async def goes_on(one: Member, amount: int) -> None:
    await one.until(lambda: one.consumer.counts.handled == amount)
    assert one.consumer.counts.dead == 0
    assert await one.actor.amounts() == [*range(1, amount + 1)]


async def test_a_file_that_is_locked_full_or_read_only(
    kafka: Kafka, topic: str, settings: Made, tmp_path: Path
) -> None:
    path = tmp_path / "projection.sqlite"
    kind = type("Projected", (Sqlite,), {"database": str(path)})
    make_topic(kafka.brokers, topic)
    async with member(settings(**QUICK), kind) as one:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await waits(one, kafka, 1, "database is locked")
        other.execute("ROLLBACK")
        other.close()
        await goes_on(one, 1)
        db: sqlite3.Connection = one.actor.connection
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute("CREATE TABLE filler (text TEXT)")
        db.execute(f"PRAGMA max_page_count = {pages + 4}")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            db.execute("INSERT INTO filler VALUES (?)", ("x" * 1_000_000,))
        db.execute("CREATE TRIGGER fill AFTER INSERT ON line BEGIN INSERT INTO filler VALUES (zeroblob(100000)); END")
        await waits(one, kafka, 2, "database or disk is full")
        db.execute("DROP TRIGGER fill")
        await goes_on(one, 2)
        db.execute("PRAGMA query_only = ON")
        await waits(one, kafka, 3, "attempt to write a readonly database")
        db.execute("PRAGMA query_only = OFF")
        await goes_on(one, 3)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def refused(store: Sqlite | Postgresql, reason: str) -> int:
    """The first event that is not taken: what is allocated already is written still."""
    for offset in range(1, 2_000):
        try:
            await store.take(at(offset), offset)
        except Unavailable as error:
            message = str(error)
            break
    else:
        raise AssertionError("there is room for all")
    assert reason in message
    return offset


async def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        store = type("Projected", (Sqlite,), {"database": str(disk / "projection.sqlite")})()
        store.start()
        assert await store.take(at(0), 1)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(2 << 20))
        offset = await refused(store, "projection.sqlite")
        filler.unlink()
        assert await store.take(at(offset), 2), "what failed left nothing behind"
        store.stop()


async def test_a_tablespace_that_is_full() -> None:
    with small_disk(Path(tempfile.gettempdir(), uuid.uuid4().hex)) as disk, required("postgres"), Postgres() as own:
        user = pwd.getpwnam("postgres")
        os.chown(disk, user.pw_uid, user.pw_gid)
        with psycopg.connect(own.url, autocommit=True) as admin:
            admin.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        text = "text TEXT DEFAULT repeat('x', 1900)"  # which is not compressed
        tables = f"CREATE TABLE IF NOT EXISTS line (amount BIGINT, {text}) TABLESPACE small"
        store = type("Projected", (Postgresql,), {"url": own.url, "schema": "s", "tables": tables})()
        await store.start()
        await refused(store, "No space left on device")
        await store.stop()


async def test_a_database_that_is_read_only_or_locked(
    kafka: Kafka, topic: str, settings: Made, postgres: Postgres
) -> None:
    name = f"d{uuid.uuid4().hex}"
    make_topic(kafka.brokers, topic)
    with psycopg.connect(postgres.url, autocommit=True) as admin:

        def change(text: str) -> None:
            """Of the database, in new sessions; the present ones end."""
            admin.execute(f"ALTER DATABASE {name} {text}")
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

        admin.execute(f"CREATE DATABASE {name}")
        url = postgres.url.removesuffix("postgres") + name
        kind = type("Projected", (Postgresql,), {"url": url, "schema": "s"})
        async with member(settings(**QUICK), kind) as one:
            await one.until(one.partitions)
            change("SET default_transaction_read_only = on")
            await waits(one, kafka, 1, "read-only transaction")
            change("RESET default_transaction_read_only")
            await goes_on(one, 1)
            change("SET lock_timeout = '50ms'")
            with psycopg.connect(url) as other:
                other.execute("LOCK TABLE s.hive_position")
                await waits(one, kafka, 2, "lock timeout")
            await goes_on(one, 2)
        change("RESET lock_timeout")  # then the time of the handler ends, in what is not its own
        async with member(settings(**QUICK, consumer_timeout_ms=300), kind) as one:
            await one.until(one.partitions)
            with psycopg.connect(url) as other:
                other.execute("LOCK TABLE s.hive_position")
                await waits(one, kafka, 3, "did not end within the time of the handler")
            await one.until(lambda: one.consumer.counts.handled == 1)
            assert await one.actor.amounts() == [1, 2, 3]
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_database_that_is_silent(
    kafka: Kafka, topic: str, settings: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It hangs, and no connection breaks. A statement that only takes long is another matter."""
    monkeypatch.setattr(pool, "WAIT_S", 2.0)
    monkeypatch.setattr(pool, "outage", outages.Outage("PostgreSQL"))  # other tests may have left one behind
    caplog.set_level("INFO")
    seconds = 0.0
    at_work = asyncio.Event()

    class Slow(Postgresql):
        async def perform(self, event: Deposited, context: Context) -> None:
            async def effect(db: psycopg.AsyncConnection[Any]) -> None:
                at_work.set()
                await db.execute("INSERT INTO line SELECT %s FROM pg_sleep(%s)", (event.amount, seconds))

            await self.once(context, effect)

    def connecting() -> list[Any]:
        """Attempts that were given up would have their sockets still."""
        ended = psycopg.pq.ConnStatus.OK, psycopg.pq.ConnStatus.BAD
        return [o for o in gc.get_objects() if isinstance(o, psycopg.pq.PGconn) and o.status not in ended]

    def logged() -> list[str]:
        ours = [each for each in caplog.records if each.name.startswith(("psycopg", "hiveio.backends"))]
        return [each.getMessage() for each in ours if each.levelname != "DEBUG"]

    make_topic(kafka.brokers, topic)
    made = settings(consumer_attempts=2, consumer_backoff_ms=1, consumer_timeout_ms=8_000)
    with required("postgres"), Postgres() as own:
        kind = type("Projected", (Slow,), {"url": own.url, "schema": "s"})
        async with member(made, kind) as one:
            await one.until(one.partitions)
            seconds = 3.0  # longer than it takes to doubt the server
            write(kafka.brokers, topic, plain([1]))
            await one.until(at_work.is_set)
            assert await asyncio.gather(*(one.actor.amounts() for _ in range(2))) == [[]] * 2, "other connections"
            await one.until(lambda: one.consumer.counts.handled == 1)
            assert (one.consumer.counts.retried, logged()) == (0, [])
            at_work.clear()
            write(kafka.brokers, topic, plain([2]))
            await one.until(at_work.is_set)
            own.pause()
            try:
                began = time.monotonic()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(one.actor.ready(), 0.5)
                assert time.monotonic() - began < 2.4, "readiness does not wait for it once more"
                await one.until(lambda: one.consumer.counts.retried)
                other = kind()
                asked = one.actor.at(topic, 0), one.actor.amounts(), one.actor.ready(), other.start()
                away = await asyncio.gather(*asked, return_exceptions=True)
                assert [type(each) for each in away] == [Unavailable] * 3 + [type(None)], "it starts without it"
                await one.until(lambda: one.consumer.counts.retried > 2)
                assert "waits for its backend: PostgreSQL: " in (await one.consumer.ready() or "")
                assert len(logged()) == 1
                assert logged()[0].startswith("PostgreSQL is away: it answers neither")
            finally:
                own.resume()
            seconds = 0.0
            await one.until(lambda: one.consumer.counts.handled == 2)
            assert one.consumer.counts.dead == 0
            assert await one.actor.amounts() == [1, 2]
            await one.until(lambda: not connecting())
            await other.stop()
    assert [text.split()[2] for text in logged()] == ["away:", "back,"]


async def test_a_user_who_may_make_nothing_needs_a_schema_with_its_tables_and_no_more(postgres: Postgres) -> None:
    """An IF NOT EXISTS needs the right to make what is there already."""
    name = f"u{uuid.uuid4().hex}"
    url = postgres.url.replace("hiveio@", f"{name}@")
    maker, user = (type("Projected", (Postgresql,), {"url": made, "schema": name})() for made in (postgres.url, url))
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN")
        admin.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        await user.start()  # it may make tables in its schema, and no schema in the database
        assert await user.take(at(0), 1)
        await user.stop()
        admin.execute(f"DROP SCHEMA {name} CASCADE")
        await maker.start()
        await maker.stop()
        admin.execute(f"GRANT USAGE ON SCHEMA {name} TO {name}")
        admin.execute(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {name} TO {name}")
        user = type("Projected", (Postgresql,), {"url": url, "schema": name, "tables": ""})()
        await user.start()
        assert await user.take(at(0), 1)
        assert await user.amounts() == [1]
        await user.stop()
        admin.execute(f"DROP OWNED BY {name} CASCADE")
        admin.execute(f"DROP ROLE {name}")


async def test_what_a_record_is_to_blame_for_is_no_backend_that_is_away(postgres: Postgres) -> None:
    """PostgreSQL calls it operational, too: a limit of the program, which the same event meets again."""
    schema, tables = f"s{uuid.uuid4().hex}", "CREATE TABLE IF NOT EXISTS name (text TEXT PRIMARY KEY)"
    store = type("Projected", (PostgresProjection,), {"url": postgres.url, "schema": schema, "tables": tables})()
    await store.start()
    text = os.urandom(10_000).hex()
    with pytest.raises(psycopg.OperationalError, match="index row") as raised:
        await store.once(at(0), lambda db: db.execute("INSERT INTO name VALUES (%s)", (text,)))
    assert (raised.value.sqlstate or "").startswith("54")
    await store.stop()


async def test_behind_a_pooler_in_transaction_mode(
    kafka: Kafka, topic: str, settings: Made, postgres: Postgres
) -> None:
    """Two projections share its two sessions, and find their own tables whichever they are given."""
    make_topic(kafka.brokers, topic)
    with required("postgres"), Pgbouncer(postgres) as pooler:
        names = [f"s{uuid.uuid4().hex}" for _ in range(2)]
        kinds = [type(f"In{n}", (Postgresql,), {"url": pooler.url, "schema": n}) for n in names]
        async with member(settings(**QUICK), *kinds) as one:
            write(kafka.brokers, topic, plain(range(40)))  # more than a driver prepares a statement after
            await one.until(lambda: one.consumer.counts.handled == 40)
            asked = [actor.amounts() for _ in range(20) for actor in one.actors]
            assert await asyncio.gather(*asked) == [[*range(40)]] * 40
        with psycopg.connect(postgres.url) as db:
            for name in names:
                found = db.execute(f"SELECT next FROM {name}.hive_position").fetchall()
                assert found == [(40,)]


async def test_a_store_is_one_actors(postgres: Postgres, tmp_path: Path) -> None:
    """Of two that share a position each would miss what the other has stored."""
    schema = f"s{uuid.uuid4().hex}"
    first, second = (type(n, (PostgresProjection,), {"url": postgres.url, "schema": schema})() for n in ("One", "Two"))
    await first.start()
    with pytest.raises(ConfigError, match=f'{schema} is the projection of the actor One, and Two .*`name = "One"`'):
        await second.start()
    await second.stop()
    renamed = type("Two", (PostgresProjection,), {"url": postgres.url, "schema": schema, "name": "One"})()
    await renamed.start()
    for each in (renamed, first):
        await each.stop()
    file = str(tmp_path / "one.sqlite")
    one, two = (type(name, (SqliteProjection,), {"database": file})() for name in ("One", "Two"))
    one.start()
    one.reset()
    with pytest.raises(ConfigError, match="is the projection of the actor One"):
        two.start()
    two.stop()
    one.stop()


PROJECTED = """
from hiveio import Context, Event, Query
from hiveio.projection.postgres import PostgresProjection

class Deposited(Event):
    amount: int

class Next(Query):
    pass

class Lines(PostgresProjection):
    path = "/lines"
    tables = "CREATE TABLE IF NOT EXISTS line (amount BIGINT)"

    async def perform(self, message: Deposited | Next, context: Context) -> int | None:
        if isinstance(message, Next):
            return (await self.position("t", 0))[0]
        await self.once(context, lambda db: db.execute("INSERT INTO line VALUES (%s)", (message.amount,)))
"""


def test_the_reason_of_a_failed_first_connection_is_told(kafka: Kafka, topic: str) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain(range(3)))
    port = free_port()
    environ = {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": topic,
        "EVENT_STORE_FROM_START": "true",
        "POSTGRES_URL": f"postgresql://hiveio@127.0.0.1:{port}/postgres",
    }
    with Role("consumer", environ, actor=PROJECTED, wait=False) as role:
        wait_until(
            lambda: any("Connection refused" in line["message"] for line in role.logs()), 20, "the log has the reason"
        )

        def named() -> bool:
            try:
                return "Connection refused" in httpx.get(role.url + "/readyz?verbose").text
            except httpx.TransportError:
                return False

        wait_until(named, 20, "readiness names the reason")
        refused = httpx.get(role.url + "/lines", timeout=30)
        assert refused.status_code == 503
        assert refused.json()["detail"] == AWAY, "a client does not learn where the database is"
        with required("postgres"), Postgres(port=port) as server:
            wait_until(lambda: httpx.get(role.url + "/readyz").status_code == 200, 60, "it is ready")

            def stored() -> bool:
                with psycopg.connect(server.url) as db:
                    return db.execute("SELECT count(*) FROM projection.line").fetchone() == (3,)

            wait_until(stored, 30, "all is stored")
