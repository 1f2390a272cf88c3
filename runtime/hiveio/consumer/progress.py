"""What was seen of a partition: events of a publisher by their positions, events of a producer by their keys."""

from collections.abc import Iterable

from hiveio.consumer.reading import is_position, parse_position
from hiveio.errors import Corrupt, Invalid


class EventsMissing(Corrupt):
    """Between the last position seen and the next one are others."""


class Progress:
    """The consumer's rule for an event topic that a publisher writes (docs/transactions.md, Publishing).

    Each event carries its ``hive-position`` in the transaction log and, as ``hive-previous``, the one before it.
    Publishers repeat and overlap, and never leave a gap: what is above the last seen is new, all else is a repeat.
    """

    __slots__ = ("last",)

    def __init__(self, last: bytes | None = None) -> None:
        """Raises Invalid when ``last`` is no position."""
        if last is not None:
            parse_position(last)
        self.last = last

    def take(self, position: bytes, previous: bytes | None) -> bool:
        """Whether the event is new.

        Raises Invalid for what is no position, or one of another log: this concerns the record alone. Raises
        EventsMissing when there are others between the last seen and this one.
        """
        last = self.last
        if last is None or previous == last:  # it follows, and there is nothing to compare
            if not is_position(position):
                parse_position(position)
        else:
            at, seen = parse_position(position), parse_position(last)
            if at[0] != seen[0]:
                raise Invalid(f"the position {_text(position)} is of another log than {_text(last)}, the last one seen")
            if at <= seen:
                return False
            raise EventsMissing(
                f"events are missing: position {_text(position)} comes after {_text(previous)}, "
                f"and the last one seen is {_text(last)}"
            )
        self.last = position
        return True

    def observe(self, position: bytes, previous: bytes | None) -> None:
        """Observe an event that is not to be handled: whatever is wrong with it, it stops nothing."""
        try:
            self.take(position, previous)
        except Invalid:
            pass
        except EventsMissing:
            self.last = position


class RecentKeys:
    """The last ``size`` events that a producer wrote under an Idempotency-Key (its header ``hive-key``).

    A client that sends again, because no answer came, may have its events written twice: with the same aggregate,
    the same caller and key, and the same index in the request, with which ``hive-id`` ends.
    """

    __slots__ = ("_seen", "_size")

    def __init__(self, size: int) -> None:
        self._seen: dict[tuple[bytes | None, bytes | None, bytes | None, bytes, bytes], None] = {}
        self._size = size

    def take(self, id: bytes | None, key: bytes, headers: Iterable[tuple[str, bytes | None]]) -> bool:
        """Whether the event is new."""
        found = dict(headers)
        if not found.get("hive-id"):
            return True  # another program's header
        index = (found.get("hive-id") or b"").rpartition(b".")[2]
        event = (id, found.get("hive-actor"), found.get("hive-subject"), key, index)
        if event in self._seen:
            return False
        self._seen[event] = None
        if len(self._seen) > self._size:
            del self._seen[next(iter(self._seen))]
        return True


def _text(position: bytes | None) -> str:
    return "nothing" if position is None else position[:64].decode("utf-8", "backslashreplace")
