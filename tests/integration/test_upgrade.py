"""Actors change while the log stays: a changed model is folded anew, old events are upcast, two versions at once."""

import concurrent.futures
import itertools
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.process import Role, wait_until
from tests.services import Kafka, Redis

BEFORE = """
from hiveio import Actor, Command, Event, Model

class Add(Command):
    amount: int
class Plus(Event):
    by: int
class Added(Event):
    amount: int
class Counter(Model):
    sum: int = 0

class CounterActor(Actor):
    path = "/counters/{id}"
    name = "Counter"

    def perform(self, counter: Counter | None, command: Add) -> Plus:
        return Plus(command.amount)

    def replay(self, counter: Counter | None, event: Plus | Added) -> Counter:
        by = event.by if isinstance(event, Plus) else event.amount
        return Counter((counter.sum if counter else 0) + by)
"""
# Another model, and one event in the place of two.
AFTER = """
from hiveio import Actor, Command, Event, Model

class Add(Command):
    amount: int
class Added(Event):
    amount: int
    note: str = ""
class Counter(Model):
    total: int
    events: int

class CounterActor(Actor):
    path = "/counters/{id}"
    name = "Counter"

    def perform(self, counter: Counter | None, command: Add) -> Added:
        return Added(command.amount, "new")

    def replay(self, counter: Counter | None, event: Added) -> Counter:
        total, events = (counter.total, counter.events) if counter else (0, 0)
        return Counter(total + event.amount, events + 1)

    def upcast(self, type, payload):
        if type == "Plus":
            return "Added", {"amount": payload["by"], "note": "old"}
        return type, payload
"""
# The same model, told from the events in another way.
REPLAYED = AFTER.replace("events + 1", "events + 10").replace("    name =", "    schema_version = 2\n    name =")
UNKNOWN = AFTER.replace("Added", "Increased").replace('== "Plus"', '!= "Increased"').replace('"by"', '"amount"')
VERSIONS = {"before": BEFORE, "after": AFTER, "replayed": REPLAYED, "unknown": UNKNOWN}

Start = Callable[..., Role]


@pytest.fixture
def start(kafka: Kafka, redis: Redis, topic: str) -> Start:
    environ = {"EVENT_STORE_BROKERS": kafka.brokers, "CACHE_URL": redis.url, "EVENT_STORE_TOPIC": topic}
    return lambda version: Role("stream-processor", environ, actor=VERSIONS[version])


def add(role: Role, id: str, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"type": "Add", "payload": {"amount": 1}}
    return httpx.post(f"{role.url}/counters/{id}", json=body, headers=headers, timeout=30)


def state(role: Role, id: str) -> Any:
    answer = httpx.get(f"{role.url}/counters/{id}", timeout=30)
    return answer.json()["payload"] if answer.status_code == 200 else answer.status_code


def test_a_rolling_upgrade_with_both_versions_at_work_loses_nothing(start: Start) -> None:
    with start("before") as before:
        first = add(before, "c0", "k")
        assert first.json() == {"type": "Plus", "payload": {"by": 1}}
        with start("after") as after, concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert state(after, "c0") == {"total": 1, "events": 1}, "old events, by the new model"
            roles = (before, after)
            answers = list(pool.map(lambda n: add(roles[n % 2], f"c{n // 2 % 3}", f"k{n}"), range(120)))
            assert [answer.status_code for answer in answers] == [200] * 120
            assert {answer.json()["type"] for answer in answers} == {"Plus", "Added"}
            for n, id in itertools.product((0, 1), ("c0", "c1", "c2")):
                sum = 41 if id == "c0" else 40
                assert state(roles[n], id) == ({"sum": sum} if n == 0 else {"total": sum, "events": sum})
            # A key is known to both, with the answer that it had: also where the other version gave it.
            for n in range(0, 120, 17):
                again = add(roles[(n + 1) % 2], f"c{n // 2 % 3}", f"k{n}")
                assert (again.text, again.headers["etag"]) == (answers[n].text, answers[n].headers["etag"])
            assert before.stop() == 0
            assert before.complaints() == after.complaints() == []
            again = add(after, "c0", "k")
            assert (again.text, again.headers["etag"]) == (first.text, first.headers["etag"])
            assert add(after, "c0").headers["etag"] == '"42"'
    with start("replayed") as replayed:
        assert state(replayed, "c0") == {"total": 42, "events": 420}, "another schema_version is folded anew"


def test_an_event_that_a_version_does_not_know_stops_that_version_where_it_stands(start: Start, topic: str) -> None:
    with start("after") as after, start("unknown") as newer:
        assert add(after, "x").status_code == 200
        increased = add(newer, "x")
        assert increased.status_code == 200, increased.text + newer.text()
        reason = wait_until(
            lambda: next(
                (c["reason"] for c in httpx.get(f"{after.url}/readyz?verbose").json()["checks"] if c["reason"]), None
            ),
            what="not ready",
        )
        assert f"{topic}.transactions/0/2" in reason
        assert "unknown type 'Increased'" in reason
        refused = add(after, "x")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert add(newer, "x").headers["etag"] == '"3"', "the newer version goes on"
        assert state(newer, "x") == {"total": 3, "events": 3}
