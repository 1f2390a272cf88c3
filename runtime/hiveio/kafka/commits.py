"""The offsets of a group, as one member commits them: on the poll thread, without waiting for the answer."""

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
    """Commits what lanes have done, and where a group begins. ``reported`` is for the client's reports."""

    def __init__(self, subscription: str) -> None:
        self._subscription = subscription
        self._lanes: dict[Partition, Lane] = {}  # whose commits are on their way
        self._pauses = Pauses()
        self._again_at = 0.0  # after a commit that failed
        self._told = ""
        self._noting: list[tuple[dict[Partition, int], Future[str | None]]] = []

    def of(self, lane: Lane) -> tuple[int, CommitMetadata]:
        """What of a lane is to be committed now."""
        offset, last = lane.at
        seen = last.decode() if isinstance(last, bytes) else NOTHING if last is None else last or UNKNOWN
        return offset, CommitMetadata(seen, lane.topic_id, lane.subscription or self._subscription, lane.owner)

    def commit(self, consumer: Consumer, lanes: Iterable[Lane]) -> None:
        """What is done and not committed yet; not for a while after a commit has failed."""
        if time.monotonic() >= self._again_at:
            self.commit_now(consumer, lanes)

    def commit_now(self, consumer: Consumer, lanes: Iterable[Lane]) -> None:
        """What is done and not committed yet: there is no later, where a partition is let go."""
        offsets = []
        for lane in lanes:
            at = lane.at
            if at != lane.committed:
                offset, note = self.of(lane)
                offsets.append(TopicPartition(lane.topic, lane.partition, offset, str(note)))
                lane.committed = at
                self._lanes[lane.topic, lane.partition] = lane
        if offsets:
            consumer.commit(offsets=offsets)

    def note(self, consumer: Consumer, offsets: Offsets, noted: Future[str | None]) -> None:
        """Where the group begins, or who has a partition. The future gives None once that stands, else why not."""
        self._noting.append(({key: offset for key, (offset, _) in offsets.items()}, noted))
        consumer.commit(offsets=[TopicPartition(*key, offset, str(note)) for key, (offset, note) in offsets.items()])

    def reported(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        offsets = {(found.topic, found.partition): found.offset for found in partitions}
        for one in [one for one in self._noting if one[0] == offsets]:
            self._noting.remove(one)
            reasons = [_reason(failed, found) for found in partitions if (failed := error or found.error)]
            _set(one[1], reasons[0] if reasons else None)
        for found in partitions:
            failed = error or found.error
            lane = self._lanes.pop((found.topic, found.partition), None)
            if lane is None:
                continue
            if failed is None:
                self._pauses.again()
                self._told = ""
            else:
                lane.committed = None
                self._again_at = time.monotonic() + self._pauses.next_s()
                if self._told != failed.str():  # once, and not at every attempt
                    self._told = failed.str()
                    where = f"{found.topic}/{found.partition}"
                    logger.warning("%s: not committed, and tried again: %s", where, self._told)

    def forget(self) -> None:
        """Of this client nothing is reported any more."""
        for _, noted in self._noting:
            _set(noted, "the client has ended")
        self._noting.clear()
        self._lanes.clear()


def _reason(error: KafkaError, partition: TopicPartition) -> str:
    return denied(error, f"topic {partition.topic}", "Describe or Read") or error.str()


def _set(noted: Future[str | None], reason: str | None) -> None:
    if noted.set_running_or_notify_cancel():
        noted.set_result(reason)
