"""Records that were accepted and are not stored, or perhaps not: counted, and logged in few lines."""

import logging

from hiveio import metrics
from hiveio.errors import Problem

LOG_S = 10.0  # between two log lines about records that Kafka refuses
logger = logging.getLogger("hiveio.sender")

_unconfirmed = metrics.Counter(
    "hiveio_records_unconfirmed_total", "Records that were accepted and that Kafka will not confirm any more"
)
_refused = metrics.Counter(
    "hiveio_records_refused_total", "Records that were accepted and that Kafka refused, so they are not stored"
)


class Losses:
    """The losses of one sender. If nobody waits for an answer, these lines are the only trace of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logged_at, self._unlogged = float("-inf"), 0

    def refused(self, problem: Problem, reason: str, now: float) -> None:
        """Kafka refused a record for good; ``reason`` is what it said."""
        _refused.inc()
        self._unlogged += 1
        if now - self._logged_at > LOG_S:
            logger.error("%s: Kafka refused %d records: %s (%s)", self._name, self._unlogged, problem.detail, reason)
            self._logged_at, self._unlogged = now, 0

    def unconfirmed(self, count: int, reason: str) -> None:
        """Kafka did not say whether it has stored this number of records, and will not."""
        if count:
            _unconfirmed.inc(count)
            logger.error(
                "%s: Kafka did not confirm %d records; they may be stored or lost: %s", self._name, count, reason
            )
