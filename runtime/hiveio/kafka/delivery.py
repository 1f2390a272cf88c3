"""One librdkafka producer, its poll thread, and the records that it has to deliver."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from hiveio.errors import Problem, Unknown
from hiveio.kafka.client import make, start_thread
from hiveio.kafka.guard import text, tried
from hiveio.kafka.reachability import is_connection_error
from hiveio.kafka.refusals import Attempts, refusal
from hiveio.kafka.threads import blocking
from hiveio.types import DeliveryFuture, RecordMetadata

TURN_S = 0.1  # the longest the poll thread waits
logger = logging.getLogger("hiveio.sender")

Headers = list[tuple[str, str | bytes | None]]
T = TypeVar("T")


class Late(Unknown):
    """Not confirmed by its deadline. ``fate`` gives the record's metadata if Kafka confirms it later, and None if it
    never will; it fails as the record's own future would have if Kafka refuses the record later."""

    urn = "urn:hiveio:problem:unknown"

    def __init__(self, detail: str, fate: "asyncio.Future[RecordMetadata | None]") -> None:
        super().__init__(detail)
        self.fate = fate


class Owner(Protocol):
    """Gets the reports, on its loop."""

    name: str

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def settle(self, reported: list[Any]) -> None: ...
    def replace(self, client: "Client", reason: str) -> None: ...


class Delivery:
    """A record to be delivered. It is its own delivery callback, which saves an object for each record."""

    __slots__ = (
        "alone",
        "client",
        "deadline",
        "error",
        "fate",
        "future",
        "headers",
        "metadata",
        "sent",
        "size",
        "written",
    )

    def __init__(self, client: "Client", size: int, sent: float, deadline: float, future: DeliveryFuture) -> None:
        self.client, self.size, self.sent, self.deadline, self.future = client, size, sent, deadline, future
        self.alone = False  # it was sent again, in a batch of its own
        self.error: KafkaError | None = None
        self.headers: Headers = []  # the one part of a record that a report does not contain
        self.written: tuple[str, bytes, bytes | None] = ("", b"", None)  # topic, value and key of a record that failed
        self.metadata = RecordMetadata(-1, -1)
        self.fate: asyncio.Future[RecordMetadata | None] | None = None  # once it is late

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        # On the poll thread.
        if error is None:
            offset = message.offset()  # None: an earlier attempt had stored it, and Kafka does not say where
            self.metadata = RecordMetadata(message.partition() or 0, -1 if offset is None else offset)
        else:
            self.error = error
            self.written = message.topic() or "", message.value() or b"", message.key()
        self.client.reported.append(self)

    def meaning(self) -> Problem:
        """The answer to its error. An earlier attempt without an answer may be stored, whatever the last one says."""
        assert self.error is not None
        if self.client.attempts.once(self.sent) and (problem := refusal(self.error, self.written[0])):
            return problem
        return Unknown("Kafka did not confirm the record. It may be stored all the same.")


class Client:
    """One librdkafka producer with its poll thread, which begins at once. It is replaced after a fatal error."""

    pause_s = 0.0  # between two polls: reports are served as they come

    def __init__(self, owner: Owner, config: dict[str, Any]) -> None:
        """Raises ConfigError for properties that librdkafka refuses."""
        self.owner, self.config = owner, config
        self.reported: list[Any] = []  # what its owner settles
        self.ended = False
        self.failure: object | None = None  # why it has failed for good
        self.turned = time.monotonic()
        self.attempts = Attempts(config["logger"].log)
        listening = {"debug": ",".join({"eos", *config.get("debug", "eos").split(",")}), "logger": self.attempts}
        self.producer: Producer = make(Producer, config | listening | {"error_cb": self._on_error})
        self._in_use = threading.Lock()  # a producer must not be closed while another thread waits in it
        self._thread = start_thread(f"{owner.name} poll", self._run)

    def ask(self, call: Callable[[Producer], T]) -> T:
        """Make a blocking call, during which the producer is not closed. Raises KafkaException, also after its end."""
        with self._in_use:
            if self.ended:
                raise KafkaException(KafkaError(KafkaError._STATE, "the producer has ended"))
            return call(self.producer)

    async def end(self) -> None:
        """Stop polling, and give up the records that it still holds. Its threads end a moment later.

        Nobody calls ``producer`` once ``ended`` is true.
        """
        self.ended = True
        await blocking(self._thread.join, 5.0)
        tried(lambda: self.producer.purge(blocking=False))  # close would wait for these records
        start_thread(f"{self.owner.name} end", self._close)

    def _close(self) -> None:
        # Left alone it would stay: its callbacks refer to this client, and the collector of cycles runs rarely.
        self._thread.join()
        with self._in_use:
            tried(self.producer.close)

    def _on_error(self, error: KafkaError) -> None:
        if not is_connection_error(error):
            logger.warning("%s: %s", self.owner.name, error.str())

    def _run(self) -> None:
        poll, loop = self.producer.poll, self.owner.loop
        while not self.ended and not loop.is_closed():
            # A fatal error is raised here, and not given to error_cb.
            failure = tried(lambda: poll(0 if self.pause_s else TURN_S))
            self.turned = time.monotonic()
            # poll serves all reports of a produce response before it returns: one wake of the loop for all
            reported, self.reported = self.reported, []
            if reported:
                tried(lambda: loop.call_soon_threadsafe(self.owner.settle, reported))  # noqa: B023
            if failure is not None:
                self.failure, reason = failure, text(failure)
                tried(lambda: loop.call_soon_threadsafe(self.owner.replace, self, reason))  # noqa: B023
                time.sleep(TURN_S)  # it goes on until it is ended: the records that it held are still reported
            elif self.pause_s:
                time.sleep(self.pause_s)
