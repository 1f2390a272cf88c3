"""What a client is answered, also the second time: keys, versions, deadlines, reads; on real processes and services."""

import concurrent.futures
import itertools
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis as redis_client

from hiveio.transaction.record import CommandId, Commit, Format, Write, encode
from tests.integration.conftest import Make
from tests.integration.topics import make_topic, read_all, write
from tests.process import Role, settled, wait_until
from tests.services import Kafka, Redis

# Counters: `perform` may take its time, `replay` too while the file SLOW_WHILE is there.
ACTOR = """
import asyncio
import os
import time
from hiveio import Actor, Command, Event, Model, Rejected

SLOW = os.environ.get("SLOW_WHILE", "")

class Add(Command):
    amount: int
    times: int = 1
    slow_s: float = 0
class Added(Event):
    amount: int
class Counter(Model):
    sum: int = 0

class CounterActor(Actor):
    path = "/counters/{id}"
    name = "Counter"

    async def perform(self, counter: Counter | None, command: Add) -> list[Added]:
        if command.slow_s:
            await asyncio.sleep(command.slow_s)
        if (counter.sum if counter else 0) + command.amount * command.times < 0:
            raise Rejected("below zero", sum=counter.sum if counter else 0)
        return [Added(command.amount) for _ in range(command.times)]

    def replay(self, counter: Counter | None, event: Added) -> Counter:
        if SLOW and os.path.exists(SLOW):
            time.sleep(0.003)
        return Counter((counter.sum if counter else 0) + event.amount)
"""


def add(role: Role, id: str, key: str | None = None, **payload: Any) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return httpx.post(
        f"{role.url}/counters/{id}", json={"type": "Add", "payload": payload}, headers=headers, timeout=30
    )


def read(role: Role, id: str, consistency: str = "current") -> httpx.Response:
    url, level = f"{role.url}/counters/{id}", {"consistency": consistency}
    return settled(lambda: httpx.get(url, params=level, timeout=30))


def parts(answer: httpx.Response) -> tuple[int, Any, str | None, str | None]:
    return answer.status_code, answer.json(), answer.headers.get("etag"), answer.headers.get("hive-position")


def forget_cache(redis: Redis, topic: str) -> None:
    with redis_client.Redis.from_url(redis.url) as client:
        keys = list(client.scan_iter(f"hive:{{{topic}.transactions/*", count=10_000))
        assert keys
        client.delete(*keys)


def test_a_key_gives_the_same_answer_elsewhere_after_a_restart_and_without_the_cache(
    processor: Make, redis: Redis, topic: str
) -> None:
    sent: Mapping[str, Mapping[str, int]] = {
        "one event": {"amount": 5},
        "several events": {"amount": 1, "times": 3},
        "nothing to write": {"amount": 0, "times": 0},
        "refused": {"amount": -100},
    }
    with processor() as a:
        first = {key: parts(add(a, "x", key, **payload)) for key, payload in sent.items()}
        assert [status for status, *_ in first.values()] == [200, 200, 200, 422]
        assert [etag for _, _, etag, _ in first.values()] == ['"1"', '"4"', '"4"', None]
        assert len({position for *_, position in list(first.values())[:3]}) == 3
        assert first["refused"][1]["sum"] == 8
        add(a, "x", amount=1000)  # what is answered again does not depend on what came later

        def again(role: Role) -> None:
            for key, payload in sent.items():
                assert parts(add(role, "x", key, **payload)) == first[key], key
                assert add(role, "x", key, amount=7).status_code == 422, "another body"

        again(a)
        with processor() as b:
            again(b)
            forget_cache(redis, topic)
            wait_until(lambda: add(b, "other", amount=1).status_code == 200, what="folded anew")
            b.rebuilt(1)
            again(b)
            b.kill()
        wait_until(lambda: add(a, "other", amount=1).status_code == 200, what="folded anew here too")
        a.rebuilt(1)
        again(a)
    forget_cache(redis, topic)
    with processor() as c:
        again(c)
        assert httpx.get(f"{c.url}/counters/x").json()["payload"] == {"sum": 1008}


def test_a_key_that_is_in_work_is_answered_409_with_the_time_to_ask_again(processor: Make) -> None:
    with processor() as role, concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert add(role, "x", amount=1).status_code == 200
        both = list(pool.map(lambda _: add(role, "x", "k", amount=5, slow_s=5), range(2)))
        first, busy = sorted(both, key=lambda answer: answer.status_code)
        assert (first.status_code, busy.status_code) == (200, 409)
        assert int(busy.headers["retry-after"]) >= 1
        assert parts(add(role, "x", "k", amount=5, slow_s=5)) == parts(first)


