"""A stream processor with a process manager: events of another topic drive it, over a kill and a reset group."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import redis as redis_client

from hiveio.transaction.process import WAITS
from tests.integration.bank import Console, look
from tests.integration.conftest import Make
from tests.integration.test_console import text
from tests.integration.test_outbox import commands
from tests.integration.test_stream_processor import metric
from tests.integration.topics import make_topic, write
from tests.process import ROOT, Role, wait_until
from tests.services import Kafka, Redis

ACTOR = (ROOT / "tests" / "actors" / "fulfilment.py").read_text("utf-8")
COUNT = 40


def see(role: Role, kafka: Kafka, orders: str, stuck: str) -> None:
    """In the status and in the console there are the processes of ``role``, of which this one is stuck."""
    topic, status = role.environ["EVENT_STORE_TOPIC"], look(role)
    sent = next(headers for key, _, headers in commands(kafka, topic) if key == "o1")
    cause = f"{topic}.commands/{sent['hive-log']}/{sent['hive-position'].replace(':', '/', 1)}"
    answer = json.dumps({"type": "PaymentReserved", "payload": {"order": "o1"}}).encode()
    write(kafka.brokers, orders, [(0, "o1", answer, {"hive-cause": cause, "hive-process": "Fulfilment/o1"})])
    (found,) = [scope.processes for scope in status.scopes if scope.processes]
    assert (found.running, found.stuck, found.unanswered) == (COUNT + 1, 1, COUNT)
    assert 0 < (found.unanswered_s or 0) < 600
    assert f"1 stuck process in scope {topic}.transactions/0: {stuck} (Rejected: a negative amount)." in status.warnings
    with Console(role.environ, "--write") as console:
        page = text(console.page("/processes"))
        assert f"all that run ({COUNT + 1})" in page
        assert "stuck Rejected: a negative amount" in page
        assert stuck in text(console.page("/processes?only=stuck"))
        steps = wait_until(
            lambda: "answered by" in (page := text(console.page("/processes/Fulfilment/o1"))) and page, 30
        )
        for said in (
            f"took {orders}/0/1 wrote Started",
            "sent ReservePayment to payments/o1 (0:",
            f"answered by {orders}/0/",
            "scheduled PaymentOverdue in 15 min",
            "a command of a client wrote GivenUp",
            "cancelled PaymentOverdue",
        ):
            assert said in steps, said
        at = f"/processes/{stuck}"
        page = console.page(at)
        which = re.search(r'name="which" value="([^"]+)"', page)
        assert which is not None
        assert f"waits: OrderPlaced {orders}/0/" in text(page)
        form = {"action": "retry", "which": which[1]}
        same = {"origin": console.url}
        asked = httpx.post(console.url + at, data=form, headers=same)
        assert f"{stuck} will be given OrderPlaced" in text(asked.text)
        assert httpx.post(console.url + at, data=form | {"which": "x"}, headers=same).status_code == 404
        done = httpx.post(console.url + at, data=form | {"confirmed": "1"}, headers=same)
        assert (done.status_code, done.headers["location"]) == (303, at)
        wait_until(lambda: "tried again what waits" in console.page(at), 30, "it was tried again")
        console.page("/processes/Fulfilment/nobody", 404)
    with Console(role.environ) as console:
        assert "only reads" in console.page(at)
        done = httpx.post(console.url + at, data=form | {"confirmed": "1"}, headers={"origin": console.url})
        assert done.status_code == 403


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
        see(role, kafka, orders, name)
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
        assert httpx.post(f"{role.url}/fulfilments/o3", json={"type": "Abandon"}).json()["type"] == "GivenUp"
        wait_until(lambda: metric(role, "hiveio_processes_due") == 1, 10, "by the cache, that one is due")
        found = verify()
        assert found.returncode != 0
        assert "the list of processes has Fulfilment/o5 at 7 in the cache, and at " in found.stdout
