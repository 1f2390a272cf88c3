"""What an instance holds of its log in memory at most, in bytes. The scopes share it, so their number does not count.

What a snapshot costs as an object is not counted: two to four times its bytes.
"""

from typing import NamedTuple

ENTRY_BYTES = 500  # that an aggregate costs beside its snapshot
VIEW_BYTES = 64_000_000  # of aggregates that are known without asking the cache,
UNAPPLIED_BYTES = 8_000_000  # and of those that the cache does not have yet: most of one call to it
LIVE_BYTES = 32_000_000  # of records handed on to publishers and not sent; beyond it they read the log
IDS = 500_000  # command ids that are known without asking the cache
LEAST_BYTES, LEAST_IDS = 1_000_000, 4_000  # of each scope, however many there are
IN_WORK_BYTES = 128_000_000  # of aggregates that commands work on, and of what they make of them
BODIES_BYTES = 64_000_000  # of commands that are not answered
SNAPSHOTS_BYTES = 32_000_000  # that one transaction may make of its aggregates


class Bounds(NamedTuple):
    """Of one scope."""

    view: int = VIEW_BYTES
    unapplied: int = UNAPPLIED_BYTES
    live: int = LIVE_BYTES
    ids: int = IDS

    @classmethod
    def of(cls, scopes: int) -> "Bounds":
        """Of one of so many scopes."""
        view, unapplied, live = (
            max(LEAST_BYTES, total // scopes) for total in (VIEW_BYTES, UNAPPLIED_BYTES, LIVE_BYTES)
        )
        return cls(view, unapplied, live, max(LEAST_IDS, IDS // scopes))
