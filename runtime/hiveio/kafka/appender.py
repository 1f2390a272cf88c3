"""Appending to the transaction log: in order, in few and large requests, acknowledged by reading back."""

import asyncio
import threading
from collections.abc import Callable

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from hiveio.config import Settings
from hiveio.errors import TooLarge, Unavailable
from hiveio.kafka.client import client_config, make

EAGER = 8  # so many records in flight are sent at once each; beyond, they are gathered
LIMIT = 20_000  # records given to the client and not known to have left it

OnFailure = Callable[[str, str], None]  # transaction id, reason: the outcome of that append is unknown


class Appender:
    """Appends records in the order given. A record is known to be in the log only when it is read back.

    ``failed`` is called on the loop for a delivery that failed; the record may be in the log all the same, or come
    later. After a fatal error of the client a new one is made; all that the old one held is then unknown.
    """

    def __init__(self, settings: Settings, topic: str, failed: OnFailure) -> None:
        self._settings, self._topic, self._failed = settings, topic, failed
        self._loop = asyncio.get_running_loop()
        self._wait_s = settings.buffer_timeout_ms / 1000
        self._most = settings.buffer
        self._gathered: list[tuple[int, str, bytes]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._producer = self._client()
        self._replaced: list[Producer] = []  # after a fatal error; what they held is reported yet
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name=f"appender {topic}", daemon=True)

    def _client(self) -> Producer:
        def report(error: KafkaError | None, message: Message) -> None:
            self._report(client, error, message)

        def failed(error: KafkaError) -> None:  # without it poll() raises what is fatal, and its thread would end
            if error.fatal() or error.code() == KafkaError._FATAL:
                self._on_loop(self._renew_once, client, error)

        client = make(
            Producer,
            client_config(self._settings)
            | {
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 0,
                "delivery.timeout.ms": 300_000,  # a time-out would only make an outcome unknown; not REQUEST_TIMEOUT
                "queue.buffering.max.messages": LIMIT,
                "delivery.report.only.error": True,
                "on_delivery": report,
                "error_cb": failed,
                "socket.nagle.disable": True,
            },
        )
        return client

    def start(self) -> None:
        self._thread.start()

    def append(self, partition: int, key: str, value: bytes, *, in_flight: int = 0) -> None:
        """Hand a record over; ``in_flight`` are those appended and not read back, which decide whether it may wait.

        Raises TooLarge or Unavailable when it is certain that it was not appended.
        """
        if len(self._gathered) >= self._most:
            self._flush()
        if not self._gathered and in_flight < EAGER:
            self._produce(partition, key, value)
            return
        if len(self._producer) >= LIMIT - self._most:
            raise Unavailable("the append queue is full: Kafka does not take records as fast as they come")
        self._gathered.append((partition, key, value))
        if self._timer is None:
            self._timer = self._loop.call_later(self._wait_s, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, []
        for partition, key, value in gathered:
            try:
                self._produce(partition, key, value)
            except (TooLarge, Unavailable) as error:
                self._failed(key, str(error))

    def _produce(self, partition: int, key: str, value: bytes) -> None:
        try:
            self._producer.produce(self._topic, value, key, partition)
        except BufferError:
            raise Unavailable("the append queue is full: Kafka does not take records as fast as they come") from None
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise TooLarge(f"a transaction of {len(value)} bytes is larger than Kafka takes") from None
            if reason.fatal() or reason.code() == KafkaError._FATAL:
                self._renew(reason)
            raise Unavailable(f"the record could not be appended: {reason.str()}") from None

    def _renew(self, reason: KafkaError) -> None:
        old, self._producer = self._producer, self._client()
        old.purge(in_queue=True, in_flight=True, blocking=False)
        self._replaced.append(old)

    def _report(self, client: Producer, error: KafkaError | None, message: Message) -> None:
        if error is None:
            return
        key = message.key()
        self._on_loop(self._failed, key.decode() if key else "", error.str())
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._on_loop(self._renew_once, client, error)

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed
            pass

    def _renew_once(self, broken: Producer, reason: KafkaError) -> None:
        if self._producer is broken:
            self._renew(reason)

    def _poll(self) -> None:
        while not self._ended.is_set():
            self._producer.poll(0.1)
            for old in list(self._replaced):
                old.poll(0)
                if not len(old):
                    self._replaced.remove(old)

    async def stop(self, timeout_s: float) -> None:
        """Send what is gathered and wait until it has left, within the bound."""
        self._flush()
        await asyncio.to_thread(self._producer.flush, timeout_s)
        self._ended.set()
        await asyncio.to_thread(self._thread.join, 2.0)
