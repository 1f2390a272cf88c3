"""How fast Kafka confirms records: whether to accept more, and when a client should come back."""

import random

LONGEST_S = 60.0  # of a Retry-After, before jitter


class Flow:
    """Says when a record accepted now would not be confirmed in time. All times in seconds, of one monotonic clock.

    A record is to be confirmed within ``bound_s``. A refusal is definite and says when to come back; a record
    accepted and not confirmed in time is an unknown outcome, which is worse for everybody. So nothing is accepted

    - while nothing at all was confirmed for half of the bound (Kafka is away), and
    - while confirmations take a quarter of it, and more records wait than Kafka, at its measured rate, confirms in
      that time. Both, because a queue that was never long does not show what Kafka could do.
    """

    __slots__ = ("_bound_s", "_count", "_delivery_s", "_latest", "_rate", "_since", "_stalled_s", "refusal", "stalled")

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._rate = 0.0  # confirmed in a second
        self._delivery_s = 0.0  # how long the last confirmed record took
        self._count, self._since = 0, 0.0
        self._latest = 0.0  # the last confirmation, or look at an empty queue
        self._stalled_s = 0.0
        self.stalled = False
        self.refusal: str | None = None

    def confirmed(self, count: int, delivery_s: float, now: float) -> None:
        if now - self._latest > self._bound_s / 8:  # after a silence the rate is not known
            self._rate, self._count, self._since = 0.0, 0, now
        self._latest, self._delivery_s = now, delivery_s
        self._count += count
        if now - self._since >= self._bound_s / 8:
            self._rate = self._count / (now - self._since)
            self._count, self._since = 0, now

    def look(self, unconfirmed: int, now: float) -> None:
        """Judge again; to be called a few times a second with the number of records not confirmed."""
        if unconfirmed == 0:
            self._latest = self._since = now  # the rate is that of busy times
            self._count, self._delivery_s = 0, 0.0
        self._stalled_s = now - self._latest
        self.stalled = self._stalled_s > self._bound_s / 2
        self.refusal = None
        if self.stalled:
            self.refusal = f"Kafka has confirmed nothing for {self._stalled_s:.1f} s"
        elif self._rate and self._delivery_s > self._bound_s / 4 and unconfirmed > self._rate * self._bound_s / 4:
            self.refusal = f"{unconfirmed} records wait, and Kafka confirms {self._rate:.0f} a second"

    def retry_after(self, unconfirmed: int) -> int:
        """Whole seconds until there is room, with jitter; while Kafka is away, as long as it has been away."""
        wait_s = self._stalled_s if self.stalled else unconfirmed / self._rate if self._rate else 1.0
        return max(1, round(min(LONGEST_S, wait_s) * random.uniform(1.0, 1.5)))
