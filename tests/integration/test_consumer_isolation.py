"""What an attempt changes in its event is seen by no other attempt, by no other actor, and in no dead letter."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from hiveio import Actor, Context, Event
from hiveio.config import Settings
from hiveio.errors import Unavailable
from tests.integration.consumers import member
from tests.integration.consumers import settings as settings
from tests.integration.topics import make_topic, read_all, write
from tests.services import Kafka


class Packed(Event):
    items: list[str] = msgspec.field(default_factory=list)


class Seeing(Actor):
    """Fails at first, and always at what begins with "never"."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, events: list[Packed], contexts: list[Context] | None = None) -> None:
        now = [list(event.items) for event in events], [dict(c.meta or {}) for c in contexts or ()]
        self.seen.append(now)
        for event in events:
            event.items.append("by an attempt")
        for context in contexts or ():
            if isinstance(context.meta, dict):
                context.meta["by"] = "an attempt"
        count = len(events)
        first = events[0]
        events.clear()
        if first.items[0] == "never":
            raise ValueError("never")
        if sum(seen == now for seen in self.seen) == 1:
            raise Unavailable("at first") if count > 1 else ValueError("at first")


class Plain(Seeing):
    def perform(self, event: Packed) -> None:
        self.note([event])


class Informed(Seeing):
    async def perform(self, event: Packed, context: Context) -> None:
        self.note([event], [context])


class Listing(Seeing):
    def perform(self, events: list[Packed], context: list[Context]) -> None:
        self.note(events, context)


ITEMS = [["a"], ["never"], ["b", "c"]]


@pytest.mark.parametrize(
    ("kinds", "concurrency"),
    [((Plain, Informed), 1), ((Informed, Plain), 4), ((Listing, Plain, Informed), 1)],
    ids=["one at a time", "parallel keys", "lists"],
)
async def test_each_attempt_of_each_actor_is_given_the_event_as_it_came(
    kafka: Kafka, topic: str, settings: Callable[..., Settings], kinds: tuple[type[Actor], ...], concurrency: int
) -> None:
    make_topic(kafka.brokers, topic)
    values = [json.dumps({"type": "Packed", "payload": {"items": i}, "meta": {"by": "a client"}}) for i in ITEMS]
    write(kafka.brokers, topic, [(0, f"k{n}", value.encode(), {}) for n, value in enumerate(values)])
    made = settings(consumer_attempts=2, consumer_backoff_ms=1, consumer_concurrency=concurrency)
    async with member(made, *kinds) as one:
        await one.until(lambda: one.consumer.counts.handled == 2 and one.consumer.counts.dead == 1)
        for actor in one.actors:
            given = [items for seen in actor.seen for items in seen[0]]
            metas = [meta for seen in actor.seen for meta in seen[1]]
            assert len(given) >= 6
            assert all(items in ITEMS for items in given), given
            assert all(meta == {"by": "a client"} for meta in metas), metas
    (dead_letter,) = read_all(kafka.brokers, f"{topic}.{made.group_id}.dead")
    assert dead_letter.value() == values[1].encode()
