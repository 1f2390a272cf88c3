"""Records that were taken and are not stored, or perhaps not: counted, and told in few lines."""

import logging

from hiveio import metrics
from hiveio.errors import Problem

TELL_S = 10.0  # between two log lines about records that Kafka refuses
logger = logging.getLogger("hiveio.sender")

_unconfirmed = metrics.Counter("hiveio_records_unconfirmed_total", "Records taken that Kafka will not confirm any more")
_refused = metrics.Counter("hiveio_records_refused_total", "Records taken that Kafka refused: they are not stored")


class Losses:
    """Of one sender. Where nobody waits for an answer these lines are the only trace."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told_at, self._untold = 0.0, 0

    def refused(self, problem: Problem, now: float) -> None:
        """Kafka refused a record for good."""
        _refused.inc()
        self._untold += 1
        if now - self._told_at > TELL_S:
            logger.error("%s: Kafka refused %d records: %s", self._name, self._untold, problem.detail)
            self._told_at, self._untold = now, 0

    def unconfirmed(self, count: int, reason: str) -> None:
        """Kafka did not say whether it has stored so many records, and will not."""
        if count:
            _unconfirmed.inc(count)
            logger.error(
                "%s: Kafka did not confirm %d records; they may be stored or lost: %s", self._name, count, reason
            )
