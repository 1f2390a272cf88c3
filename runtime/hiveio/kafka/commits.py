"""Commits the offsets of one member of a group, on the poll thread, without waiting for the answer."""

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future

from confluent_kafka import Consumer, KafkaError, TopicPartition

from hiveio.kafka.assigned import NOTHING, UNKNOWN, CommitMetadata, Lane, Offsets, Partition
from hiveio.kafka.client import denied
from hiveio.kafka.guard import Pauses

logger = logging.getLogger("hiveio.consumer")


class Commits:
    """Commits what lanes have done, and the first offsets of a group. ``reported`` is the client's callback."""

    def __init__(self, subscription: str) -> None:
        self._subscription = subscription
        self._lanes: dict[Partition, Lane] = {}  # whose commits are in flight
        self._pauses = Pauses()
        self._retry_at = 0.0  # after a commit that failed
        self._logged_reason = ""
        self._waiting: list[tuple[dict[Partition, int], Future[str | None]]] = []

    def of(self, lane: Lane) -> tuple[int, CommitMetadata]:
        """What is to be committed of a lane now."""
        offset, last = lane.at
        seen = last.decode() if isinstance(last, bytes) else NOTHING if last is None else last or UNKNOWN
        return offset, CommitMetadata(seen, lane.topic_id, lane.subscription or self._subscription, lane.owner)

    def commit(self, consumer: Consumer, lanes: Iterable[Lane]) -> None:
        """Commit what is done; after a commit that failed, not before a pause is over."""
        if time.monotonic() >= self._retry_at:
            self.commit_now(consumer, lanes)

    def commit_now(self, consumer: Consumer, lanes: Iterable[Lane]) -> None:
        """Commit what is done, without a pause: for a partition that is revoked there is no later."""
        offsets = []
        for lane in lanes:
            at = lane.at
            if at != lane.committed:
                offset, metadata = self.of(lane)
                offsets.append(TopicPartition(lane.topic, lane.partition, offset, str(metadata)))
                lane.committed = at
                self._lanes[lane.topic, lane.partition] = lane
        if offsets:
            consumer.commit(offsets=offsets)

    def commit_offsets(self, consumer: Consumer, offsets: Offsets, result: Future[str | None]) -> None:
        """Commit a group's first offsets, or a partition's owner. The future gives None, or why that failed."""
        self._waiting.append(({key: offset for key, (offset, _) in offsets.items()}, result))
        consumer.commit(offsets=[TopicPartition(*key, at, str(metadata)) for key, (at, metadata) in offsets.items()])

    def reported(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        offsets = {(found.topic, found.partition): found.offset for found in partitions}
        for one in [one for one in self._waiting if one[0] == offsets]:
            self._waiting.remove(one)
            reasons = [_reason(failed, found) for found in partitions if (failed := error or found.error)]
            _resolve(one[1], reasons[0] if reasons else None)
        for found in partitions:
            failed = error or found.error
            lane = self._lanes.pop((found.topic, found.partition), None)
            if lane is None:
                continue
            if failed is None:
                self._pauses.reset()
                self._logged_reason = ""
            else:
                lane.committed = None
                self._retry_at = time.monotonic() + self._pauses.next_s()
                if self._logged_reason != failed.str():  # once, not at every attempt
                    self._logged_reason = failed.str()
                    where = f"{found.topic}/{found.partition}"
                    logger.warning(
                        "%s: the offset was not committed, and is tried again: %s", where, self._logged_reason
                    )

    def forget(self) -> None:
        """The client has ended and reports nothing more."""
        for _, result in self._waiting:
            _resolve(result, "the client has ended")
        self._waiting.clear()
        self._lanes.clear()


def _reason(error: KafkaError, partition: TopicPartition) -> str:
    return denied(error, f"topic {partition.topic}", "Describe or Read") or error.str()


def _resolve(result: Future[str | None], reason: str | None) -> None:
    if result.set_running_or_notify_cancel():
        result.set_result(reason)
