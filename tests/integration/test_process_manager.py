"""A stream processor with a process manager: events of another topic drive it, over a kill and a reset group."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import redis as redis_client

from hiveio.transaction.process import WAITS
from tests.integration.conftest import Make
from tests.integration.test_outbox import commands
from tests.integration.test_stream_processor import metric
from tests.integration.topics import make_topic, write
from tests.process import ROOT, wait_until
from tests.services import Kafka, Redis

ACTOR = (ROOT / "tests" / "actors" / "fulfilment.py").read_text("utf-8")
COUNT = 40


def test_each_event_has_its_effect_once_whatever_becomes_of_the_instance_and_of_its_group(
    processor: Make, kafka: Kafka, redis: Redis, topic: str
) -> None:
    orders = f"{topic}-orders"
    make_topic(kafka.brokers, orders)
    settings = {"EVENT_STORE_CONSUMER_TOPIC": orders, "EVENT_STORE_FROM_START": "true"}

    def send(kind: str, number: int, **payload: object) -> None:
        event = {"type": kind, "payload": {"order": f"o{number}", **payload}}
        write(kafka.brokers, orders, [(0, f"o{number}", json.dumps(event).encode(), {})])

    with processor(EVENT_STORE_GROUP_ID=topic, **settings) as role:
        for number in range(COUNT):
            send("OrderPlaced", number, amount=number)
        wait_until(lambda: httpx.get(f"{role.url}/fulfilments/o3").status_code == 200, 30, "it has begun")
        role.kill()
    with processor(EVENT_STORE_GROUP_ID=f"{topic}-another", **settings) as role:
        for number in range(0, COUNT, 2):
            send("PaymentReserved", number)

        def status(number: int) -> str:
            found = httpx.get(f"{role.url}/fulfilments/o{number}")
            return str(found.json()["payload"]["status"]) if found.status_code == 200 else ""

        wait_until(lambda: status(COUNT - 2) == "paid", 30, "all are handled")
        assert [status(number) for number in range(COUNT)] == ["paid", "started"] * (COUNT // 2)
        assert httpx.post(f"{role.url}/fulfilments/o1", json={"type": "Abandon"}).json()["type"] == "GivenUp"
        assert httpx.post(f"{role.url}/fulfilments/o1", json={"type": "OrderPlaced"}).status_code == 422
        wait_until(lambda: len(commands(kafka, topic)) == COUNT + COUNT // 2, 30, "all commands are published")
        kinds = [json.loads(text)["type"] for _, text, _ in commands(kafka, topic)]
        assert kinds.count("ReservePayment") == COUNT
        assert kinds.count("Ship") == COUNT // 2

        def verify() -> "subprocess.CompletedProcess[str]":
            tool = [str(Path(sys.executable).parent / "hiveio"), "verify"]
            return subprocess.run(tool, env=role.environ, capture_output=True, text=True, timeout=90, check=False)

        wait_until(lambda: verify().returncode == 0, 60, "the cache is the fold of the log")

        def saga(*words: str) -> "subprocess.CompletedProcess[str]":
            tool = [str(Path(sys.executable).parent / "hiveio"), "saga", *words]
            return subprocess.run(tool, env=role.environ, capture_output=True, text=True, timeout=90, check=False)

        assert saga("list").stdout == "stuck processes: 0\n"
        send("OrderPlaced", COUNT, amount=-1)
        send("PaymentReserved", COUNT)
        name = f"Fulfilment/o{COUNT}"
        waits = f"{name}  waiting inputs: 2  Rejected: a negative amount\nstuck processes: 1\n"
        wait_until(lambda: saga("list").stdout == waits, 60, "it is stuck")
        assert "waits  " in saga("show", name).stdout
        again = saga("retry", name)
        assert (again.returncode, again.stdout) == (1, f"{name} is stuck: Rejected: a negative amount\n"), again.stderr
        skipped = saga("skip", name)
        assert (skipped.returncode, skipped.stdout) == (0, f"{name} goes on\n"), skipped.stderr
        assert saga("list").stdout == "stuck processes: 0\n"
        assert saga("skip", name).stdout == f"{name}: nothing waits\n"
        wait_until(lambda: verify().returncode == 0, 60, "the cache is the fold of the log")
        with redis_client.Redis.from_url(redis.url) as client:
            (listed,) = client.scan_iter(f"hive:{{{topic}.transactions/*:processes", 10_000)
            pending = client.zcount(listed, 0, WAITS - 1)
            assert pending == COUNT // 2 - 1, "neither of those that are paid nor of the abandoned one"
            running = {"hiveio_processes_running": COUNT + 1.0, "hiveio_processes_stuck": 0.0}
            wait_until(lambda: {name: metric(role, name) for name in running} == running, 10, "they are counted")
            assert metric(role, "hiveio_command_oldest_unanswered_seconds") > 0
            client.zadd(listed, {"Fulfilment/o5": 7})
        found = verify()
        assert found.returncode != 0
        assert "the list of processes has Fulfilment/o5 at 7 in the cache, and at " in found.stdout
