"""The most memory that an instance uses for its log, in bytes. The scopes share it, so it does not grow with their
number.

The object of a snapshot is not counted; it takes two to four times the bytes of the snapshot.
"""

from typing import NamedTuple

ENTRY_BYTES = 500  # that an aggregate takes in addition to its snapshot
VIEW_BYTES = 64_000_000  # of the aggregates in the views
UNAPPLIED_BYTES = 8_000_000  # of the aggregates that the cache does not have yet, which is the most of one call to it
LIVE_BYTES = 32_000_000  # of records that are passed on to publishers and not sent; beyond it they read the log
IDS = 500_000  # command ids in the views
LEAST_BYTES, LEAST_IDS = 1_000_000, 4_000  # of each scope, however many there are
IN_WORK_BYTES = 128_000_000  # of the aggregates that commands work on, before and after their records
BODIES_BYTES = 64_000_000  # of commands that are not answered
SNAPSHOTS_BYTES = 32_000_000  # of the aggregates of one transaction after it


class Bounds(NamedTuple):
    """The bounds of one scope."""

    view: int = VIEW_BYTES
    unapplied: int = UNAPPLIED_BYTES
    live: int = LIVE_BYTES
    ids: int = IDS

    @classmethod
    def of(cls, scopes: int) -> "Bounds":
        """The share of each of so many scopes."""
        view, unapplied, live = (
            max(LEAST_BYTES, total // scopes) for total in (VIEW_BYTES, UNAPPLIED_BYTES, LIVE_BYTES)
        )
        return cls(view, unapplied, live, max(LEAST_IDS, IDS // scopes))
