"""Memory stays flat. For the full figure: ``HIVEIO_RECORDS=1000000 .venv/bin/pytest -s`` and this file."""

import os

import httpx
import pytest

from tests.integration.conftest import Make

RECORDS = int(os.environ.get("HIVEIO_RECORDS", "150000"))
BATCH = 25_000  # more than the queue to Kafka takes
ACTOR = """
from hiveio import Actor, Event

class Reading(Event):
    value: int
    text: str

class Sensor(Actor):
    path = "/sensors/{id}"

    def perform(self, message: Reading) -> Reading:
        return message
"""


@pytest.mark.timeout(1800, func_only=True)
@pytest.mark.parametrize("ack", ["stored", "queued"])
def test_memory_is_flat_over_many_records(producer: Make, ack: str) -> None:
    line = b'{"type":"Reading","payload":{"value":%d,"text":"' + b"x" * 150 + b'"}}\n'
    with producer(PRODUCER_ACK=ack) as role, httpx.Client(timeout=120) as client:
        (worker,) = role.workers()
        sizes: list[int] = []
        for start in range(0, RECORDS, BATCH):
            body = b"".join(line % number for number in range(start, start + BATCH))
            headers = {"content-type": "application/x-ndjson"}
            assert client.post(role.url + "/sensors/1", content=body, headers=headers).status_code == 200
            sizes.append(worker.memory_info().rss)
    warm = len(sizes) // 3
    grown = max(sizes[warm:]) - max(sizes[:warm])
    print(f"\n{ack}: {RECORDS} records, {max(sizes) >> 20} MiB at most, {grown >> 10} KiB more after the first third")
    assert grown < 16 << 20
