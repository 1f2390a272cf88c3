"""A projection in SQLite."""

import asyncio
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from hiveio.actor import Actor
from hiveio.envelope import Context
from hiveio.errors import Unavailable, backend_away
from hiveio.group_commit import Group, current
from hiveio.projection.position import ADD_TOPIC_ID, BEHIND, TABLES, OffsetRange, check_owner

# Errors of the file and not of a statement: it is full, locked, read-only, damaged, or cannot be reached. The next
# event would meet the same error, so no event is to blame. https://www.sqlite.org/rescode.html
_AWAY = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOTADB,
}
LOCKED_S = 0.05  # the wait while another process writes; the consumer waits longer, without holding up queries


class SqliteProjection(Actor):
    """An actor that keeps its projection in a SQLite file, together with its position.

    ::

        class Totals(SqliteProjection):
            database = "/data/totals.sqlite"
            tables = "CREATE TABLE IF NOT EXISTS total (account TEXT PRIMARY KEY, amount INTEGER)"

            def perform(self, event: Deposited, context: Context) -> None:
                self.once(context, lambda db: db.execute(…))

    - ``database`` is a path; in memory (the default) the projection is built from the first event at each start.
    - ``once`` gives each event its effect exactly once, over crashes, rebalances and dead letters that are tried again.
      The effects of events that arrive together are committed together.
    - Events wait for a file that is full, locked or read-only. They become no dead letters.
    - ``connection`` is for queries, which see what is committed. Take it anew in each of them.
    - Only one process may write a file, so there is one worker.
    """

    single_process = True
    database: ClassVar[str] = ":memory:"
    tables: ClassVar[str] = ""  # statements that create the tables where they are missing

    def __init__(self) -> None:
        self.file = self.database
        self._open: _Transaction | None = None

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection to the file. Others than the handler of events find no transaction open on it."""
        if self._open is not None and current.get() is not self._open.group:
            self._open.end()
        return self._connection

    def start(self) -> None:
        """Open the file. Raises Unavailable, and ConfigError for a file of another actor."""
        with self._waiting():
            self._connection = sqlite3.connect(self.file, isolation_level=None, timeout=LOCKED_S)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.executescript(TABLES + self.tables)
            if "topic_id" not in {name for _, name, *_ in self.connection.execute("PRAGMA table_info (hive_position)")}:
                self.connection.execute(ADD_TOPIC_ID)
        with self._transaction() as db:
            own = type(self).name or type(self).__name__
            db.execute("INSERT INTO hive_owner SELECT ? WHERE NOT EXISTS (SELECT * FROM hive_owner)", (own,))
            (owner,) = db.execute("SELECT name FROM hive_owner").fetchone()
        check_owner(self.file, owner, own)

    def stop(self) -> None:
        self.connection.close()

    def position(self, topic: str, partition: int) -> tuple[int, str]:
        """The next offset to consume, and the topic's id. An empty store begins at the first event.

        The offset that the group has committed does not matter: it is committed after the effect, and a crash between
        the two would repeat the effect.
        """
        with self._waiting():
            return self._position(topic, partition)

    def _position(self, topic: str, partition: int) -> tuple[int, str]:
        query = "SELECT next, topic_id FROM hive_position WHERE topic = ? AND partition = ?"
        return self.connection.execute(query, (topic, partition)).fetchone() or (0, "")

    def once(self, context: Context | Sequence[Context], effect: Callable[[sqlite3.Connection], Any]) -> bool:
        """Run the effect of an event, or of a list of them, and store the position, in one transaction.

        In a consumer that transaction may hold the effects of other events too. It is committed before any of them
        counts as handled, and before another task runs. Where that fails, they are handled again.

        Returns False without an effect when the database has it already. Raises what ``effect`` raises, and then
        nothing of it is stored. Raises Unavailable when the file is full, locked, read-only or unreachable.
        """
        offsets, group, opened = OffsetRange.of(context), current.get(), self._open
        if group is None:
            with self._transaction() as db:
                if not self._advance(db, offsets):
                    return False
                effect(db)
                return True
        try:
            if opened is None or opened.group is not group:
                opened = self._transaction_in(group)
            return opened.once(offsets, effect)
        except sqlite3.Error as error:
            self._check(error)
            raise

    def _transaction_in(self, group: Group) -> "_Transaction":
        """The transaction of the group. Raises Unavailable if it is lost: no event may be stored before those in it."""
        opened = self._open
        if opened is not None:
            if opened.group is group:
                return opened
            opened.end()
        ended = group.open.get(self)
        if isinstance(ended, _Transaction) and ended.error is not None:
            raise backend_away(f"SQLite: {self.file}: the events before were not stored: {ended.error}")
        opened = _Transaction(self, group)
        self._open = opened
        group.open[self] = opened
        return opened

    def _advance(self, db: sqlite3.Connection, offsets: OffsetRange) -> bool:
        if offsets.redriven:
            return db.execute("INSERT OR IGNORE INTO hive_redriven VALUES (?, ?, ?)", offsets.redriven_row).rowcount > 0
        if offsets.is_stored(*self._position(offsets.topic, offsets.partition)):
            return False
        row = (offsets.topic, offsets.partition, offsets.last + 1, offsets.topic_id)
        db.execute("INSERT OR REPLACE INTO hive_position (topic, partition, next, topic_id) VALUES (?, ?, ?, ?)", row)
        return True

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._waiting():
            db = self.connection
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite rolls back by itself where the disk is full
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Raises Unavailable for errors of the file."""
        try:
            yield
        except sqlite3.Error as error:
            self._check(error)
            raise

    def _check(self, error: sqlite3.Error) -> None:
        """Raises Unavailable for an error of the file."""
        if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _AWAY:
            raise backend_away(f"SQLite: {self.file}: {error}") from error

    # -- hiveio replay

    def reset(self) -> None:
        """Empty the projection, with its positions."""
        with self._transaction() as db:
            for name in self._names(db, "main"):
                if name != "hive_owner":
                    db.execute(f'DELETE FROM "{name}"')

    def begin_at(self, topic: str, partition: int, offset: int) -> None:
        """Let an empty store begin at this event."""
        query = "INSERT OR REPLACE INTO hive_position (topic, partition, next) VALUES (?, ?, ?)"
        self.connection.execute(query, (topic, partition, offset))

    def begin_shadow(self) -> None:
        """Build in a shadow of the database in use. It is called before ``start``. Raises ValueError in memory."""
        if self.file == ":memory:":
            raise ValueError(f"{type(self).__name__} is in memory: it is rebuilt at every start")
        self.start()  # there may be no file yet
        self.stop()
        self.file = f"{self.database}.shadow"
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(self.file + suffix):
                os.remove(self.file + suffix)

    def end_shadow(self, *, swap: bool) -> bool:
        """Replace the projection in use by the shadow, in one transaction. False if the shadow is still behind it."""
        if swap:
            self.connection.execute("ATTACH DATABASE ? AS live", (self.database,))
            try:
                with self._transaction() as db:
                    behind = db.execute(
                        "SELECT count(*) FROM live.hive_position AS a LEFT JOIN main.hive_position AS b "
                        f"USING (topic, partition) WHERE {BEHIND}"
                    ).fetchone()[0]
                    if behind:
                        return False
                    for name in self._names(db, "live"):
                        db.execute(f'DROP TABLE live."{name}"')
                    # The tables are created as they are here: a projection is often rebuilt because they have changed.
                    made = (
                        "SELECT type, name, sql FROM main.sqlite_master WHERE sql NOTNULL ORDER BY type = 'table' DESC"
                    )
                    for kind, name, statement in db.execute(made).fetchall():
                        db.execute(re.sub(r"^CREATE( UNIQUE)? (\w+) ", r"CREATE\1 \2 live.", statement, count=1))
                        if kind == "table":
                            db.execute(f'INSERT INTO live."{name}" SELECT * FROM main."{name}"')
            finally:
                self.connection.execute("DETACH DATABASE live")
        self.connection.close()
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(self.file + suffix):
                os.remove(self.file + suffix)
        return True

    @staticmethod
    def _names(db: sqlite3.Connection, schema: str) -> list[str]:
        query = f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        return [name for (name,) in db.execute(query)]


