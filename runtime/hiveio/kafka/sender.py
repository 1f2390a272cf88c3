"""The batching sender: takes records, returns their offsets. Idempotent, acks=all, every delivery awaited."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from confluent_kafka import KafkaException

from hiveio import metrics
from hiveio.config import Settings
from hiveio.errors import Unavailable, Unknown, backend_away
from hiveio.kafka.client import client_config, first_brokers, first_contact, is_fatal
from hiveio.kafka.clients import Clients
from hiveio.kafka.delivery import Client, Delivery, Headers, Late
from hiveio.kafka.flow import Flow
from hiveio.kafka.leaders import LeaderWatch
from hiveio.kafka.losses import Losses
from hiveio.kafka.refusals import concerns_batch, failed, refusal
from hiveio.kafka.rules import Rules, size_of
from hiveio.kafka.threads import blocking
from hiveio.types import DeliveryFuture, Observer

EAGER = 8  # up to this number in flight, each record is sent at once; with more, records are gathered
LOADED_S = 0.02  # for which records are still gathered afterwards
MAX_RECORDS, MAX_BYTES = 20_000, 64 << 20  # accepted and not reported; beyond that, 503
SWEEP_S = 0.05  # how late a deadline may be noticed
LATE_S = 3.0  # for which a record waits until the leaders are asked about
LATE = "Kafka did not confirm the record within REQUEST_TIMEOUT. It may be stored all the same."
CLOSED = "Events are not accepted now. Try again in a moment."
OPEN_S = 2.0  # the longest that the start waits for the topics: before, probes are not answered
logger = logging.getLogger("hiveio.sender")

_waiting = metrics.Gauge("hiveio_records_waiting", "Records that Kafka has not confirmed", multiprocess_mode="livesum")


class Sender:
    """Sends records; each future is done when Kafka has stored or refused its record, or its outcome is unknown.

    - A record is sent at once while fewer than ``EAGER`` are in flight; then records are gathered for at most
      ``settings.buffer_timeout_ms`` or until there are ``settings.buffer`` of them. The records of one ``send_all`` are
      stored in order, per key or partition; so are those sent after an answer, and all sent with ``gather``.
    - The records accepted and not reported are bounded in number and bytes; beyond that ``send`` raises Unavailable
      (503), and with ``shed`` also while Kafka does not confirm records fast enough for the deadline (see ``Flow``).
    - Shortly before ``settings.request_timeout_ms`` a future fails with Unknown (504); the record may still be stored,
      and keeps its room in the queue until librdkafka gives up on it (``delivery.timeout.ms``): memory stays bounded.
    - If Kafka refuses a batch because of a record in it, each record is sent again once, alone: good ones are stored
      behind those sent meanwhile; the others fail with the problem that ``refusal`` gives (413, 422, 403 or 503).
    - ``topics`` are created at the start if they are missing; no record is accepted before that.
    - ``observer`` sees every record and its future, and gives the headers to send.
    """

    name = "sender"

    def __init__(
        self,
        settings: Settings,
        *,
        topics: Iterable[str] = (),
        shed: bool = False,
        observer: Observer | None = None,
    ) -> None:
        settings.need(brokers="the sender writes to Kafka")
        self._observer = observer
        self._settings, self._topics = settings, list(dict.fromkeys(topics))
        self._config = client_config(
            settings,
            linger_ms=0,
            batch_num_messages=settings.buffer,
            delivery_timeout_ms=300_000,  # not REQUEST_TIMEOUT: a time-out here makes an outcome unknown
            queue_buffering_max_messages=MAX_RECORDS,
            queue_buffering_max_kbytes=MAX_BYTES >> 10,
            max_in_flight_requests_per_connection=1,  # with several, a new leader may write a record twice
            socket_nagle_disable=True,
        ) | {"acks": "all", "enable.idempotence": True}
        # The queue is bounded here, so that a request is refused before any of its records is sent. librdkafka's own
        # bound is larger, so that it is never reached: it counts other data too.
        self._max_records = int(self._config["queue.buffering.max.messages"])
        self._max_bytes = int(self._config["queue.buffering.max.kbytes"]) << 10
        self._config |= {
            "queue.buffering.max.messages": self._max_records + 1000,
            "queue.buffering.max.kbytes": (self._max_bytes >> 10) + 65536,
        }
        self._clients = Clients(self, self._config, settings.buffer_timeout_ms)
        self.rules = Rules(
            settings,
            int(self._config.get("message.max.bytes", 1_000_000)),
            changed=lambda: self._clients.adapt(self.rules.limit),
        )
        # A little before the edge gives up on the request, because the edge does not know the record.
        self._timeout_s = settings.request_timeout_ms / 1000 * 0.9
        self._flow, self._shed = Flow(self._timeout_s), shed
        self.shedding: str | None = None  # why nothing is accepted now, though there is room
        self._losses = Losses(self.name)
        self._loaded_until = 0.0
        self._pending: dict[Delivery, None] = {}  # in the order of their deadlines
        self._late: set[Delivery] = set()  # past their deadline, and still held by librdkafka
        self._sweeper: asyncio.TimerHandle | None = None
        self._leaders = LeaderWatch(settings, lambda: self._topics, self.renew, self._waits_long)
        self._stuck = 0  # records held by clients from before they were renewed
        self._opening: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[str | None] | None = None
        self.unconfirmed_bytes = 0
        self._drained: asyncio.Future[None] | None = None
        self._closed: str | None = "it has not started"

    # -- component

    async def start(self) -> None:
        """Raises ConfigError for properties that librdkafka refuses, Unsafe for a topic that would lose records.

        Without Kafka it starts, accepts nothing and goes on trying; readiness says so.
        """
        self.loop = asyncio.get_running_loop()
        self._clients.make()
        first_contact(self._settings)
        self._sweep()
        if not self._topics:
            self._closed = None
        else:
            self._closed = f"the topic {self._topics[0]} is being looked up"
            self._opening = asyncio.create_task(self._open())
            await asyncio.wait([self._opening], timeout=OPEN_S)
            if self._opening.done():
                self._opening.result()

    async def _open(self) -> None:
        for name in self._topics:
            while True:
                try:
                    await self.rules.look(name)
                    break
                except Unavailable as error:
                    self._closed = str(error)
                await asyncio.sleep(0.5)
        self._clients.adapt(self.rules.limit)
        self._closed = None
        self._leaders.start()

    async def stop(self) -> None:
        """Accept nothing more and wait, for a bounded time, until everything is stored; the rest is then Unknown."""
        self._closed = "it is stopping"
        await self._leaders.stop()
        if self._opening is not None:
            self._opening.cancel()
        try:
            if self._pending or self._late:
                self._drained = self.loop.create_future()
                await asyncio.wait([self._drained], timeout=self._settings.drain_timeout_ms / 1000 * 0.8)
        finally:  # also if the process has no time left to wait
            unfinished = [*self._pending, *self._late]
            for record in unfinished:
                self._fail(
                    record, Unknown("The service stopped before Kafka answered. The record may be stored all the same.")
                )
            self._losses.unconfirmed(len(unfinished), "the service stopped before Kafka answered")
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._clients.stop()

    async def ready(self) -> str | None:
        """None when Kafka answers and there is room, else the reason."""
        if self._closed is not None:
            return f"{self.name}: {self._closed}"
        if self.unconfirmed >= self._max_records or self.unconfirmed_bytes >= self._max_bytes:
            return f"{self.name}: the queue to Kafka is full"
        if self._flow.stalled:
            return f"{self.name}: {self._flow.refusal}"
        if self._opening is not None and self._opening.done() and (error := self._opening.exception()):
            return f"{self.name}: {error}"
        if self._topics and self._leaders.doubt:
            return f"{self.name}: {self._leaders.doubt}"
        if self._asking is None or self._asking.done():  # probes that come together ask Kafka once
            self._asking = asyncio.create_task(blocking(self._ask, self._clients.eager))
        return await asyncio.shield(self._asking)

    def alive(self) -> bool:
        """Whether the poll threads turn."""
        return self._clients.alive()

    def _ask(self, client: Client) -> str | None:
        try:
            client.ask(lambda producer: producer.list_topics(next(iter(self._topics), None), 1.0))
        except KafkaException as error:
            return f"{self.name}: Kafka at {self._settings.brokers} does not answer: {error.args[0].str()}"
        return None

    @property
    def crowded(self) -> bool:
        """Whether the queue is more than half full: callers that can wait should."""
        return 2 * self.unconfirmed > self._max_records or 2 * self.unconfirmed_bytes > self._max_bytes

    @property
    def unconfirmed(self) -> int:
        """Records that were accepted and hold room: neither stored nor refused, as far as is known."""
        return len(self._pending) + len(self._late)

    # -- sending

    def _admit(self, topic: str, sizes: Sequence[int], *, keyless: bool) -> None:
        """Raise before any of these records is sent; sizes in bytes, with headers.

        TooLarge (413), Invalid (422) and Unavailable (503) are definite: nothing was or will be written.
        """
        if self._closed is not None:
            raise Unavailable(CLOSED, inside=f"events are not accepted: {self._closed}")
        self.rules.check(topic, max(sizes), keyless=keyless)
        unconfirmed = self.unconfirmed
        if unconfirmed + len(sizes) > self._max_records or self.unconfirmed_bytes + sum(sizes) > self._max_bytes:
            raise Unavailable("The queue to Kafka is full. Try again.", retry_after=self._flow.retry_after(unconfirmed))
        if self.shedding is not None:
            raise Unavailable(f"{self.shedding}. Try again.", retry_after=self._flow.retry_after(unconfirmed))

    def send(
        self, topic: str, value: bytes, key: str | bytes | None, headers: Headers, *, gather: bool = False
    ) -> DeliveryFuture:
        """Accept a record. The future gives partition and offset when it is stored, or fails with Unknown (504) or the
        problem of Kafka's refusal.

        Raises at once, if nothing was or will be written: Unavailable (503), TooLarge (413), and Invalid (422) for a
        record without a key on a compacted topic.
        """
        size = size_of(value, key, headers)
        self._admit(topic, (size,), keyless=key is None)
        return self._send(self._clients.gathering if gather else self._choose(), topic, value, key, headers, size)

    def send_all(
        self, topic: str, records: Sequence[tuple[bytes, str | bytes | None, Headers]], *, gather: bool = False
    ) -> list[DeliveryFuture]:
        """Accept records (value, key, headers): all of them or, raising what ``send`` raises, none."""
        sizes = [size_of(value, key, headers) for value, key, headers in records]
        self._admit(topic, sizes, keyless=any(key is None for _, key, _ in records))
        client = self._clients.gathering if gather else self._choose()
        return [
            self._send(client, topic, value, key, headers, size)
            for (value, key, headers), size in zip(records, sizes, strict=True)
        ]

    def _choose(self) -> Client:
        now = self.loop.time()
        if len(self._pending) >= EAGER:
            self._loaded_until = now + LOADED_S
        return self._clients.gathering if now < self._loaded_until else self._clients.eager

    def _send(
        self, client: Client, topic: str, value: bytes, key: str | bytes | None, headers: Headers, size: int
    ) -> DeliveryFuture:
        future: DeliveryFuture = self.loop.create_future()
        now = self.loop.time()
        record = Delivery(client, size, now, now + self._timeout_s, future)
        self._pending[record] = None
        self.unconfirmed_bytes += size
        if self._observer is not None:
            headers = self._observer(topic, key, headers, future)
        self._produce(record, topic, value, key, headers)
        return future

    def _produce(self, record: Delivery, topic: str, value: bytes, key: str | bytes | None, headers: Headers) -> None:
        client, record.headers = record.client, headers
        if client.ended:  # it failed, and its successor is not made yet
            self._fail(record, self._clients.refusal(client) or failed("it has ended"))
            return
        try:
            client.producer.produce(topic, value, key, headers=headers, on_delivery=record)
        except BufferError:
            self._fail(record, Unavailable("The queue to Kafka is full. Try again."))
        except KafkaException as failure:
            # Nothing was written, and nothing will be: an error of produce() itself is definite.
            error = failure.args[0]
            if is_fatal(error):  # often before the poll thread gets the error
                self._fail(record, self._clients.refusal(client) or failed(error.str()))
                self.loop.call_soon(self.replace, client, error.str())
            else:
                problem = refusal(error, topic)
                if problem is not None:
                    self._losses.refused(problem, error.str(), self.loop.time())
                self._fail(record, problem or backend_away(f"the record cannot be sent: {error.str()}"))

    # -- reports, on the loop

    def settle(self, reported: list[Delivery]) -> None:
        confirmed, failed, reason = 0, 0, ""
        for record in reported:
            if record.error is None:
                confirmed += 1
                self._release(record)
                if not record.future.done():
                    record.future.set_result(record.metadata)
                elif record.fate is not None and not record.fate.done():
                    record.fate.set_result(record.metadata)
            elif isinstance(problem := record.meaning(), Unknown):
                failed, reason = failed + 1, record.error.str()
                self._fail(record, problem)
            elif not record.alone and concerns_batch(record.error):
                self._send_alone(record)
            else:
                self._losses.refused(problem, record.error.str(), self.loop.time())
                self._fail(record, problem)
        if confirmed:
            now = self.loop.time()
            self._flow.confirmed(confirmed, now - (reported[-1].deadline - self._timeout_s), now)
            if self.shedding is not None:
                self._look(now)  # a client that was just answered may send again at once
        self._losses.unconfirmed(failed, reason)

    def _send_alone(self, record: Delivery) -> None:
        """Send it again, in a batch of its own: Kafka may have refused the batch because of another record."""
        if record not in self._pending and record not in self._late:  # its outcome was said to be unknown
            return
        topic, value, key = record.written
        self.rules.look_again(topic)
        record.client, record.alone, record.error, record.sent = self._clients.alone, True, None, self.loop.time()
        self._produce(record, topic, value, key, record.headers)

    def _release(self, record: Delivery) -> None:
        if record in self._pending:
            del self._pending[record]
        elif record in self._late:
            self._late.discard(record)
        else:
            return
        self.unconfirmed_bytes -= record.size
        if self._drained is not None and not (self._pending or self._late or self._drained.done()):
            self._drained.set_result(None)

    def _fail(self, record: Delivery, error: Exception) -> None:
        self._release(record)
        if record.fate is not None and not record.fate.done():
            if isinstance(error, Unknown):
                record.fate.set_result(None)
            else:
                _set_exception(record.fate, error)
        _set_exception(record.future, error)

    def _sweep(self) -> None:
        now = self.loop.time()
        for record in self._pending:
            if record.deadline > now:
                break
            self._late.add(record)
            record.fate = self.loop.create_future()
            _set_exception(record.future, Late(LATE, record.fate))
        if self._late:
            for record in self._late & self._pending.keys():
                del self._pending[record]
        self._give_up()
        self._look(now)
        self._clients.leave(chain(self._pending, self._late))
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def _look(self, now: float) -> None:
        _waiting.set(self.unconfirmed)
        self._flow.look(self.unconfirmed - self._stuck, now)
        self.shedding = self._flow.refusal if self._shed else None

    # -- clients

    def _waits_long(self) -> bool:
        oldest = next(iter(self._pending), None)
        return oldest is not None and self.loop.time() - oldest.sent > LATE_S

    async def renew(self, topics: set[str]) -> None:
        """Another broker leads: send with new clients. The old ones keep what they hold."""
        self._clients.renew(first_brokers(self._settings))

    def _give_up(self) -> None:
        """Give up the records of clients that were renewed if others need their room; they may still be stored."""
        stuck = self._clients.stuck(chain(self._pending, self._late))
        if stuck and self.crowded:
            for record in stuck:
                self._fail(record, Unknown("Kafka did not confirm the record. It may be stored all the same."))
            self._losses.unconfirmed(len(stuck), "another broker leads the partition now")
            stuck = []
        self._stuck = len(stuck)

    def replace(self, client: Client, reason: str) -> None:
        """Replace a producer after a fatal error; the outcome of the records that it held is unknown.

        If it never sent anything they are not stored. The new one may fail at once too, so the next one waits.
        """
        if client.ended:
            return
        answer = failed(reason)
        lost = [record for record in (*self._pending, *self._late) if record.client is client]
        if client.attempts.nothing_sent:
            fate = answer
        else:
            fate = Unknown("The Kafka producer failed. The record may be stored all the same.")
            self._losses.unconfirmed(len(lost), reason)
        for record in lost:
            self._fail(record, fate)
        logger.error("%s: the producer failed and is replaced: %s", self.name, reason)
        self._clients.replace(client, answer)


def _set_exception(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # nobody may await it: no "exception was never retrieved"
