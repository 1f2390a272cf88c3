"""The position that is stored with a projection: it says which events the store holds."""

from collections.abc import Sequence

from msgspec import Struct

from hiveio.envelope import Context
from hiveio.errors import ConfigError, Unavailable

# The tables are part of the projection: they are copied, dropped and restored with it, so they say what it holds.
TABLES = """
CREATE TABLE IF NOT EXISTS hive_position
    (topic TEXT, partition INTEGER, next BIGINT NOT NULL, topic_id TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (topic, partition));
CREATE TABLE IF NOT EXISTS hive_redriven
    (topic TEXT, partition INTEGER, at BIGINT, PRIMARY KEY (topic, partition, at));
CREATE TABLE IF NOT EXISTS hive_owner (name TEXT NOT NULL);
"""


# Of an older version's table.
ADD_TOPIC_ID = "ALTER TABLE hive_position ADD COLUMN topic_id TEXT NOT NULL DEFAULT ''"

# Whether the shadow b is behind the store a, in SQL. It need not have what a has of a topic that was recreated since.
BEHIND = "b.next IS NULL OR (b.next < a.next AND (a.topic_id = b.topic_id OR '' IN (a.topic_id, b.topic_id)))"


def check_owner(where: str, owner: str, name: str) -> None:
    """Raises ConfigError where a store is another actor's: two actors with one position would each miss events."""
    if owner != name:
        raise ConfigError(
            f"{where} is the projection of the actor {owner}, and {name} would share its position, so that each would "
            f"miss events: give {name} a store of its own. If it is the same actor under a new name, set "
            f'`name = "{owner}"` on it'
        )


class OffsetRange(Struct, frozen=True, gc=False):
    """Events that are handled together, from the offset ``first`` to ``last``, or a single one that is ``redriven``.

    ``topic_id`` distinguishes a topic from an earlier one of the same name; it is empty where it is not known.
    """

    topic: str
    partition: int
    first: int
    last: int
    redriven: bool
    topic_id: str

    @property
    def redriven_row(self) -> tuple[str, int, int]:
        """The row of a redriven event. Its offset counts only in its own topic."""
        return f"{self.topic}/{self.topic_id}" if self.topic_id else self.topic, self.partition, self.first

    @classmethod
    def of(cls, context: Context | Sequence[Context]) -> "OffsetRange":
        """Raises ValueError for what is not an event of a consumer: only such events have offsets."""
        first, last = (context, context) if isinstance(context, Context) else (context[0], context[-1])
        topic, partition, begin, end = first.topic, first.partition, first.offset, last.offset
        if topic is None or partition is None or begin is None or end is None:
            raise ValueError("once() takes the context of an event that a consumer has read")
        return cls(topic, partition, begin, end, first.redriven, first.topic_id or "")

    def up_to(self, last: int) -> "OffsetRange":
        """These and the events after them, to the offset ``last``."""
        return OffsetRange(self.topic, self.partition, self.first, last, self.redriven, self.topic_id)

    def follows(self, other: "OffsetRange") -> bool:
        """Whether these events come after the others in the same partition, so that its position is known."""
        return (
            other.last < self.first
            and self.partition == other.partition
            and self.topic == other.topic
            and self.topic_id == other.topic_id
            and not self.redriven
        )

    def is_stored(self, next: int, topic_id: str) -> bool:
        """Whether a store that goes on at ``next`` holds them all. Raises Unavailable if it holds a part of them."""
        if next <= self.first or (topic_id and self.topic_id and topic_id != self.topic_id):
            return False
        if next <= self.last:  # another instance owns the partition now, and this one is about to lose it
            raise Unavailable(
                f"another instance has stored {self.topic}/{self.partition} up to the offset {next - 1}, and this one "
                f"has handled the events from {self.first} to {self.last}: they are tried again"
            )
        return True