_ROW = "SELECT rowid FROM hive_position WHERE topic = ? AND partition = ?"
_NEXT = "UPDATE hive_position SET next = ? WHERE rowid = ? AND next = ?"


class _Transaction:
    """The transaction that is open on the connection of a projection, with the effects of a group of events.

    It ends before another task runs, which would see what is not committed. An actor may end it too, by a statement of
    its own: then ``error`` says that its events are to be handled again, and their positions say what is stored.
    """

    waits = False

    def __init__(self, store: SqliteProjection, group: Group) -> None:
        self._store, self._db, self.group = store, store._connection, group
        self._run = self._db.cursor().execute  # a cursor for each statement would cost as much as the statement
        self._last: OffsetRange | None = None  # the events that were stored last
        self._row: int | None = None  # of their partition's position, where it is known
        self.error: Exception | None = None
        self._run("BEGIN IMMEDIATE")
        self._ending = asyncio.get_running_loop().call_soon(self.end)

    def once(self, offsets: OffsetRange, effect: Callable[[sqlite3.Connection], Any]) -> bool:
        db, run = self._db, self._run
        if not db.in_transaction:
            self.end()
            raise Unavailable(inside=str(self.error))
        run("SAVEPOINT hive_event")
        try:
            new = self._advance(offsets)
            if new:
                effect(db)
            run("RELEASE hive_event")
        except BaseException:
            if db.in_transaction:  # SQLite rolls back by itself where the disk is full
                run("ROLLBACK TO hive_event")
                run("RELEASE hive_event")
            raise
        if new and not offsets.redriven:
            self._last = offsets
        return new

    def _advance(self, offsets: OffsetRange) -> bool:
        last, run = self._last, self._run
        if last is None or not offsets.follows(last):
            self._row = None
            return self._store._advance(self._db, offsets)
        if self._row is None:
            (self._row,) = run(_ROW, (offsets.topic, offsets.partition)).fetchone() or (0,)
        # With the effect, and not once for all: an effect may commit too, as sqlite3's executescript does.
        if not run(_NEXT, (offsets.last + 1, self._row, last.last + 1)).rowcount:  # an actor has rolled back
            raise Unavailable(inside=_ENDED)
        return True

    def end(self) -> None:
        """Commit, if that has not been done. It raises nothing: ``error`` says what went wrong."""
        if self._store._open is not self:
            return
        self._store._open = None
        self._ending.cancel()
        try:
            with self._store._waiting():
                if not self._db.in_transaction:
                    raise Unavailable(inside=_ENDED)
                try:
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
        except Exception as error:
            self.error = error

    async def commit(self) -> None:
        self.end()
        if self.error is not None:
            raise self.error

    async def rollback(self) -> None:
        if self._store._open is self:
            self._store._open = None
            self._ending.cancel()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


_ENDED = "the transaction of the events was ended by SQLite, or by a statement of the actor"