def test_a_key_is_remembered_for_its_window_and_no_longer(processor: Make, redis: Redis, topic: str) -> None:
    def others(role: Role, count: int) -> None:
        for _ in range(count):
            assert add(role, "other", amount=1).status_code == 200

    # By count alone: 20 records later it is known, 21 it is not.
    with processor(IDEMPOTENCY_COUNT="20", IDEMPOTENCY_TIME="0") as role:
        first = add(role, "x", "k", amount=5)
        others(role, 19)
        assert parts(add(role, "x", "k", amount=5)) == parts(first)
        time.sleep(0.01)  # of log time: its resolution is 1 ms
        others(role, 1)
        assert parts(add(role, "x", "k", amount=5))[2] == '"2"', "executed again"
        forget_cache(redis, topic)
        again = wait_until(lambda: (a := add(role, "x", "k", amount=5)).status_code == 200 and a, what="folded anew")
        assert parts(again)[2] == '"2"'


def test_a_key_is_remembered_by_the_time_of_the_log(processor: Make, kafka: Kafka, topic: str) -> None:
    with processor(IDEMPOTENCY_COUNT="5", IDEMPOTENCY_TIME="2") as role:
        began = time.monotonic()
        first = add(role, "x", "k", amount=5)
        for _ in range(10):
            assert add(role, "other", amount=1).status_code == 200
        if time.monotonic() - began < 1.5:  # else this machine is too slow to tell
            assert parts(add(role, "x", "k", amount=5)) == parts(first), "outside the count, inside the time"

        def again() -> tuple[int, Any, str | None, str | None] | None:
            found = parts(add(role, "x", "k", amount=5))  # writes no record while the key is remembered
            if found == parts(first):
                assert add(role, "other", amount=1).status_code == 200
                return None
            return found

        executed = wait_until(again, 30, "the key is forgotten")
        assert executed[2] == '"2"', "executed again"
    # The log's clock moves with its records, with each by a sixtieth of the window at most.
    stamps = [message.timestamp()[1] for message in read_all(kafka.brokers, f"{topic}.transactions")]
    steps = [min(max(0, later - earlier), 2_000 // 60) for earlier, later in itertools.pairwise(stamps)]
    begins, ends = (int(position.rpartition("/")[2]) for position in (parts(first)[3] or "", executed[3]))
    assert 2_000 < sum(steps[begins:ends]) < 2_200


def test_an_outcome_asked_for_too_late_is_unknown_and_never_denied(processor: Make) -> None:
    few = {"IDEMPOTENCY_COUNT": "10", "IDEMPOTENCY_TIME": "0", "REQUEST_TIMEOUT": "1500"}
    with Kafka() as kafka, processor(brokers=kafka.brokers, **few) as role:
        assert settled(lambda: add(role, "x", "first", amount=1)).status_code == 200
        kafka.pause()
        try:
            unknown = add(role, "x", amount=5)
        finally:
            kafka.resume()
        assert unknown.status_code == 504, unknown.text
        for _ in range(20):
            wait_until(lambda: add(role, "x", amount=1).status_code == 200)
        asked = httpx.get(f"{role.url}/transactions/{unknown.json()['transaction']}", timeout=30)
        assert (asked.status_code, asked.json()["outcome"]) == (200, "unknown"), asked.text


def test_the_bound_of_the_edge_knows_what_became_of_the_command(processor: Make) -> None:
    """A body that comes slowly: REQUEST_TIMEOUT counts from its first byte, and no record of it is in the log."""
    with processor(REQUEST_TIMEOUT="4000") as role:
        assert read(role, "x").status_code == 404  # its scope is open from now on
        body = json.dumps({"type": "Add", "payload": {"amount": 1, "slow_s": 10}}).encode()
        with socket.create_connection(("127.0.0.1", role.port or 0), 10) as connection:
            head = f"POST /counters/x HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            connection.sendall(head.encode() + body[:5])
            time.sleep(1)
            connection.sendall(body[5:])
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b"nothing was changed" in answer
        assert read(role, "x").status_code == 404


def test_a_cached_read_says_so_and_does_not_need_kafka(processor: Make, topic: str) -> None:
    with Kafka() as kafka, processor(brokers=kafka.brokers, REQUEST_TIMEOUT="2000") as role:
        assert settled(lambda: add(role, "x", "once", amount=5)).status_code == 200
        url = f"{role.url}/counters/x"
        current = read(role, "x")
        assert current.headers["etag"] == '"1"'
        assert "hive-consistency" not in current.headers
        cached = wait_until(lambda: found if (found := read(role, "x", "cached")).status_code == 200 else None)
        assert (cached.headers["etag"], cached.headers["hive-consistency"]) == ('"1"', "cached")
        assert httpx.get(url, params={"consistency": "eventual"}).status_code == 422
        kafka.pause()
        try:
            away = httpx.get(url, timeout=30)
            assert (away.status_code, away.headers.get("retry-after")) == (503, "1"), away.text
            assert httpx.get(url, params={"consistency": "cached"}).json()["payload"] == {"sum": 5}
            # Its id is on record, and what was answered is in Kafka: it has happened, and nobody says that it has not.
            repeated = add(role, "x", key="once", amount=5)
            assert repeated.status_code == 504, repeated.text
            assert repeated.json()["transaction"]
        finally:
            kafka.resume()
        wait_until(lambda: httpx.get(url, timeout=30).status_code == 200, 20, "well again")


def test_a_read_includes_every_write_acknowledged_before_it_on_any_instance(processor: Make) -> None:
    with processor() as a, processor() as b, httpx.Client(timeout=30) as client:
        for number in range(1, 101):
            role, other = (a, b) if number % 2 else (b, a)
            body = {"type": "Add", "payload": {"amount": 1}}
            etag = client.post(f"{role.url}/counters/x", json=body).headers["etag"]
            read = client.get(f"{other.url}/counters/x")
            assert (read.json()["payload"]["sum"], read.headers["etag"]) == (number, etag)


def fill(kafka: Kafka, topic: str, count: int) -> None:
    """A log of commits, written past the service."""
    make_topic(kafka.brokers, f"{topic}.transactions", config=LOG | FOREVER)
    make_topic(kafka.brokers, topic, config=FOREVER)
    records: list[tuple[str, Any]] = [("format-0", Format(1, 1, "crc32", 10_000, 3_600_000))]
    event = json.dumps({"type": "Added", "payload": {"amount": 1}}).encode()
    heads: dict[str, tuple[str, int]] = {}
    for number in range(count):
        name, tx = f"Counter/{number % 10}", f"fill-{number}"
        head, version = heads.get(name, ("", 0))
        records.append((tx, Commit(CommandId(name, tx), (Write(name, head, version, (msgspec.Raw(event),)),))))
        heads[name] = (tx, version + 1)
    write(kafka.brokers, f"{topic}.transactions", [(0, tx, encode(record), {}) for tx, record in records])


FOREVER = {"retention.ms": "-1", "cleanup.policy": "delete", "unclean.leader.election.enable": "false"}
LOG = {"message.timestamp.type": "LogAppendTime"}


def test_until_it_has_caught_up_it_is_not_ready_and_takes_no_commands(
    processor: Make, kafka: Kafka, topic: str, tmp_path: Path
) -> None:
    fill(kafka, topic, 3_000)
    slow = tmp_path / "slow"
    slow.touch()
    with processor(wait=False, SLOW_WHILE=str(slow), REQUEST_TIMEOUT="1000") as role:
        wait_until(lambda: role.port, 30)

        def shown() -> httpx.Response | None:
            answer = httpx.get(f"{role.url}/readyz", params={"verbose": ""}, timeout=60)
            return answer if "is being folded: at offset" in answer.json()["checks"][0]["reason"] else None

        checks = wait_until(shown)
        answers = (add(role, "0", amount=1), httpx.get(f"{role.url}/counters/0", timeout=60))
        slow.unlink()
        assert checks.status_code == 503
        for answer in answers:
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), answer.text
        role.ready(60)
        assert read(role, "0").json()["payload"]["sum"] == 300
        assert role.logs(f"{topic}.transactions/0: caught up at offset 3001")
        published = "what the log had accepted is published"
        wait_until(lambda: len(read_all(kafka.brokers, topic)) == 3_000, 30, published)


@pytest.mark.parametrize(
    ("kind", "config", "line"),
    [
        ("", {"retention.ms": "1000"}, "has retention.ms=1000: events would be lost; set retention.ms=-1"),
        ("", {"retention.bytes": "1000000"}, "set retention.bytes=-1"),
        ("", {"cleanup.policy": "compact"}, "set cleanup.policy=delete"),
        (".transactions", {"message.timestamp.type": "CreateTime"}, "set message.timestamp.type=LogAppendTime"),
        (".transactions", {"max.message.bytes": "20000"}, "set max.message.bytes=1000000"),
        (".transactions", {"unclean.leader.election.enable": "true"}, "set unclean.leader.election.enable=false"),
    ],
)
def test_a_topic_on_which_events_would_be_lost_is_refused(
    processor: Make, kafka: Kafka, topic: str, kind: str, config: dict[str, str], line: str
) -> None:
    make_topic(kafka.brokers, topic + kind, config=FOREVER | (LOG if kind else {}) | config)
    with processor(wait=False) as role:
        assert role.ended(30) == 20, role.text()
    assert line in role.text()
    assert len(role.errors) == 1, role.text()
