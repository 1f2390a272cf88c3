"""Where a batch of events stands, and whether a store has it already."""

from collections.abc import Sequence
from typing import NamedTuple

from hiveio.envelope import Context
from hiveio.errors import Unavailable

# Both are part of the projection: what is copied, dropped or restored with it, tells what it holds.
TABLES = """
CREATE TABLE IF NOT EXISTS hive_position
    (topic TEXT, partition INTEGER, next BIGINT NOT NULL, PRIMARY KEY (topic, partition));
CREATE TABLE IF NOT EXISTS hive_redriven
    (topic TEXT, partition INTEGER, at BIGINT, PRIMARY KEY (topic, partition, at));
"""


class Place(NamedTuple):
    """``first`` and ``last`` are offsets. ``redriven``: a single event from the dead-letter topic."""

    topic: str
    partition: int
    first: int
    last: int
    redriven: bool

    @classmethod
    def of(cls, context: Context | Sequence[Context]) -> "Place":
        """Raises ValueError for what is not an event of a consumer: only those have a place."""
        contexts = [context] if isinstance(context, Context) else list(context)
        first, last = contexts[0], contexts[-1]
        if first.topic is None or first.partition is None or first.offset is None or last.offset is None:
            raise ValueError("once() takes the context of an event that a consumer read")
        return cls(first.topic, first.partition, first.offset, last.offset, first.redriven)

    def stored(self, next: int) -> bool:
        """Whether a store that continues at ``next`` holds them all. Raises Unavailable if it holds a part of them."""
        if next <= self.first:
            return False
        if next <= self.last:  # another instance is at work in the partition, and this one will be told soon
            raise Unavailable(f"{self.topic}/{self.partition} is at {next}, beyond {self.first}")
        return True
