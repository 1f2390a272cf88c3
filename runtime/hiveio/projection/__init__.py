"""Projections whose effects happen exactly once: the position is stored in the transaction of the effect.

``SqliteProjection`` is here; ``hiveio.projection.postgres`` has ``PostgresProjection`` and needs the extra
``hiveio[postgres]``. An actor derives from one of them, and writes the effect of an event through ``once``.
"""

from hiveio.projection.sqlite import SqliteProjection

__all__ = ["SqliteProjection"]
