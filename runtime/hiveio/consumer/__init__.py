"""The consumer role: events from topics to actors, one lane a partition, the offset last."""

from hiveio.consumer.freshness import fresh
from hiveio.consumer.loop import Consumer

__all__ = ["Consumer", "fresh"]
