"""The producers of sessions: few for all of them, each given up at the first failure."""

import asyncio
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message

from hiveio.config import Settings
from hiveio.errors import AWAY, Unavailable, backend_away
from hiveio.kafka.client import client_config, denied, logger
from hiveio.kafka.delivery import Client, Owner
from hiveio.kafka.guard import error_of, text, tried

WAIT_S = 10.0  # for a group to be delivered
SHARED = 2  # clients of all sessions together; in each, one request is in flight at a time
ALONE_S = 60.0  # after a failure, a partition has a client of its own for this time
MAX_ALONE = 8  # partitions that have one: where many fail, it is not a matter of a partition
KNOWN_S = 3_600.0  # after its latest record, for which a broker surely knows a producer; it forgets it after a day
# What is reported of records that the client itself has given up, because it has failed as a whole.
_GIVEN_UP = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._FATAL)


class Oversized(Unavailable):
    """Kafka does not accept the group, or one of its records, because of its size."""

    urn = "urn:hiveio:problem:unavailable"  # clients do not learn how a backend fails


class Replaced(Unavailable):
    """The client has failed, and not because of this partition. Another session can send at once."""

    urn = "urn:hiveio:problem:unavailable"  # clients do not learn how a backend fails


class Outgoing(NamedTuple):
    key: str | bytes | None
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]]


class _Producer(Client):
    """A client, and what is under way in it."""

    def __init__(self, owner: Owner, config: dict[str, Any]) -> None:
        super().__init__(owner, config)
        self.under_way: set[_Group] = set()
        self.stored_at: dict[tuple[str, int], float] = {}  # when its latest record of each partition was stored
        self.retired = False  # it takes no more records


class _Group:
    """The records of one call. It is their delivery callback, on the poll thread of its client."""

    def __init__(self, client: _Producer, count: int, delivered: "asyncio.Future[tuple[int, int] | None]") -> None:
        self.client, self.delivered = client, delivered
        self.error: KafkaError | None = None
        self._left = count
        self._offsets: list[int | None] = []

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        self._left -= 1
        if error is None:
            self._offsets.append(message.offset())  # None: an earlier attempt had stored it
        elif self.error is None:  # nobody waits for the others: a client that has failed may keep some of them
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
    what it still holds then is given up. If Kafka has refused a record, they come to it at once, with Replaced. Its
    sessions begin again with another client; the partition that failed begins with a client of its own, so that it
    fails alone the next time.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        """``name`` is for log lines and threads."""
        self.name = name
        self._settings = settings
        self._clients: set[_Producer] = set()  # that have not ended
        self._shared: dict[int, _Producer] = {}
        self._alone: set[_Producer] = set()
        self._failing: dict[tuple[str, int], float] = {}  # partitions that have failed, and until when that counts
        self._ending: set[asyncio.Future[None]] = set()

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def take(self, topic: str, partition: int) -> _Producer:
        """The client for a session of this partition. Raises ConfigError."""
        if self.loop.time() < self._failing.get((topic, partition), 0.0) and len(self._alone) < MAX_ALONE:
            client = self._make()
            self._alone.add(client)
            return client
        slot = partition % SHARED
        if slot not in self._shared:
            self._shared[slot] = self._make()
        return self._shared[slot]

    def leave(self, client: _Producer) -> None:
        """A session that has nothing under way is over."""
        if client in self._alone:
            self._retire(client)

    async def deliver(
        self, client: _Producer, topic: str, partition: int, records: Sequence[Outgoing]
    ) -> tuple[int, int] | None:
        """Deliver the records to a partition of which nothing else is under way in this client. Returns the offsets of
        the first and the last one, if Kafka says them.

        If it raises Unavailable, Oversized or Replaced, or is cancelled, each record may be stored or not, and the
        client is given up.
        """
        # The client may have sent a second request when it learns that the first one was refused. A broker refuses that
        # one by its sequence number, unless it has stored nothing of this client before.
        known_at = client.stored_at.get((topic, partition), -KNOWN_S)
        if len(records) == 1 or self.loop.time() < known_at + KNOWN_S:
            return await self._deliver(client, topic, partition, records)
        first = await self._deliver(client, topic, partition, records[:1])
        rest = await self._deliver(client, topic, partition, records[1:])
        return None if first is None or rest is None else (first[0], rest[1])

    async def _deliver(
        self, client: _Producer, topic: str, partition: int, records: Sequence[Outgoing]
    ) -> tuple[int, int] | None:
        if client.retired:
            raise _replaced(topic, partition)
        group = _Group(client, len(records), self.loop.create_future())
        produce = client.producer.produce

        def hand_over() -> None:
            for key, value, headers in records:
                produce(topic, value, key, partition, headers=headers, on_delivery=group)

        client.under_way.add(group)
        failure = tried(hand_over)
        try:
            if failure is None:
                async with asyncio.timeout(WAIT_S):
                    landed = await group.delivered
                client.stored_at[topic, partition] = self.loop.time()
                return landed
        except TimeoutError:
            pass
        except KafkaException as error:
            failure = error
        except asyncio.CancelledError:  # the next publisher should find as few of its records as possible
            self._retire(client)
            raise
        finally:
            client.under_way.discard(group)
            self._end_idle(client)
        self._retire(client)
        if (reason := error_of(failure)) is not None and reason.code() in _GIVEN_UP:
            if (right := _missing_right(client.failure, topic)) is not None:  # without it the client does not begin
                raise backend_away(right)
            raise _replaced(topic, partition)
        self._failing[topic, partition] = self.loop.time() + ALONE_S
        raise _refusal(failure, topic, partition)

    # -- as the owner of its clients

    def settle(self, reported: Sequence[_Group]) -> None:
        """Groups are delivered, or have failed."""
        for group in reported:
            group.settle()

    def replace(self, client: Client, reason: str) -> None:
        """The client has failed for good. It reports what became of the records that it holds."""
        assert isinstance(client, _Producer)
        self._retire(client)

    def renew(self) -> None:
        """Make new clients, which ask again who leads the partitions. What the old ones held may be stored or not."""
        for client in list(self._clients):
            self._retire(client)
            for group in client.under_way:
                if not group.delivered.done():
                    group.delivered.set_exception(Replaced(AWAY, inside="another broker leads"))

    async def stop(self) -> None:
        self.renew()
        await asyncio.gather(*self._ending)

    def _make(self) -> _Producer:
        client = _Producer(
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
        self._clients.add(client)
        return client

    def _retire(self, client: _Producer) -> None:
        client.retired = True
        self._alone.discard(client)
        self._shared = {slot: other for slot, other in self._shared.items() if other is not client}
        self._end_idle(client)

    def _end_idle(self, client: _Producer) -> None:
        if client.retired and not client.under_way and client in self._clients:
            self._clients.remove(client)
            task = asyncio.ensure_future(client.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


def _missing_right(failure: object, topic: str) -> str | None:
    return denied(error_of(failure), f"topic {topic}", "Write")


def _replaced(topic: str, partition: int) -> Replaced:
    return Replaced(AWAY, inside=f"{topic}/{partition}: the producer was replaced")


def _refusal(failure: object, topic: str, partition: int) -> Unavailable:
    """``failure`` is None if there was no answer in time."""
    if (right := _missing_right(failure, topic)) is not None:
        return backend_away(right)
    reason = f"{topic}/{partition}: " + (f"no answer within {WAIT_S:.0f} s" if failure is None else text(failure))
    error = error_of(failure)
    too_large = error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE
    return Oversized(AWAY, inside=reason) if too_large else backend_away(reason)
