"""The producers of sessions: few for all of them, each given up at the first failure."""

import asyncio
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message

from hiveio.config import Settings
from hiveio.errors import AWAY, Unavailable, backend_away
from hiveio.kafka.client import client_config, denied, logger
from hiveio.kafka.delivery import Client
from hiveio.kafka.guard import error_of, text, tried

WAIT_S = 10.0  # for a group to be delivered
SHARED = 2  # clients of all sessions together; in each, one request is in flight at a time
ALONE_S = 60.0  # after a failure, a partition has a client of its own for this time


class Oversized(Unavailable):
    """Kafka does not accept the group, or one of its records, because of its size."""


class Outgoing(NamedTuple):
    key: str | bytes | None
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]]


class _Group:
    """The records of one call. It is their delivery callback, on the poll thread of its client."""

    def __init__(self, client: Client, count: int, delivered: "asyncio.Future[tuple[int, int] | None]") -> None:
        self.client, self.delivered = client, delivered
        self.error: KafkaError | None = None
        self._left = count
        self._offsets: list[int | None] = []

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        self._left -= 1
        if error is None:
            self._offsets.append(message.offset())  # None: an earlier attempt had stored it
        elif self.error is None:
            self.error = error
            self.client.reported.append(self)
        if self._left == 0 and self.error is None:
            self.client.reported.append(self)

    def settle(self) -> None:
        """Let the one who waits know, on the event loop."""
        if self.delivered.done():
            return
        if self.error is not None:
            self.delivered.set_exception(KafkaException(self.error))
        else:
            first, last = self._offsets[0], self._offsets[-1]
            self.delivered.set_result(None if first is None or last is None else (first, last))


class _Quiet:
    """The logger of clients with ``enable.gapless.guarantee``. It leaves out that the property is experimental, and
    that a client sends nothing after its records were given up: the session that failed says why."""

    def log(self, level: int, format: str, *arguments: Any) -> None:
        if not any("gapless" in str(each) or "Gap-less" in str(each) for each in arguments):
            logger.log(level, format, *arguments)


class SessionClients:
    """Producers in which a record of a partition can be stored only after all that were sent before it.

    A session stays with the client that it began with: if the broker was not the leader any more when it stored the
    records before, the sequence numbers of that client are what keeps the next ones from being stored behind a gap.
    After a failure, whatever it was, a client takes no more records of anybody. Its other groups come to their end, and
    what it still holds then is given up. Its sessions begin again with another client; the partition that failed begins
    with a client of its own, so that it fails alone the next time.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        """``name`` is for log lines and threads."""
        self.name = name
        self._settings = settings
        self._shared: dict[int, Client] = {}
        self._alone: set[Client] = set()
        self._failing: dict[tuple[str, int], float] = {}  # partitions that have failed, and until when that counts
        self._under_way: dict[Client, set[_Group]] = {}  # of each client that has not ended
        self._retired: set[Client] = set()  # those of them that take no more records
        self._ending: set[asyncio.Future[None]] = set()

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def take(self, topic: str, partition: int) -> Client:
        """The client for a session of this partition. Raises ConfigError."""
        if self.loop.time() < self._failing.get((topic, partition), 0.0):
            client = self._make()
            self._alone.add(client)
            return client
        slot = partition % SHARED
        if slot not in self._shared:
            self._shared[slot] = self._make()
        return self._shared[slot]

    def usable(self, client: Client) -> bool:
        """Whether it still takes records."""
        return client in self._under_way and client not in self._retired

    def leave(self, client: Client) -> None:
        """A session that has nothing under way is over."""
        if client in self._alone:
            self._retire(client)

    async def deliver(
        self, client: Client, topic: str, partition: int, records: Sequence[Outgoing]
    ) -> tuple[int, int] | None:
        """Deliver the records to a partition of which nothing else is under way in this client. Returns the offsets of
        the first and the last one, if Kafka says them.

        If it raises Unavailable or Oversized, or is cancelled, each record may be stored or not, and the client is
        given up.
        """
        if not self.usable(client):
            raise backend_away(f"{topic}/{partition}: the producer was replaced")
        group = _Group(client, len(records), self.loop.create_future())
        produce = client.producer.produce

        def hand_over() -> None:
            for key, value, headers in records:
                produce(topic, value, key, partition, headers=headers, on_delivery=group)

        self._under_way[client].add(group)
        failure = tried(hand_over)
        try:
            if failure is None:
                async with asyncio.timeout(WAIT_S):
                    return await group.delivered
        except TimeoutError:
            pass
        except KafkaException as error:
            failure = error
        except asyncio.CancelledError:  # the next publisher should find as few of its records as possible
            self._retire(client)
            raise
        finally:
            self._under_way[client].discard(group)
            self._end_idle(client)
        self._failing[topic, partition] = self.loop.time() + ALONE_S
        self._retire(client)
        raise _refusal(failure, topic, partition)

    # -- as the owner of its clients

    def settle(self, reported: Sequence[_Group]) -> None:
        """Groups are delivered, or have failed."""
        for group in reported:
            group.settle()

    def replace(self, client: Client, reason: str) -> None:
        """The client has failed for good, with all that it holds."""
        self._give_up(client, backend_away(reason))

    def renew(self) -> None:
        """Make new clients, which ask again who leads the partitions. What the old ones held may be stored or not."""
        for client in list(self._under_way):
            self._give_up(client, backend_away("another leader"))

    async def stop(self) -> None:
        self.renew()
        await asyncio.gather(*self._ending)

    def _make(self) -> Client:
        client = Client(
            self,
            client_config(self._settings)
            | {
                "logger": _Quiet(),
                "acks": "all",
                "enable.idempotence": True,
                # The rest of a partition's queue is not sent after a request that Kafka refuses: the client fails.
                "enable.gapless.guarantee": True,
                "max.in.flight": 1,
                "delivery.timeout.ms": 300_000,
                "linger.ms": 1,
                "batch.num.messages": 100_000,
                "batch.size": 1_000_000,
                "socket.nagle.disable": True,
            },
        )
        self._under_way[client] = set()
        return client

    def _give_up(self, client: Client, problem: Unavailable) -> None:
        self._retire(client)
        for group in self._under_way.get(client, ()):
            if not group.delivered.done():
                group.delivered.set_exception(problem)

    def _retire(self, client: Client) -> None:
        if client in self._under_way:
            self._retired.add(client)
            self._alone.discard(client)
            self._shared = {slot: other for slot, other in self._shared.items() if other is not client}
            self._end_idle(client)

    def _end_idle(self, client: Client) -> None:
        if client in self._retired and not self._under_way[client]:
            self._retired.discard(client)
            del self._under_way[client]
            task = asyncio.ensure_future(client.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


def _refusal(failure: Any, topic: str, partition: int) -> Unavailable:
    """``failure`` is None if there was no answer in time."""
    error = error_of(failure)
    if (right := denied(error, f"topic {topic}", "Write")) is not None:
        return backend_away(right)
    reason = f"{topic}/{partition}: " + (f"no answer within {WAIT_S:.0f} s" if failure is None else text(failure))
    too_large = error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE
    return Oversized(AWAY, inside=reason) if too_large else backend_away(reason)
