"""What topics accept, known from their configuration, so that a record is refused before it is sent."""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from hiveio.config import Settings
from hiveio.errors import Invalid, TooLarge, Unavailable
from hiveio.kafka.delivery import Headers
from hiveio.kafka.topics import FOREVER, ensure_topic

OVERHEAD = 1000  # bytes of a record batch and a record around key, value and headers, more than enough
AGAIN_S = 5.0  # between two looks at one topic


class Rule(NamedTuple):
    """``limit`` is the topic's ``max.message.bytes``; a compacted topic accepts no record without a key. ``topic_id``
    changes when the topic is deleted and created again."""

    limit: int
    keyed: bool = False
    topic_id: str = ""


class Rules:
    """The rules of some topics. They are read at the start, and again when they seem to have changed."""

    def __init__(self, settings: Settings, limit: int, changed: Callable[[], None]) -> None:
        self._settings, self._limit, self._changed = settings, limit, changed
        self._rules: dict[str, Rule] = {}
        self._looked_at: dict[str, float] = {}
        self._looking: set[asyncio.Task[None]] = set()

    @property
    def limit(self) -> int:
        """The bytes that each of the topics accepts in a batch."""
        return min((rule.limit for rule in self._rules.values()), default=self._limit)

    async def look(self, topic: str) -> None:
        """Create the topic if it does not exist, and read its rules. Raises Unavailable."""
        self._looked_at[topic] = time.monotonic()
        found = await ensure_topic(self._settings, topic, FOREVER)
        limit = min(self._limit, int(found.config.get("max.message.bytes", self._limit)))
        self._rules[topic] = Rule(limit, "compact" in found.config.get("cleanup.policy", ""), found.id)

    def look_again(self, topic: str) -> None:
        """Read the rules again, at most once in AGAIN_S: they differed from Kafka's answer, or may be outdated."""
        if time.monotonic() - self._looked_at.get(topic, -AGAIN_S) >= AGAIN_S:
            self._looked_at[topic] = time.monotonic()
            task = asyncio.ensure_future(self._look_again(topic))
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    async def _look_again(self, topic: str) -> None:
        try:
            await self.look(topic)
        except Unavailable:
            return  # readiness says so
        self._changed()

    def topic_id(self, topic: str) -> str:
        """Raises Unavailable while it is not known."""
        if topic not in self._rules:
            raise Unavailable(f"Events are not accepted yet: the topic {topic} is being looked up. Try again.")
        return self._rules[topic].topic_id

    def check(self, topic: str, size: int, *, keyless: bool) -> None:
        """Raises TooLarge (413) or Invalid (422) for a record that the topic does not accept."""
        rule = self._rules.get(topic) or Rule(self._limit)
        if size + OVERHEAD > rule.limit:
            self.look_again(topic)
            raise TooLarge(f"The record has {size} bytes; the topic {topic} accepts {rule.limit}.")
        if keyless and rule.keyed:
            self.look_again(topic)
            raise Invalid(f"The topic {topic} is compacted and accepts no record without a key.")


def size_of(value: bytes, key: str | bytes | None, headers: Headers) -> int:
    """Of key, value and headers; a text of other than ASCII counts a little less than its bytes: see OVERHEAD."""
    size = len(value) + (len(key) if key else 0)
    for name, text in headers:
        size += len(name) + (len(text) if text else 0)
    return size
