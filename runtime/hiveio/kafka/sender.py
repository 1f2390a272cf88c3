"""The batching sender: records in, places in the log out. Idempotent, acks=all, every delivery awaited."""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence

from confluent_kafka import KafkaError, KafkaException, Producer

from hiveio import metrics
from hiveio.config import Settings
from hiveio.errors import TooLarge, Unavailable, Unknown
from hiveio.kafka.client import client_config, first_contact, is_fatal
from hiveio.kafka.delivery import Client, Place, Record, Stored
from hiveio.kafka.flow import Flow
from hiveio.kafka.topics import FOREVER, ensure_topic
from hiveio.service import Observer

# Few large requests cost a third of the CPU of many small ones, and any linger costs a lone client 1.5 ms. So there are
# two producers, one without linger and one with: measured, gathering in front of a single one saves little, because
# librdkafka sends what it has at the first record of a group.
EAGER = 8  # so many records in flight go out at once, each; beyond, they are gathered
LOADED_S = 0.02  # and so long after that too
MOST_RECORDS, MOST_BYTES = 20_000, 64 << 20  # taken and not reported; beyond, 503
OVERHEAD = 1000  # bytes of a record batch and a record around key, value and headers, more than enough
SWEEP_S = 0.05  # how late a deadline may be noticed
STUCK_S = 30.0
OPEN_S = 2.0  # the longest the start waits for the topic: probes are not answered before
logger = logging.getLogger("hiveio.sender")

_waiting = metrics.Gauge(
    "hiveio_records_waiting", "Records taken that Kafka has not confirmed", multiprocess_mode="livesum"
)
_unconfirmed = metrics.Counter("hiveio_records_unconfirmed_total", "Records taken that Kafka will not confirm any more")

Headers = list[tuple[str, str | bytes | None]]


class Late(Unknown):
    """Not confirmed by its deadline. ``fate`` gives its place if it is confirmed later, or None when it never will."""

    urn = "urn:hiveio:problem:unknown"

    def __init__(self, detail: str, fate: "asyncio.Future[Place | None]") -> None:
        super().__init__(detail)
        self.fate = fate


