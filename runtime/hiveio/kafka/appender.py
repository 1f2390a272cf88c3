"""Appending to the transaction log: in order, in few and large requests, acknowledged by reading back."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message

from hiveio.config import Settings
from hiveio.errors import TooLarge, Unavailable, backend_away
from hiveio.kafka.client import client_config, is_fatal
from hiveio.kafka.delivery import Client
from hiveio.kafka.guard import tried
from hiveio.kafka.refusals import refusal
from hiveio.kafka.threads import blocking

EAGER = 8  # up to this number in flight, each record is sent at once; with more, records are gathered
MAX_QUEUED = 20_000  # records given to the client and not known to have left it
MAX_QUEUED_KBYTES = 262_144
REPORT_S = 1.0  # that a client which is replaced has to report the records that it held
MARGIN_S = 0.05  # of the time at which a record was handed over

OnFailure = Callable[[str, str, bool], None]


class Appender:
    """Appends records in the order given. A record is known to be in the log only when it is read back.

    ``failed`` is called on the loop with the transaction id, the reason and whether it is definite, for a delivery that
    failed. If it is, Kafka has refused the record; else it may be in the log all the same, or come later. After a fatal
    error the client is replaced; the outcome of all records that the old one held is then unknown.

    With several requests ``in_flight``, librdkafka may write a record twice when the leader of its partition changes,
    idempotent or not: it starts a new sequence.
    """

    def __init__(self, settings: Settings, topic: str, failed: OnFailure, in_flight: int) -> None:
        self.name = f"appender {topic}"
        self.loop = asyncio.get_running_loop()
        self._settings, self._topic, self._failed = settings, topic, failed
        self._wait_s = settings.buffer_timeout_ms / 1000
        self._max_gathered = settings.buffer
        self._gathered: list[tuple[int, str, bytes]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._config: dict[str, Any] = {
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 0,
            "max.in.flight": in_flight,
            "delivery.timeout.ms": 300_000,  # a time-out would only make an outcome unknown; not REQUEST_TIMEOUT
            "queue.buffering.max.messages": MAX_QUEUED,
            "delivery.report.only.error": True,
            "socket.nagle.disable": True,
        }

    def start(self) -> None:
        """Raises ConfigError for properties that librdkafka refuses."""
        self._client = self._new_client()

    def _new_client(self) -> Client:
        made: list[Client] = []

        def report(error: KafkaError | None, message: Message) -> None:
            self._report(made[0], error, message)

        config = client_config(self._settings, queue_buffering_max_kbytes=MAX_QUEUED_KBYTES)
        made.append(Client(self, config | self._config | {"on_delivery": report}))
        return made[0]

    def append(self, partition: int, key: str, value: bytes, *, in_flight: int = 0) -> None:
        """Append a record. ``in_flight`` counts those not read back yet: with few of them it is sent at once.

        Raises TooLarge or Unavailable if it was certainly not appended.
        """
        if len(self._gathered) >= self._max_gathered:
            self._flush()
        if not self._gathered and in_flight < EAGER:
            self._produce(partition, key, value)
            return
        if len(self._client.producer) >= MAX_QUEUED - self._max_gathered:
            raise Unavailable("the append queue is full: records come faster than Kafka accepts them")
        self._gathered.append((partition, key, value))
        if self._timer is None:
            self._timer = self.loop.call_later(self._wait_s, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, []
        for partition, key, value in gathered:
            try:
                self._produce(partition, key, value)
            except (TooLarge, Unavailable) as error:
                self._failed(key, str(error), True)

    def _produce(self, partition: int, key: str, value: bytes) -> None:
        if self._client.ended:
            raise Unavailable("this instance is shutting down")
        try:
            self._client.producer.produce(self._topic, value, key, partition)
        except BufferError:
            raise Unavailable("the append queue is full: records come faster than Kafka accepts them") from None
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise TooLarge(f"a transaction of {len(value)} bytes is larger than Kafka accepts") from None
            if is_fatal(reason):
                self.replace(self._client, reason.str())
            raise backend_away(f"the record could not be appended: {reason.str()}") from None

    def _report(self, client: Client, error: KafkaError | None, message: Message) -> None:
        # On the poll thread, and for failures alone: nobody needs a report of a record that is stored.
        if error is not None and not self._stopped:
            took_s = message.latency()
            once = took_s is not None and client.attempts.once(time.monotonic() - took_s - MARGIN_S)
            definite = once and refusal(error, self._topic) is not None
            try:
                key = (message.key() or b"").decode()
                self.loop.call_soon_threadsafe(self._failed, key, error.str(), definite)
            except RuntimeError:  # the loop is closed
                pass

    def settle(self, reported: Sequence[object]) -> None:
        """Nothing to do: a record is in the log when it is read back."""

    def renew(self) -> None:
        """Replace the client, so that it looks up the leaders; the outcome of what the old one held is unknown."""
        self.replace(self._client, "another broker leads")

    def replace(self, client: Client, reason: str) -> None:
        if client is self._client and not client.ended:
            self._client = self._new_client()
            self._ending = asyncio.ensure_future(self._end_client(client))

    async def _end_client(self, client: Client) -> None:
        client.producer.purge(blocking=False)  # it reports the records that it held as failed
        await asyncio.sleep(REPORT_S)
        await client.end()

    async def stop(self, timeout_s: float) -> None:
        """Send what is gathered and wait for its delivery, at most this long."""
        self._flush()
        await blocking(tried, lambda: self._client.ask(lambda producer: producer.flush(timeout_s)))
        self._stopped = True  # the outcome of what is given up now is unknown, and nobody waits for it
        await self._client.end()
