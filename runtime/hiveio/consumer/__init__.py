"""The consumer role: events from topics to actors, one lane a partition, the offset last."""

from hiveio.consumer.freshness import FRESH, fresh
from hiveio.consumer.loop import Consumer

__all__ = ["FRESH", "Consumer", "fresh"]
