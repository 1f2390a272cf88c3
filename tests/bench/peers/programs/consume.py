"""A topic read from its start by a handler that does nothing; each record is decoded into the same pydantic model.

``client`` of the options says who reads: aiokafka, faststream, or faststream-batch. One JSON line is the result.
"""

import asyncio
import json
import sys
import time
from typing import Any, Literal

import uvloop
from pydantic import BaseModel

OPTIONS: dict[str, Any] = json.loads(sys.argv[1])
RECORDS: int = OPTIONS["records"]
WARM = RECORDS // 10
BATCH = 500


class Visit(BaseModel):
    page: str
    duration_ms: int


class Visited(BaseModel):
    type: Literal["Visited"]
    payload: Visit


class Clocks:
    """Read at the first record that counts and at the last."""

    def __init__(self) -> None:
        self.count = 0
        self.taken: list[tuple[float, float, int]] = []
        self.over = asyncio.Event()

    def add(self, count: int) -> None:
        before, self.count = self.count, self.count + count
        if before < WARM <= self.count or before < RECORDS <= self.count:
            self.taken.append((time.monotonic(), time.process_time(), self.count))
        if self.count >= RECORDS:
            self.over.set()


async def aiokafka(clocks: Clocks) -> None:
    """Lists of records. What was handled is committed once a second, and not what was only fetched."""
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        OPTIONS["topic"],
        bootstrap_servers=OPTIONS["brokers"],
        group_id=OPTIONS["group"],
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    committed = time.monotonic()
    while clocks.count < RECORDS:
        for records in (await consumer.getmany(timeout_ms=200, max_records=BATCH)).values():
            for record in records:
                Visited.model_validate_json(record.value)
            clocks.add(len(records))
        if time.monotonic() > committed + 1:
            await consumer.commit()
            committed = time.monotonic()
    await consumer.stop()


async def faststream(clocks: Clocks) -> None:
    """One at a time with its own policy, which commits every 5 s what was fetched; a batch is committed afterwards."""
    from faststream import AckPolicy
    from faststream.kafka import KafkaBroker

    broker = KafkaBroker(OPTIONS["brokers"], logger=None)
    shared = {"group_id": OPTIONS["group"], "auto_offset_reset": "earliest"}
    if OPTIONS["client"] == "faststream":

        @broker.subscriber(OPTIONS["topic"], **shared)
        async def one(event: Visited) -> None:
            clocks.add(1)
    else:

        @broker.subscriber(OPTIONS["topic"], **shared, batch=True, max_records=BATCH, ack_policy=AckPolicy.ACK)
        async def many(events: list[Visited]) -> None:
            clocks.add(len(events))

    await broker.start()
    await clocks.over.wait()
    await broker.stop()


async def main() -> list[tuple[float, float, int]]:
    clocks = Clocks()
    await (aiokafka if OPTIONS["client"] == "aiokafka" else faststream)(clocks)
    return clocks.taken


if __name__ == "__main__":
    first, last = uvloop.run(main())
    figures = {"requests": last[2] - first[2], "seconds": last[0] - first[0], "cpu_s": last[1] - first[1]}
    print(json.dumps(figures | {"failed": 0, "p50_ms": 0.0, "p99_ms": 0.0}))
