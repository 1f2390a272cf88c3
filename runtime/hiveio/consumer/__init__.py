"""The consumer role: events from topics to actors, one worker a partition, the offset last."""

from hiveio.consumer.component import Consumer
from hiveio.consumer.freshness import FRESH, fresh

__all__ = ["FRESH", "Consumer", "fresh"]
