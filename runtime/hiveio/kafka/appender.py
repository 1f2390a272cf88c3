"""Appending to the transaction log: in order, in few and large requests, acknowledged by reading back."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message

from hiveio.config import Settings
from hiveio.errors import TooLarge, Unavailable, backend_away
from hiveio.kafka.client import client_config, is_fatal
from hiveio.kafka.delivery import TURN_S, Client
from hiveio.kafka.guard import tried
from hiveio.kafka.refusals import refusal
from hiveio.kafka.threads import blocking

# Records of a partition that are sent one by one; further ones are gathered until those before them are read back. With
# more than five on their way, librdkafka would poll without a pause as long as one more record waits in it: it allows
# the partition no further request then, and looks at once whether it does.
UNDER_WAY = 5
HOLD_S = 0.05  # for which gathered records wait for those before them
MAX_QUEUED = 20_000  # records given to the client and not known to have left it
MAX_QUEUED_KBYTES = 262_144
REPORT_S = 1.0  # that a client which is replaced has to report the records that it held
FULL = "the append queue is full: records come faster than Kafka accepts them"
MARGIN_S = 0.05  # of the time at which a record was handed over

OnFailure = Callable[[str, str, bool], None]


class Unhurried(Client):
    """Nobody waits for its reports: those of stored records say nothing, and for each the poll thread takes the GIL."""

    pause_s = TURN_S


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
        self._max_gathered = settings.buffer
        self._gathered: dict[int, list[dict[str, Any]]] = {}  # by partition, as ``produce_batch`` takes them
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
        made.append(Unhurried(self, config | self._config | {"on_delivery": report}))
        return made[0]

    def append(self, partition: int, key: str, value: bytes, *, in_flight: int = 0) -> None:
        """Append a record. ``in_flight`` counts those of the partition that were appended and are not read back.

        Raises TooLarge or Unavailable if it was certainly not appended.
        """
        if len(self._gathered.get(partition, ())) >= self._max_gathered:
            self._flush(partition)
        if in_flight < UNDER_WAY and partition not in self._gathered:
            self._produce(partition, key, value)
            return
        if len(self._client.producer) >= MAX_QUEUED - self._max_gathered:
            raise Unavailable(FULL)
        self._gathered.setdefault(partition, []).append({"key": key, "value": value})
        if self._timer is None:
            self._timer = self.loop.call_later(HOLD_S, self._flush_all)

    def read_back(self, partition: int, in_flight: int) -> None:
        """A record was read back, or is no longer waited for. ``in_flight`` is as for ``append``."""
        gathered = self._gathered.get(partition)
        if gathered is not None and in_flight <= len(gathered):
            self._flush(partition)

    def _flush_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for partition in list(self._gathered):
            self._flush(partition)

    def _flush(self, partition: int) -> None:
        self._produce_group(partition, self._gathered.pop(partition))
        if not self._gathered and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _produce_group(self, partition: int, group: list[dict[str, Any]]) -> None:
        """In one call, so that librdkafka finds all of them when it makes its next request."""
        client = self._client
        if not client.ended:
            client.producer.produce_batch(self._topic, group, partition)
        for record in group:
            if client.ended or "_error" in record:
                refused = self._refused(client, record.get("_error"), record["value"])
                self._failed(record["key"], str(refused), True)

    def _produce(self, partition: int, key: str, value: bytes) -> None:
        client = self._client
        try:
            if client.ended:
                raise self._refused(client, None, value)
            client.producer.produce(self._topic, value, key, partition)
        except BufferError:
            raise self._refused(client, KafkaError(KafkaError._QUEUE_FULL), value) from None
        except KafkaException as error:
            raise self._refused(client, error.args[0], value) from None

    def _refused(self, client: Client, error: KafkaError | None, value: bytes) -> TooLarge | Unavailable:
        """Why the client has not taken a record; without an error it has ended."""
        if error is None:
            return Unavailable("this instance is shutting down")
        if error.code() == KafkaError._QUEUE_FULL:
            return Unavailable(FULL)
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return TooLarge(f"a transaction of {len(value)} bytes is larger than Kafka accepts")
        if is_fatal(error):
            self.replace(client, error.str())
        return backend_away(f"the record could not be appended: {error.str()}")

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
        self._flush_all()
        await blocking(tried, lambda: self._client.ask(lambda producer: producer.flush(timeout_s)))
        self._stopped = True  # the outcome of what is given up now is unknown, and nobody waits for it
        await self._client.end()
