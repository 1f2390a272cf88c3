"""The usual FastAPI service that validates a message, writes an event to Kafka and answers once Kafka has stored it.

``client`` of the settings says how it writes: confluent-kafka, aiokafka or faststream.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel
from serve import SETTINGS, serve

BROKERS, TOPIC, LINGER_MS = SETTINGS["brokers"], SETTINGS["topic"], SETTINGS["linger_ms"]


class Visit(BaseModel):
    page: str
    duration_ms: int


class Message(BaseModel):
    type: Literal["Visit"]
    payload: Visit


class Visited(BaseModel):
    type: Literal["Visited"] = "Visited"
    payload: Visit


class Confluent:
    """A thread polls, and hands each delivery report to the event loop."""

    async def start(self) -> None:
        from confluent_kafka import Producer

        self.loop = asyncio.get_running_loop()
        self.producer = Producer(
            {"bootstrap.servers": BROKERS, "acks": "all", "enable.idempotence": True, "linger.ms": LINGER_MS}
        )
        self.ended = False
        self.thread = threading.Thread(target=self.poll)
        self.thread.start()

    def poll(self) -> None:
        while not self.ended:
            self.producer.poll(0.1)

    async def publish(self, key: str, event: Visited) -> None:
        stored: asyncio.Future[None] = self.loop.create_future()

        def report(error: Any, message: Any) -> None:
            self.loop.call_soon_threadsafe(settle, stored, error)

        self.producer.produce(TOPIC, event.model_dump_json(), key, on_delivery=report)
        await stored

    async def stop(self) -> None:
        self.producer.flush(10)
        self.ended = True
        self.thread.join()


def settle(stored: asyncio.Future[None], error: Any) -> None:
    if stored.done():
        return
    if error is None:
        stored.set_result(None)
    else:
        stored.set_exception(RuntimeError(str(error)))


class Aiokafka:
    async def start(self) -> None:
        from aiokafka import AIOKafkaProducer

        self.producer = AIOKafkaProducer(
            bootstrap_servers=BROKERS, acks="all", enable_idempotence=True, linger_ms=LINGER_MS
        )
        await self.producer.start()

    async def publish(self, key: str, event: Visited) -> None:
        await self.producer.send_and_wait(TOPIC, event.model_dump_json().encode(), key.encode())

    async def stop(self) -> None:
        await self.producer.stop()


class FastStream:
    async def start(self) -> None:
        from faststream.kafka import KafkaBroker

        self.broker = KafkaBroker(BROKERS, acks="all", enable_idempotence=True, linger_ms=LINGER_MS, logger=None)
        await self.broker.start()

    async def publish(self, key: str, event: Visited) -> None:
        await self.broker.publish(event, TOPIC, key=key.encode())

    async def stop(self) -> None:
        await self.broker.stop()


client = {"confluent-kafka": Confluent, "aiokafka": Aiokafka, "faststream": FastStream}[SETTINGS["client"]]()


@contextlib.asynccontextmanager
async def lifespan(application: FastAPI) -> AsyncIterator[None]:
    await client.start()
    yield
    await client.stop()


application = FastAPI(lifespan=lifespan)


@application.get("/readyz")
async def readyz() -> None:
    """The Role of the tests waits for it."""


@application.post("/visits/{id}")
async def store(id: str, message: Message) -> Visited:
    event = Visited(payload=message.payload)
    await client.publish(id, event)
    return event


if __name__ == "__main__":
    serve(application)
