"""Actors change while the log stays: a changed model is folded anew, old events are upcast, two versions at once."""

import concurrent.futures
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
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
# The same model, folded from the events in another way.
REPLAYED = AFTER.replace("events + 1", "events + 10").replace("    name =", "    schema_version = 2\n    name =")
# A new event, in the two steps of the runbook: a version that can fold it, then one that writes it too.
INCREASED = "class Increased(Event):\n    amount: int\n"
EXPANDED = AFTER.replace("class Counter(M", INCREASED + "class Counter(M").replace("Added) ->", "Added | Increased) ->")
WRITING = EXPANDED.replace(") -> Added:", ") -> Increased:").replace(
    'return Added(command.amount, "new")', "return Increased(command.amount)"
)
# The same with another model, which has a cache of its own.
WRITING_WIDER = WRITING.replace("events: int\n", "events: int\n    last: int = 0\n").replace(
    "events + 1)", "events + 1, event.amount)"
)
# A second actor, by which the service is recognised where the first one is renamed.
SECOND_ACTOR = """
class Note(Command):
    text: str
class Noted(Event):
    text: str
class Notes(Model):
    count: int

class NotesActor(Actor):
    path = "/notes/{id}"

    def perform(self, notes: Notes | None, command: Note) -> Noted:
        return Noted(command.text)

    def replay(self, notes: Notes | None, event: Noted) -> Notes:
        return Notes((notes.count if notes else 0) + 1)
"""
RENAMED = AFTER.replace('    name = "Counter"\n', "") + SECOND_ACTOR
VERSIONS = {
    "before": BEFORE,
    "after": AFTER,
    "replayed": REPLAYED,
    "expanded": EXPANDED,
    "writing": WRITING,
    "writing wider": WRITING_WIDER,
    "with another": AFTER + SECOND_ACTOR,
    "renamed": RENAMED,
}

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


def test_the_runbook_expand_then_write_refuses_nobody(start: Start) -> None:
    with start("after") as old:
        for step, written in (("expanded", 4), ("writing", 8)):
            with start(step) as new:
                for id in ("x", "y"):
                    for role in (old, new, old, new):
                        answer = add(role, id)
                        assert answer.status_code == 200, answer.text + role.text()
                    assert state(old, id) == state(new, id) == {"total": written, "events": written}
                assert old.stop() == 0
                assert old.complaints() == new.complaints() == []
                old = start(step).start().ready()  # all instances are of the new version now
        assert add(old, "x").json()["type"] == "Increased"
        assert old.stop() == 0


def test_the_way_back_refuses_the_aggregates_with_new_events_and_no_other(start: Start, topic: str) -> None:
    """The newer version is rolled out without the first step of the runbook, and rolled back."""
    with start("after") as older:
        for id in ("x", "y", "z"):
            assert add(older, id).status_code == 200
        assert older.stop() == 0
    with start("writing wider") as newer:
        assert add(newer, "x").json()["type"] == "Increased"
        assert add(newer, "z", "k").status_code == 200
        assert newer.stop() == 0
    with start("after") as older:
        check_of_older(older, topic)
        with start("writing wider") as newer:  # the way forward, again
            assert add(newer, "x").headers["etag"] == '"3"', "it never stopped"
            assert state(newer, "y") == {"total": 2, "events": 2, "last": 1}
            assert older.stop() == 0
            assert newer.complaints() == []
    # A version that can fold it, with the cache of the older one: it goes on where that one stopped.
    with start("expanded") as expanded:
        assert state(expanded, "x") == {"total": 3, "events": 3}
        assert add(expanded, "x").headers["etag"] == '"4"'
        assert "from offset 0" not in expanded.text()
        assert verify(expanded).stdout.endswith("no difference\n")


def check_of_older(older: Role, topic: str) -> None:
    for id in ("x", "z"):
        for answer in (add(older, id), httpx.get(f"{older.url}/counters/{id}", timeout=30)):
            problem = answer.json()
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
            assert problem["title"] == "Aggregate Unavailable"
            assert problem["detail"].startswith(f"{id} cannot be used for now")
            assert not [text for text in (topic, "Increased", "Counter/", "offset") if text in problem["detail"]]
    assert add(older, "z", "k").json()["type"] == "Increased", "a key that is on record has its answer"
    assert add(older, "y").json()["type"] == "Added"
    assert state(older, "y") == {"total": 2, "events": 2}
    readiness = httpx.get(f"{older.url}/readyz?verbose")
    assert readiness.status_code == 200
    shown = readiness.json()["checks"][0]["quarantined"]
    criticals = [line for line in older.logs() if line["level"] == "critical"]
    assert older.complaints() == criticals
    for found in (shown, criticals):
        places = {(each["topic"], each["partition"], each["aggregate"]) for each in found}
        assert places == {(f"{topic}.transactions", 0, f"Counter/{id}") for id in ("x", "z")}
        assert all("The type 'Increased' is unknown" in each["reason"] for each in found)
        assert sorted(each["offset"] for each in found) == [4, 5]
    gauge = 'hiveio_quarantined_aggregates{scope="0"} 2.0'
    wait_until(lambda: gauge in httpx.get(f"{older.url}/metrics").text, what="the gauge")
    verified = verify(older)
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.count(" is quarantined: ") == 2
    assert f"Counter/x is quarantined: {topic}.transactions/0/4 cannot be folded" in verified.stdout


def verify(role: Role) -> "subprocess.CompletedProcess[str]":
    tool = str(Path(sys.executable).parent / "hiveio")
    return subprocess.run([tool, "verify"], env=role.environ, capture_output=True, text=True, timeout=90, check=False)


def test_an_actor_renamed_without_its_name_is_told_at_each_start(start: Start) -> None:
    with start("with another") as after:
        assert add(after, "x").status_code == 200
    for _ in range(2):  # the second time nothing is folded
        with start("renamed") as renamed:
            (warning,) = wait_until(renamed.complaints, what="the warning")  # once the scope is open
            assert warning["message"].startswith("the log has aggregates of Counter and no actor of that name")
            assert warning["level"] == "warning"
            assert 'name = "Counter"' in warning["message"]
            assert httpx.get(f"{renamed.url}/readyz?verbose").json()["checks"][0]["actors_not_here"] == ["Counter"]
            assert state(renamed, "x") == 404
            assert add(renamed, "y").status_code == 200
