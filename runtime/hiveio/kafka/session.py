"""Writes one partition without a gap: a record can be stored only after all that were sent before it."""

import asyncio
from collections.abc import Sequence

from hiveio.errors import Unavailable
from hiveio.kafka.session_clients import Outgoing, SessionClients
from hiveio.types import DeliveryFuture, Observer, RecordMetadata

MAX_GROUP = 500  # events that a publisher sends at once
OVERLAPPING = 8  # sessions of which something is under way at once, at most
# Among this number of consecutive records of an event topic, one is no repeat (ShortRepeats in Publisher.tla): a
# session ends as soon as it finds that it has repeated something.
REPEATED = MAX_GROUP * OVERLAPPING


class Session:
    """A sequence of records. After the first failure it sends nothing any more.

    One group is under way at a time: the next one waits for the delivery of the one before. A group that was given up
    may still be stored, or its first records, alone and in their place. ``observer`` sees every record, and gives the
    headers to send.
    """

    def __init__(self, clients: SessionClients, topic: str, partition: int, observer: Observer | None = None) -> None:
        """Raises ConfigError for properties that librdkafka refuses."""
        self._clients, self._topic, self._partition, self._observer = clients, topic, partition, observer
        self._client = clients.take(topic, partition)
        self._closed = False

    @property
    def usable(self) -> bool:
        """Whether it can still send. Where it cannot, although nothing of it has failed, another session can."""
        return not (self._closed or self._client.retired)

    async def send(self, group: Sequence[Outgoing]) -> tuple[int, int] | None:
        """Deliver the group. Returns the offsets of its first and its last record, if Kafka says them.

        If it raises Unavailable, Oversized or Replaced, or is cancelled, the session is over, and each record may be
        stored or not.
        """
        if self._observer is None:
            return await self._clients.deliver(self._client, self._topic, self._partition, group)
        stored: DeliveryFuture = asyncio.get_running_loop().create_future()
        observed = [out._replace(headers=self._observer(self._topic, out.key, out.headers, stored)) for out in group]
        try:
            landed = await self._clients.deliver(self._client, self._topic, self._partition, observed)
            stored.set_result(RecordMetadata(self._partition, -1))
            return landed
        except Unavailable as error:
            stored.set_exception(error)
            raise
        finally:
            stored.cancel()  # if it is not done, the publisher is stopping

    def close(self) -> None:
        """It sends nothing any more."""
        if not self._closed:
            self._closed = True
            self._clients.leave(self._client)
