"""Backends that are away, in few lines of the log: one at the start, one each EVERY_S with a count, one at the end.

A client that cannot reach its server says so many times a second, and so does what waits for it. Whoever learns that a
backend does not answer calls its ``Outage``; lines that only say that something waits for it are counted, not written.
"""

import logging
import re
import threading
import time
from collections.abc import Callable

from hiveio.errors import Unavailable

EVERY_S = 30.0  # between two lines of one outage
BLINK_S = 2.0  # so long is an outage at least that follows another one within EVERY_S, and has a line
_OF_ACTORS = "hiveio.consumer"  # its lines say what actors raise, and these may wait for a backend of their own
# What librdkafka and we say where nobody answers; that too few replicas are in sync, say, is another matter.
_NO_ANSWER = re.compile(
    "connections are down|transport failure|[Tt]imed out|Unknown partition|No leaders found|no answer|"
    "did not say within|does not answer"
)

logger = logging.getLogger("hiveio.backends")
known: dict[str, "Outage"] = {}
_lock = threading.Lock()


class Outage:
    """Writes to the log about one backend. Its methods may be called on any thread."""

    def __init__(self, backend: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.backend, self._clock = backend, clock
        self.away_since: float | None = None  # None: it answers
        self.count = 0  # complaints since the last line
        self._complained_at = 0.0
        self._logged_at: float | None = None
        self._away_logged = False  # this outage has a line
        self._lock = threading.Lock()

    def away(self, reason: str) -> None:
        """Note that it does not answer, and why."""
        with self._lock:
            now = self._complained_at = self._clock()
            if self.away_since is None:
                self.away_since, self.count, self._away_logged = now, 0, False
            lately = self._logged_at is not None and now - self._logged_at < EVERY_S
            if lately and (self._away_logged or now - self.away_since < BLINK_S):
                self.count += 1
                return
            if self._away_logged:
                text = "%s is still away, after %.0f s (%d more complaints): %s"
                logger.warning(text, self.backend, now - self.away_since, self.count, reason)
            else:
                logger.warning("%s is away: %s", self.backend, reason)
            self._logged_at, self._away_logged, self.count = now, True, 0

    def is_current(self) -> bool:
        """Whether it is away, and somebody said so lately. One that nobody asks for any more hides no lines."""
        return self.away_since is not None and self._clock() - self._complained_at < EVERY_S

    def back(self) -> None:
        """Note that it answers."""
        if self.away_since is None:
            return
        with self._lock:
            if self.away_since is not None and self._away_logged:
                self._logged_at = self._clock()
                text = "%s is back, after %.1f s (%d more complaints)"
                logger.info(text, self.backend, self._logged_at - self.away_since, self.count)
            self.away_since = None


def of(backend: str) -> Outage:
    """The outage of a backend, made at the first call."""
    with _lock:
        return known.setdefault(backend, Outage(backend))


def forget(backend: str, reason: str) -> None:
    """Note that a backend is no longer used, and why."""
    with _lock:
        outage = known.pop(backend, None)
    if outage is not None and outage.away_since is not None:
        logger.info("%s is no longer used: %s", backend, reason)


def worth_a_line(record: logging.LogRecord) -> bool:
    """A filter for all lines. A line that only says that something waits for a backend that is away is counted."""
    if record.levelno > logging.ERROR or not isinstance(record.args, tuple):
        return True
    waits = next((str(each) for each in record.args if isinstance(each, Unavailable)), None)
    if waits is None:
        return True
    ours = record.name.startswith("hiveio.") and record.name != _OF_ACTORS and _NO_ANSWER.search(waits)
    for outage in list(known.values()):
        if outage.is_current() and (ours or waits.startswith(outage.backend)):
            outage.count += 1
            return False
    return True