class Sender:
    """Sends records; each future is done when Kafka has stored its record, or its outcome is unknown.

    - Idle, a record goes out at once; with ``EAGER`` in flight, records are gathered for at most
      ``settings.buffer_timeout_ms`` or until there are ``settings.buffer`` of them. What one ``send_all`` takes is
      stored in order, per key or partition, and so is what is sent after an answer, or all with ``gather``.
    - What is taken and not reported is bounded in number and bytes; beyond that ``send`` raises Unavailable (503), and
      with ``shed`` so it does while Kafka does not confirm records fast enough for the deadline (see ``Flow``).
    - Shortly before ``settings.request_timeout_ms`` a future fails with Unknown (504); the record may still be stored,
      and keeps its room in the queue until librdkafka gives up on it (``delivery.timeout.ms``): memory stays bounded.
    - ``topics`` are made at the start when they are missing; nothing is taken before they are there.
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
            delivery_timeout_ms=300_000,  # a time-out here makes an outcome unknown; it is not REQUEST_TIMEOUT
            queue_buffering_max_messages=MOST_RECORDS,
            queue_buffering_max_kbytes=MOST_BYTES >> 10,
            socket_nagle_disable=True,
        ) | {"acks": "all", "enable.idempotence": True}
        # The queue is bounded here, so that it is refused before any of a request's records is sent. librdkafka's own
        # bound counts its bookkeeping too: it is larger, and never met.
        self._most_records = int(self._config["queue.buffering.max.messages"])
        self._most_bytes = int(self._config["queue.buffering.max.kbytes"]) << 10
        self._config |= {
            "queue.buffering.max.messages": self._most_records + 1000,
            "queue.buffering.max.kbytes": (self._most_bytes >> 10) + 65536,
        }
        self._limit = int(self._config.get("message.max.bytes", 1_000_000))
        # A little before the edge gives up on the request, because the edge does not know the record.
        self._timeout_s = settings.request_timeout_ms / 1000 * 0.9
        self._flow = Flow(self._timeout_s)
        self._shed = shed
        self._shedding: str | None = None  # why nothing is taken now, though there is room
        self._clients: list[Client] = []  # the one that sends at once first, the one that gathers last
        self._loaded_until = 0.0
        self._pending: dict[Record, None] = {}  # in the order of their deadlines
        self._late: set[Record] = set()  # past their deadline, and still in librdkafka's hands
        self._sweeper: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[str | None] | None = None
        self._bytes = 0
        self._drained: asyncio.Future[None] | None = None
        self._closed: str | None = "it has not started"

    # -- component

    async def start(self) -> None:
        """Raises ConfigError for properties that librdkafka refuses, Unsafe for a topic that is not as it should be.

        Without Kafka it starts all the same, takes nothing, and goes on trying: readiness says so.
        """
        self.loop = asyncio.get_running_loop()
        self._make_clients()
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
        # What a topic does not take is refused before it is sent: a failed delivery would be an unknown outcome.
        limit = self._limit
        for name in self._topics:
            while True:
                try:
                    topic = await ensure_topic(self._settings, name, FOREVER)
                    break
                except Unavailable as error:
                    self._closed = str(error)
                await asyncio.sleep(0.5)
            limit = min(limit, int(topic.config.get("max.message.bytes", limit)))
        if limit < self._limit:
            self._limit = limit
            self._config |= {"message.max.bytes": max(limit, 1000), "batch.size": limit}
            await self._end_clients()
            self._make_clients()
        self._closed = None

    def _make_clients(self) -> None:
        lingers = sorted({int(self._config["linger.ms"]), self._settings.buffer_timeout_ms})
        self._clients = [Client(self, self._config | {"linger.ms": linger_ms}) for linger_ms in lingers]

    async def stop(self) -> None:
        """Take nothing more and wait until everything taken is stored, bounded; what is not is then Unknown."""
        self._closed = "it is stopping"
        bound_s = self._settings.drain_timeout_ms / 1000 * 0.8
        if self._opening is not None:
            self._opening.cancel()
        try:
            if self._pending or self._late:
                self._drained = self.loop.create_future()
                await asyncio.wait([self._drained], timeout=bound_s)
        finally:  # also when the process has no time left for it
            left = [*self._pending, *self._late]
            for record in left:
                self._fail(record, Unknown("the service stopped before Kafka answered"))
            self._unconfirmed(len(left), "the service stopped before Kafka answered")
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._end_clients()

    async def ready(self) -> str | None:
        """None when Kafka answers and there is room, else the reason."""
        if self._closed is not None or not self._clients:
            return f"{self.name}: {self._closed}"
        if len(self._pending) + len(self._late) >= self._most_records or self._bytes >= self._most_bytes:
            return f"{self.name}: the queue to Kafka is full"
        if self._flow.stalled:
            return f"{self.name}: {self._flow.refusal}"
        if self._opening is not None and self._opening.done() and (error := self._opening.exception()):
            return f"{self.name}: {error}"
        if self._asking is None or self._asking.done():  # probes that come together ask Kafka once
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask, self._clients[0].producer))
        return await asyncio.shield(self._asking)

    def alive(self) -> bool:
        """Whether the poll threads turn."""
        return all(time.monotonic() - client.turned < STUCK_S for client in self._clients)

    def _ask(self, producer: Producer) -> str | None:
        try:
            producer.list_topics(self._topics[0], 1.0) if self._topics else producer.list_topics(timeout=1.0)
        except KafkaException as error:
            return f"{self.name}: Kafka at {self._settings.brokers} does not answer: {error.args[0].str()}"
        return None

    @property
    def crowded(self) -> bool:
        """Whether the queue is more than half full: who can wait should."""
        return 2 * (len(self._pending) + len(self._late)) > self._most_records or 2 * self._bytes > self._most_bytes

    # -- sending

    def admit(self, sizes: Sequence[int]) -> None:
        """Raise what ``send`` would raise for one of these records, before any is sent; sizes in bytes, with headers.

        TooLarge (413) and Unavailable (503) are definite: nothing was or will be written.
        """
        if self._closed is not None:
            raise Unavailable(f"events are not taken: {self._closed}")
        if max(sizes) + OVERHEAD > self._limit:
            raise TooLarge(f"a record of {max(sizes)} bytes is larger than Kafka takes ({self._limit} bytes)")
        held = len(self._pending) + len(self._late)
        if held + len(sizes) > self._most_records or self._bytes + sum(sizes) > self._most_bytes:
            raise Unavailable("the queue to Kafka is full", retry_after=self._flow.retry_after(held))
        if self._shedding is not None:
            raise Unavailable(self._shedding, retry_after=self._flow.retry_after(held))

    def send(
        self, topic: str, value: bytes, key: str | bytes | None, headers: Headers, *, gather: bool = False
    ) -> Stored:
        """Take a record. The future gives partition and offset when it is stored, or fails with Unknown (504).

        Raises Unavailable or TooLarge at once, see ``admit``.
        """
        size = _size(value, key, headers)
        self.admit((size,))
        return self._send(self._clients[-1] if gather else self._choose(), topic, value, key, headers, size)

    def send_all(
        self,
        topic: str,
        records: Sequence[tuple[bytes, str | bytes | None, Headers]],
        *,
        gather: bool = False,
    ) -> list[Stored]:
        """Take records (value, key, headers), all of them or, raising what ``admit`` raises, none."""
        sizes = [_size(value, key, headers) for value, key, headers in records]
        self.admit(sizes)
        client = self._clients[-1] if gather else self._choose()
        return [
            self._send(client, topic, value, key, headers, size)
            for (value, key, headers), size in zip(records, sizes, strict=True)
        ]

    def _choose(self) -> Client:
        now = self.loop.time()
        if len(self._pending) >= EAGER:
            self._loaded_until = now + LOADED_S
        return self._clients[-1 if now < self._loaded_until else 0]

    def _send(
        self,
        client: Client,
        topic: str,
        value: bytes,
        key: str | bytes | None,
        headers: Headers,
        size: int,
    ) -> Stored:
        future: Stored = self.loop.create_future()
        record = Record(client, size, self.loop.time() + self._timeout_s, future)
        self._pending[record] = None
        self._bytes += size
        if self._observer is not None:
            headers = self._observer(topic, key, headers, future)
        try:
            client.producer.produce(topic, value, key, headers=headers, on_delivery=record)
        except BufferError:
            self._fail(record, Unavailable("the queue to Kafka is full"))
        except KafkaException as failure:
            # Nothing was written, and nothing will be: an error of produce() itself is definite.
            error = failure.args[0]
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                self._fail(record, TooLarge(f"the record is larger than Kafka takes: {error.str()}"))
            else:
                self._fail(record, Unavailable(f"the record cannot be sent: {error.str()}"))
                if is_fatal(error):
                    self.loop.call_soon(self.replace, client, error.str())
        return future

    # -- reports, on the loop

    def settle(self, reported: list[Record]) -> None:
        confirmed, failed, reason = 0, 0, ""
        for record in reported:
            if record.error is None:
                confirmed += 1
                self._release(record)
                if not record.future.done():
                    record.future.set_result(record.place)
                elif record.fate is not None and not record.fate.done():
                    record.fate.set_result(record.place)
            else:
                # Whatever the error: librdkafka may have sent it before, and it may have been stored.
                failed, reason = failed + 1, record.error.str()
                self._fail(record, Unknown(f"Kafka did not confirm the record: {reason}"))
        if confirmed:
            now = self.loop.time()
            self._flow.confirmed(confirmed, now - (reported[-1].deadline - self._timeout_s), now)
            if self._shedding is not None:
                self._look(now)  # whoever was just answered may come again at once
        self._unconfirmed(failed, reason)

    def _unconfirmed(self, count: int, reason: str) -> None:
        """Where nobody waits for an answer this line is the only trace."""
        if count:
            _unconfirmed.inc(count)
            logger.error(
                "%s: %d records were taken and not confirmed; they may be stored or lost: %s", self.name, count, reason
            )

    def _release(self, record: Record) -> None:
        if record in self._pending:
            del self._pending[record]
        elif record in self._late:
            self._late.discard(record)
        else:
            return
        self._bytes -= record.size
        if self._drained is not None and not (self._pending or self._late or self._drained.done()):
            self._drained.set_result(None)

    def _fail(self, record: Record, error: Exception) -> None:
        self._release(record)
        if record.fate is not None and not record.fate.done():
            record.fate.set_result(None)
        _set_exception(record.future, error)

    def _sweep(self) -> None:
        now = self.loop.time()
        for record in self._pending:
            if record.deadline > now:
                break
            self._late.add(record)
            record.fate = self.loop.create_future()
            _set_exception(record.future, Late("Kafka did not confirm the record within REQUEST_TIMEOUT", record.fate))
        if self._late:
            for record in self._late & self._pending.keys():
                del self._pending[record]
        self._look(now)
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def _look(self, now: float) -> None:
        held = len(self._pending) + len(self._late)
        _waiting.set(held)
        self._flow.look(held, now)
        if self._shed:
            self._shedding = self._flow.refusal

    # -- clients

    def replace(self, client: Client, reason: str) -> None:
        """After a fatal error: a new producer; the outcome of all that the old one held is unknown."""
        if client not in self._clients:
            return
        logger.error("%s: the producer failed and is replaced: %s", self.name, reason)
        self._clients[self._clients.index(client)] = Client(self, client.config)
        lost = [record for record in (*self._pending, *self._late) if record.client is client]
        for record in lost:
            self._fail(record, Unknown(f"the Kafka producer failed: {reason}"))
        self._unconfirmed(len(lost), reason)
        self._ending = asyncio.ensure_future(client.end())

    async def _end_clients(self) -> None:
        clients, self._clients = self._clients, []
        await asyncio.gather(*(client.end() for client in clients))


def _size(value: bytes, key: str | bytes | None, headers: Headers) -> int:
    """Of key, value and headers; a text of other than ASCII counts a little less than its bytes: see OVERHEAD."""
    size = len(value) + (len(key) if key else 0)
    for name, text in headers:
        size += len(name) + (len(text) if text else 0)
    return size


def _set_exception(future: Stored, error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # a request that has gone away does not ask: no "exception was never retrieved"
