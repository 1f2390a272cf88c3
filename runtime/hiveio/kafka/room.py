"""Partitions that do not keep up are paused, each alone, so that polling and the others go on."""

import threading
from collections.abc import Collection, Iterable

from confluent_kafka import Consumer, TopicPartition

from hiveio.kafka.assigned import Lane

SLOW_S = 0.1  # a lane that delays the others for so long is paused


def make_room(consumer: Consumer, lanes: Collection[Lane], batch: int, progress: threading.Event) -> bool:
    """Wait shortly for the loop, then pause the lanes that delay it. Whether a paused lane will go on."""
    resumed = [lane for lane in lanes if lane.paused and lane.backlog <= batch // 4]
    _set_paused(consumer, [lane for lane in resumed if lane.failure is None], paused=False)
    progress.clear()
    if not _has_room(lanes, batch):
        progress.wait(SLOW_S)
        if not _has_room(lanes, batch):
            # Pausing throws away what librdkafka has fetched: only for slow lanes, never to keep pace.
            _set_paused(consumer, [lane for lane in lanes if lane.backlog], paused=True)
    _set_paused(consumer, [lane for lane in lanes if lane.failure is not None], paused=True)
    return any(lane.paused and lane.failure is None for lane in lanes)


def topic_partitions(lanes: Iterable[Lane]) -> list[TopicPartition]:
    return [TopicPartition(lane.topic, lane.partition) for lane in lanes]


def _has_room(lanes: Collection[Lane], batch: int) -> bool:
    return sum(lane.backlog for lane in lanes if not lane.paused) < 2 * batch


def _set_paused(consumer: Consumer, lanes: list[Lane], *, paused: bool) -> None:
    lanes = [lane for lane in lanes if lane.paused is not paused]
    if lanes:
        consumer.pause(topic_partitions(lanes)) if paused else consumer.resume(topic_partitions(lanes))
        for lane in lanes:
            lane.paused = paused
