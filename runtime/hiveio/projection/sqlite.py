"""A projection in SQLite."""

import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from hiveio.actor import Actor
from hiveio.envelope import Context
from hiveio.errors import backend_away
from hiveio.projection.position import ADD_TOPIC_ID, BEHIND, TABLES, OffsetRange, check_owner

# Of the file and not of what is done with it: it is full, locked, read-only, damaged, or cannot be reached. The next
# event would find the same, so no event is to blame. https://www.sqlite.org/rescode.html
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
LOCKED_S = 0.05  # another process writes: longer waits are the consumer's, which does not hold up queries


class SqliteProjection(Actor):
    """An actor that keeps its projection in a SQLite file, with the position of what is in it.

    ::

        class Totals(SqliteProjection):
            database = "/data/totals.sqlite"
            tables = "CREATE TABLE IF NOT EXISTS total (account TEXT PRIMARY KEY, amount INTEGER)"

            def perform(self, event: Deposited, context: Context) -> None:
                self.once(context, lambda db: db.execute(…))

    - ``database`` is a path; in memory (the default) the projection is built from the first event at each start.
    - ``once`` gives each event its effect exactly once, over crashes, rebalances and letters that are tried again.
    - A file that is full, locked or read-only is waited for: that is no dead letter.
    - ``connection`` is for queries. A file belongs to one process that writes, so there is one worker.
    """

    single_process = True
    database: ClassVar[str] = ":memory:"
    tables: ClassVar[str] = ""  # statements that make them where they are not there

    def __init__(self) -> None:
        self.file = self.database

    def start(self) -> None:
        """Raises Unavailable, and ConfigError for a file that is another actor's."""
        with self._waiting():
            self.connection = sqlite3.connect(self.file, isolation_level=None, timeout=LOCKED_S)
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
        """The next offset to consume, and the topic's id; an empty store begins at the first event.

        Whatever the group has committed: Kafka's own offset is committed after the effect, and a crash between would
        repeat it.
        """
        query = "SELECT next, topic_id FROM hive_position WHERE topic = ? AND partition = ?"
        with self._waiting():
            return self.connection.execute(query, (topic, partition)).fetchone() or (0, "")

    def once(self, context: Context | Sequence[Context], effect: Callable[[sqlite3.Connection], Any]) -> bool:
        """Run the effect of an event, or of a list of them, and store the position, in one transaction.

        False, and no effect, when it is in the database already. Raises what ``effect`` raises, and then nothing is
        stored; Unavailable when the file is full, locked, read-only or away.
        """
        offsets = OffsetRange.of(context)
        with self._transaction() as db:
            if not self._advance(db, offsets):
                return False
            effect(db)
            return True

    def _advance(self, db: sqlite3.Connection, offsets: OffsetRange) -> bool:
        if offsets.redriven:
            return db.execute("INSERT OR IGNORE INTO hive_redriven VALUES (?, ?, ?)", offsets.redriven_row).rowcount > 0
        if offsets.is_stored(*self.position(offsets.topic, offsets.partition)):
            return False
        row = (offsets.topic, offsets.partition, offsets.last + 1, offsets.topic_id)
        db.execute("INSERT OR REPLACE INTO hive_position (topic, partition, next, topic_id) VALUES (?, ?, ?, ?)", row)
        return True

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._waiting():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite has rolled back by itself where the disk is full
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Raises Unavailable for what the file is to blame for."""
        try:
            yield
        except sqlite3.Error as error:
            if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF not in _AWAY:
                raise
            raise backend_away(f"SQLite: {self.file}: {error}") from error

    # -- hiveio replay

    def reset(self) -> None:
        """Empty it, positions too."""
        with self._transaction() as db:
            for name in self._names(db, "main"):
                if name != "hive_owner":
                    db.execute(f'DELETE FROM "{name}"')

    def begin_at(self, topic: str, partition: int, offset: int) -> None:
        """Begin a store that is empty at this event."""
        query = "INSERT OR REPLACE INTO hive_position (topic, partition, next) VALUES (?, ?, ?)"
        self.connection.execute(query, (topic, partition, offset))

    def begin_shadow(self) -> None:
        """To be called before ``start``: build beside the database that is in use. Raises ValueError in memory."""
        if self.file == ":memory:":
            raise ValueError(f"{type(self).__name__} is in memory: it is built anew at every start")
        self.start()  # there may be no file yet
        self.stop()
        self.file = f"{self.database}.shadow"
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(self.file + suffix):
                os.remove(self.file + suffix)

    def end_shadow(self, *, swap: bool) -> bool:
        """Put what was built in the place of what is in use, in one transaction; False if it is behind that still."""
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
                    # Made as they are here: a projection is often built anew because its tables have changed.
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
