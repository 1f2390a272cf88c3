"""Writes one partition without a gap: a record can be stored only after all that were sent before it."""

import asyncio
import threading
from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, Message, Producer

from hiveio.config import Settings
from hiveio.errors import AWAY, Unavailable, backend_away
from hiveio.kafka.client import client_config, denied, make
from hiveio.kafka.guard import error_of, text, tried
from hiveio.kafka.threads import blocking, start_thread
from hiveio.types import DeliveryFuture, Observer, RecordMetadata

WAIT_S = 10.0
MAX_GROUP = 500  # events that a publisher sends at once
OVERLAPPING = 8  # sessions of which something is under way at once, at most
# Among this number of consecutive records of an event topic, one is no repeat (ShortRepeats in Publisher.tla): a
# session ends as soon as it finds that it has repeated something.
REPEATED = MAX_GROUP * OVERLAPPING


class Oversized(Unavailable):
    """Kafka does not accept the group, or one of its records, because of its size."""

    urn = "urn:hiveio:problem:unavailable"  # clients do not learn how a backend fails


class Outgoing(NamedTuple):
    key: str | bytes | None
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]]


class Session:
    """One producer for a sequence of records. After the first failure it sends nothing any more.

    One request is in flight at a time: records gather until ``flush`` (a long linger keeps them), and the next group
    waits for the delivery of the one before. A request that was given up may still be stored, alone and in its place.
    ``observer`` sees every record, and gives the headers to send.
    """

    def __init__(self, settings: Settings, topic: str, partition: int, observer: Observer | None = None) -> None:
        self._topic, self._partition, self._observer = topic, partition, observer
        self._failure: KafkaError | None = None
        self._closed = False
        self._flushing = threading.Lock()  # a client must not end while it is used
        self._landed: list[int | None] = []  # offsets; None: an earlier attempt had stored it
        self._producer = make(
            Producer,
            client_config(settings)
            | {
                "acks": "all",
                "enable.idempotence": True,
                "max.in.flight": 1,
                "delivery.timeout.ms": 300_000,
                "linger.ms": 60_000,
                "batch.num.messages": 100_000,
                "batch.size": 1_000_000,
                "on_delivery": self._report,
                "socket.nagle.disable": True,
            },
        )

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failure = error
        else:
            self._landed.append(message.offset())

    def _flush(self) -> int:
        with self._flushing:
            return self._producer.flush(WAIT_S)

    async def send(self, group: Sequence[Outgoing], partition: int | None = None) -> tuple[int, int] | None:
        """Deliver the group. Returns the offsets of its first and its last record, if Kafka says them.

        If it raises Unavailable or Oversized, or is cancelled, the session is over, and each record may be stored or
        not.
        """
        partition = self._partition if partition is None else partition
        if self._observer is None:
            return await self._deliver(group, partition)
        stored: DeliveryFuture = asyncio.get_running_loop().create_future()
        observed = [out._replace(headers=self._observer(self._topic, out.key, out.headers, stored)) for out in group]
        try:
            landed = await self._deliver(observed, partition)
            stored.set_result(RecordMetadata(partition, -1))
            return landed
        except Unavailable as error:
            stored.set_exception(error)
            raise
        finally:
            stored.cancel()  # if it is not done, the publisher is stopping

    async def _deliver(self, group: Sequence[Outgoing], partition: int) -> tuple[int, int] | None:
        remaining: list[int] = []
        self._landed.clear()

        def deliver() -> None:
            for key, value, headers in group:
                self._producer.produce(self._topic, value, key, partition, headers=headers)

        failure = tried(deliver)
        if failure is None:
            try:
                # flush raises fatal errors out of the callbacks that it calls; uncaught, they would end the thread.
                failure = await blocking(tried, lambda: remaining.append(self._flush()), kind="publish")
            except asyncio.CancelledError:  # the next publisher should find as few of its records as possible
                self.close()
                raise
        if failure is not None or self._failure is not None or remaining != [0]:
            refusal = self._refusal(self._failure if failure is None else failure, partition)
            self.close()
            raise refusal
        first, last = self._landed[0], self._landed[-1]
        return None if first is None or last is None else (first, last)

    def close(self) -> None:
        """Give up the records that are not sent. The client and its threads end a moment later."""
        if not self._closed:
            self._closed = True
            tried(lambda: self._producer.purge(in_queue=True, in_flight=True, blocking=False))
            start_thread(f"{self._topic} end", self._end)

    def _end(self) -> None:
        # Left alone it would stay: its callback refers to this session, and the collector of cycles runs rarely.
        with self._flushing:
            tried(self._producer.close)

    def _refusal(self, failure: object | None, partition: int) -> Unavailable:
        """``failure`` is None if there was no answer in time."""
        error = error_of(failure)
        if (right := denied(error, f"topic {self._topic}", "Write")) is not None:
            return backend_away(right)
        reason = f"{self._topic}/{partition}: " + (
            f"no answer within {WAIT_S:.0f} s" if failure is None else text(failure)
        )
        too_large = error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE
        return Oversized(AWAY, inside=reason) if too_large else backend_away(reason)
