"""Faults 58, 59 and 61: which log it is, whose, with how many partitions, and what is where."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from hiveio.transaction.placement import LAST
from hiveio.transaction.rule import scope_of
from tests.integration.accounts import TAKES_DEPOSITS, balance, send
from tests.integration.topics import read_all, write
from tests.process import Role, wait_until
from tests.services import Kafka, Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(240, func_only=True)]

ALL_IN_ONE = '    def scope(self, id):\n        return "{}"\n'
ONE_ELSEWHERE = '    def scope(self, id):\n        return "{}" if id == "{}" else id\n'
PRODUCER = """
from hiveio import Actor, Event

class Deposited(Event):
    amount: int

class Accounts(Actor):
    path = "/accounts/{id}"

    def perform(self, message: Deposited) -> Deposited:
        return message
"""
PARTITIONS = 2


def ids(partition: int) -> Iterator[str]:
    """Those that the default ``scope(id)`` puts there."""
    return (f"{n}" for n in range(1_000) if scope_of(f"{n}", PARTITIONS) == partition)


def settings(kafka: Kafka, redis: Redis, topic: str, **environ: str) -> dict[str, str]:
    own = {"EVENT_STORE_BROKERS": kafka.brokers, "CACHE_URL": redis.url, "EVENT_STORE_TOPIC": topic}
    return own | {"EVENT_STORE_PARTITIONS": f"{PARTITIONS}"} | environ


def processor(environ: dict[str, str], actor: str = TAKES_DEPOSITS, *, wait: bool = True) -> Role:
    return Role("stream-processor", environ, actor=actor, wait=wait)


def refused(environ: dict[str, str], actor: str, code: int) -> str:
    """The line with which the start ends."""
    with processor(environ, actor, wait=False) as role:
        wait_until(lambda: role.process.poll() is not None, 30, f"ended; it said: {role.text()}")
        assert role.ended() == code, role.text()
        return role.text()


def hiveio(role: Role, *words: str) -> "subprocess.CompletedProcess[str]":
    tool, environ = str(Path(sys.executable).parent / "hiveio"), {"PATH": os.environ["PATH"]} | role.environ
    return subprocess.run([tool, *words], env=environ, capture_output=True, text=True, timeout=90, check=False)


def verbose(role: Role) -> dict[str, Any]:
    """What readiness says of the log."""
    checks = httpx.get(f"{role.url}/readyz?verbose", timeout=30).json()["checks"]
    (found,) = [check for check in checks if check["name"] == "transaction log"]
    return dict(found)


def deposit(role: Role, id: str) -> int:
    return send(role, id, "Deposit", amount=1).status_code


def published(kafka: Kafka, topic: str, count: int) -> bool:
    return len(read_all(kafka.brokers, topic)) == count


@pytest.mark.fault(58)
def test_58_a_version_with_another_scope_of_its_aggregates(kafka: Kafka, redis: Redis, topic: str) -> None:
    """Each version would accept for the same aggregate, in a partition of its own."""
    environ = settings(kafka, redis, topic)
    here, there = ids(0), ids(1)
    old, many, other, last = next(here), next(here), next(there), next(there)
    with processor(environ) as role:
        assert {deposit(role, id) for id in (old, other, *[many] * max(LAST))} == {200}
        everything = refused(environ, TAKES_DEPOSITS + ALL_IN_ONE.format(other), 20)
        assert "belongs to partition" in everything
        assert f"{topic}.transactions/0/" in everything, "by the last records of the log"
        one = refused(environ, TAKES_DEPOSITS + ONE_ELSEWHERE.format(other, old), 20)
        assert f"The cache of {topic}.transactions/0 has AccountActor/{old}, which belongs to partition 1" in one

        changed = processor(environ, TAKES_DEPOSITS + ONE_ELSEWHERE.format(other, old), wait=False)
        checked = hiveio(changed, "check", "--log")
        assert checked.returncode == 1, checked
        assert "scope(id) of AccountActor gives another partition to 1 aggregate" in checked.stdout
        found = hiveio(changed, "log", f"AccountActor/{old}", "--json")  # where it is, and not where it should be
        assert [json.loads(line)["position"] for line in found.stdout.splitlines()] == ["0:1"]

        # What such a version would write stops the scope, and no other one.
        records = [m.value() or b"" for m in read_all(kafka.brokers, f"{topic}.transactions")]
        misplaced = next(value for value in records if f"/{old}".encode() in value)
        write(kafka.brokers, f"{topic}.transactions", [(1, "misplaced", misplaced, {})])
        wait_until(lambda: not verbose(role)["ready"], 20, "stopped")
        reason = verbose(role)["reason"]
        assert f"{topic}.transactions/1/2 has AccountActor/{old}, which belongs to partition 0" in reason
        assert any(line["level"] == "critical" and reason in line["message"] for line in role.logs())
        assert (deposit(role, last), deposit(role, old)) == (503, 200)
    with processor(environ | {"EVENT_STORE_MISPLACED": f"AccountActor/{old}"}) as role:  # an operator has seen to it
        assert (deposit(role, last), deposit(role, old)) == (200, 200)
        assert balance(role, old) == 3, "and what was written elsewhere is not in it"
        (line,) = role.complaints()
        assert line["message"].startswith(f"EVENT_STORE_MISPLACED=AccountActor/{old}: ")


@pytest.mark.fault(59)
def test_59_partitions_are_added_to_the_log_and_to_its_event_topic(kafka: Kafka, redis: Redis, topic: str) -> None:
    environ, log = settings(kafka, redis, topic), f"{topic}.transactions"
    client = AdminClient({"bootstrap.servers": kafka.brokers})
    with processor(environ) as role:
        assert {deposit(role, f"{n}") for n in range(20)} == {200}
        client.create_partitions([NewPartitions(log, 3)])[log].result(30)
        client.create_partitions([NewPartitions(topic, 5)])[topic].result(30)
    said = refused(environ | {"EVENT_STORE_PARTITIONS": "3"}, TAKES_DEPOSITS, 20)
    assert "EVENT_STORE_PARTITIONS=2 and the settings say 3" in said
    with processor(environ) as role:
        assert {deposit(role, f"{n}") for n in range(20)} == {200}
        assert {balance(role, f"{n}") for n in range(20)} == {2}
        assert verbose(role)["unused_partitions"] == {log: 1, topic: 3}
        lines = [line["message"] for line in role.complaints()]
        assert [line.partition(",")[0].partition(":")[0] for line in lines] == [
            f"Topic {log} has 3 partitions",
            f"Topic {topic} has 5 partitions and the transaction log has 2",
        ]
        wait_until(partial(published, kafka, topic, 40), 30, "published")
        verified = hiveio(role, "verify")
        assert (verified.returncode, verified.stdout.count("no difference")) == (0, 2), verified.stdout
        assert "the log has the scopes 0 to 1" in hiveio(role, "log", "--scope", "2").stderr
    places: dict[bytes, set[int]] = {}
    for message in read_all(kafka.brokers, topic):
        places.setdefault(message.key() or b"", set()).add(message.partition() or 0)
    assert len(places) == 20
    assert all(len(partitions) == 1 and partitions <= {0, 1} for partitions in places.values())


@pytest.mark.fault(61)
def test_61_another_service_writes_to_the_topic_by_mistake(kafka: Kafka, redis: Redis, topic: str) -> None:
    environ = settings(kafka, redis, topic)
    renamed = TAKES_DEPOSITS.replace("AccountActor", "OrderActor").replace("/accounts", "/orders")
    both = TAKES_DEPOSITS + renamed.partition("class Account(Model):")[2].partition("\n\n")[2]
    with processor(environ) as role:
        assert deposit(role, "ada") == 200
        said = refused(environ | {"EVENT_STORE_PARTITIONS": "1"}, renamed, 2)  # that is not what the line is about
        assert f"EVENT_STORE_TOPIC={topic} belongs to another service" in said
        assert "was made by one with the actors AccountActor, and this one has OrderActor" in said
        with processor(environ, both) as second:
            assert httpx.post(f"{second.url}/orders/1", json={"amount": 1}, timeout=30).status_code == 200
            assert balance(second, "ada") == 1
    with processor(environ, renamed) as role:  # it has replaced the first one little by little
        assert httpx.get(f"{role.url}/orders/1", timeout=30).status_code == 200


@pytest.mark.fault(61)
def test_61_two_clusters_have_topics_of_one_name_and_one_redis(kafka: Kafka, redis: Redis, topic: str) -> None:
    log, key = f"{topic}.transactions", {"Idempotency-Key": "k"}
    with Kafka() as other:
        clusters = (kafka, other)
        one, two = (settings(cluster, redis, topic, EVENT_STORE_PARTITIONS="1") for cluster in clusters)
        with processor(one) as a, processor(two) as b:
            for _ in range(20):
                assert [deposit(role, "ada") for role in (a, b, b)] == [200] * 3
            answers = [send(role, "ada", "Deposit", key, amount=5) for role in (a, b)]
            assert [answer.headers["etag"] for answer in answers] == ['"21"', '"41"']
            assert [balance(role, "ada") for role in (a, b)] == [25, 45]
            for cluster, count in zip(clusters, (21, 41), strict=True):  # each has a publisher
                wait_until(partial(published, cluster, topic, count), 30, "published")
            complaints = [[line["message"] for line in role.complaints()] for role in (a, b)]
            assert complaints[0] == []
            assert [line.partition(",")[0] for line in complaints[1]] == [
                f"the Redis of CACHE_URL has seen 1 other logs named {log}"
            ]
        with processor(one) as a:  # with its cache
            starts = [line["message"] for line in a.logs() if " is folded from offset " in line["message"]]
            assert starts == [f"{log}/0 is folded from offset 22 to 22"]
        roles = [Role("producer", settings(cluster, redis, f"{topic}-plain"), actor=PRODUCER) for cluster in clusters]
        with roles[0] as a, roles[1] as b:
            for role in (a, b, b):
                assert send(role, "ada", "Deposited", key, amount=5).status_code == 200
        for cluster in clusters:
            assert len(read_all(cluster.brokers, f"{topic}-plain")) == 1
