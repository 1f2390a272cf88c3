"""Idempotency-Key with CACHE_URL: a repeat is answered as the first was, and stored once."""

import asyncio
import socket
import time
from collections import Counter
from functools import partial
from typing import Any

import httpx
import pytest
from redis import Redis as RedisClient

from tests.integration.conftest import Make
from tests.integration.topics import make_topic, read_all
from tests.process import Role, settled, wait_until
from tests.services import Kafka, Redis

ACTOR = """
import asyncio
from hiveio import Actor, Command, Event, Rejected

class Deposit(Command):
    amount: int
    text: str = ""
class Deposited(Event):
    amount: int
    text: str = ""

class Account(Actor):
    path = "/accounts/{id}"
    slow = 0

    async def perform(self, message: Deposit) -> Deposited | list[Deposited] | None:
        if message.amount < 0:
            raise Rejected("less than nothing")
        if message.text == "slow once":
            self.slow += 1
            await asyncio.sleep(60 if self.slow == 1 else 0)
        events = [Deposited(message.amount, message.text)] * min(message.amount, 2)
        return events or None
"""


@pytest.fixture
def producer(producer: Make, redis: Redis) -> Make:
    return partial(producer, CACHE_URL=redis.url)


def post(role: Role, key: str | None, amount: int = 1, id: str = "a", text: str = "") -> httpx.Response:
    body: dict[str, Any] = {"type": "Deposit", "payload": {"amount": amount, "text": text}, "meta": {"by": "test"}}
    headers = {"Idempotency-Key": key} if key else {}
    return httpx.post(f"{role.url}/accounts/{id}", json=body, headers=headers, timeout=30)


def shown(answer: httpx.Response) -> tuple[int, str | None, bytes]:
    return answer.status_code, answer.headers.get("hive-position"), answer.content


def keys(brokers: str, topic: str) -> Counter[Any]:
    return Counter(dict(m.headers() or [])["hive-key"] for m in read_all(brokers, topic))


def test_a_repeat_is_answered_as_the_first_was(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(CLUSTER_SIZE="2") as role:
        for amount in (1, 2, 0):  # an event, several, none
            key = f"k{amount}"
            first = post(role, key, amount)
            assert first.status_code == 200
            for _ in range(4):
                assert shown(post(role, key, amount)) == shown(first)
            other = post(role, key, 5)
            assert (other.status_code, other.json()["title"]) == (422, "Idempotency-Key Reused")
        assert post(role, "k1", id="b").headers["hive-position"].endswith("/3"), "a key belongs to its aggregate"
        assert not role.complaints()
    with producer() as role:
        assert shown(post(role, "k0", 0)) == shown(first), "another instance knows it too"
    assert keys(kafka.brokers, topic) == Counter({b"k1": 2, b"k2": 2})


def test_a_refusal_gives_the_key_back(kafka: Kafka, topic: str, producer: Make) -> None:
    make_topic(kafka.brokers, topic, config={"max.message.bytes": "20000"})
    with producer(REQUEST_TIMEOUT="2000") as role:
        assert post(role, "k", -1).status_code == 422
        assert post(role, "k", 1, text="x" * 30_000).status_code == 413
        assert settled(lambda: post(role, "k", 1)).status_code == 200
        # So does an actor that takes longer than a request may: nothing was sent.
        assert post(role, "slow", text="slow once").status_code == 504
        wait_until(lambda: post(role, "slow", text="slow once").status_code == 200, 5, "the key")
    assert keys(kafka.brokers, topic) == Counter({b"k": 1, b"slow": 1})


async def test_a_storm_of_one_key_is_one_record(kafka: Kafka, topic: str, producer: Make) -> None:
    role = await asyncio.to_thread(producer(CLUSTER_SIZE="2").__enter__)
    try:
        answers = await asyncio.gather(*(asyncio.to_thread(post, role, "storm") for _ in range(40)))
    finally:
        await asyncio.to_thread(role.stop)
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len({shown(answer) for answer in answers if answer.status_code == 200}) == 1
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 409)
    assert keys(kafka.brokers, topic) == Counter({b"storm": 1})


def test_queued_too(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(PRODUCER_ACK="queued") as role:
        first = post(role, "k")
        assert first.status_code == 202
        assert shown(post(role, "k")) == shown(first)
    assert keys(kafka.brokers, topic) == Counter({b"k": 1})


def test_a_batch_sent_again_stores_what_is_missing(kafka: Kafka, topic: str, producer: Make) -> None:
    def batch(*amounts: int) -> list[dict[str, Any]]:
        body = [{"type": "Deposit", "payload": {"amount": amount}} for amount in amounts]
        found: list[dict[str, Any]] = httpx.post(
            role.url + "/accounts/a", json=body, headers={"Idempotency-Key": "b"}
        ).json()
        return found

    with producer() as role:
        first = batch(1, -1, 1)
        assert [each["status"] for each in first] == [200, 422, 200]
        again = batch(1, 1, 1)
        assert [again[0], again[2]] == [first[0], first[2]]
        assert again[1] == {"status": 200, "position": f"{topic}/0/2"}
    assert keys(kafka.brokers, topic) == Counter({b"b/0": 1, b"b/1": 1, b"b/2": 1})


def test_a_batch_whose_client_goes_away_can_be_sent_again(kafka: Kafka, topic: str, producer: Make) -> None:
    line = b'{"type":"Deposit","payload":{"amount":1}}\n'
    head = "POST /accounts/a HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nIdempotency-Key: b\r\n"
    with producer() as role:
        with socket.create_connection(("127.0.0.1", role.port)) as connection:
            connection.sendall(f"{head}Content-Length: {1000 * len(line)}\r\n\r\n".encode() + line * 400)
            wait_until(lambda: read_all(kafka.brokers, topic), what="some are stored")
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "b"}

        def again() -> bool:
            return httpx.post(role.url + "/accounts/a", content=line * 1000, headers=headers).status_code == 200

        wait_until(again, 30, "all are stored")
    found = keys(kafka.brokers, topic)
    assert len(found) == 1000
    assert set(found.values()) == {1}


def test_an_unknown_outcome_is_answered_once_it_is_known(own_kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(own_kafka.brokers, REQUEST_TIMEOUT="1000") as role:
        assert settled(lambda: post(role, "before")).status_code == 200
        own_kafka.pause()
        first = post(role, "k", 2)
        assert first.status_code == 504, first.text
        wait_until(lambda: post(role, "k", 2).status_code == 504, what="no longer under way")
        assert post(role, "k", 2).json()["id"] == first.json()["id"]
        own_kafka.resume()
        wait_until(lambda: post(role, "k", 2).status_code == 200, 30, "confirmed late")
        answer = post(role, "k", 2)
        assert answer.headers["hive-position"] == f"{topic}/0/2"
        assert len(answer.json()) == 2
    assert keys(own_kafka.brokers, topic) == Counter({b"before": 1, b"k": 2})


def test_what_the_end_flushes_is_known_to_the_next_instance(own_kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(own_kafka.brokers, REQUEST_TIMEOUT="1000", DRAIN_TIMEOUT="60000") as role:
        assert settled(lambda: post(role, "before")).status_code == 200
        own_kafka.pause()
        assert (found := post(role, "k")).status_code == 504, found.text
        role.terminate()
        wait_until(lambda: role.logs("draining"), what="draining")
        own_kafka.resume()
        assert role.ended(60) == 0
    with producer(own_kafka.brokers) as role:
        assert post(role, "k").headers["hive-position"] == f"{topic}/0/1"
    assert keys(own_kafka.brokers, topic) == Counter({b"before": 1, b"k": 1})


def test_killed_between_claim_and_answer_it_is_never_stored_twice(
    own_kafka: Kafka, topic: str, producer: Make, redis: Redis
) -> None:
    with producer(own_kafka.brokers, REQUEST_TIMEOUT="3000") as role:
        assert settled(lambda: post(role, "before")).status_code == 200
        own_kafka.pause()
        first = post(role, "k")
        assert first.status_code == 504, first.text
        role.kill()
        own_kafka.resume()
    with producer(own_kafka.brokers, REQUEST_TIMEOUT="3000") as role:
        again = post(role, "k")
        assert again.status_code == 504
        assert again.json()["id"] == first.json()["id"]
        with RedisClient.from_url(redis.url) as client:
            (claim,) = [key for key in client.scan_iter(match=f"hive:keys:*{topic}*") if b'"k"' in key]
            client.pexpire(claim, 100 * 3_600_000)  # as where the clock was set back
        assert post(role, "k").status_code == 504
        assert settled(lambda: post(role, "other")).status_code == 200
    assert keys(own_kafka.brokers, topic)[b"k"] <= 1


def test_without_redis_keyed_requests_wait_for_it_and_others_go_on(kafka: Kafka, topic: str, producer: Make) -> None:
    with Redis() as own_redis, producer(CACHE_URL=own_redis.url) as role:
        assert post(role, "k1").status_code == 200
        own_redis.pause()
        refused = post(role, "k2")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert post(role, None).status_code == 200
        assert httpx.get(role.url + "/readyz").status_code == 503
        own_redis.resume()
        role.ready()
        until = time.monotonic() + 20
        while (answer := post(role, "k2")).status_code != 200:  # 409 until it is known that it was not sent
            assert time.monotonic() < until, answer.text
            time.sleep(0.05)
    found = Counter(dict(m.headers() or []).get("hive-key") for m in read_all(kafka.brokers, topic))
    assert found == Counter({b"k1": 1, b"k2": 1, None: 1})


def test_a_redis_that_may_evict_keys_stops_the_start(producer: Make) -> None:
    with Redis() as own_redis:
        with RedisClient.from_url(own_redis.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        with producer(CACHE_URL=own_redis.url, wait=False) as role:
            assert role.ended() == 20


def test_without_a_cache_the_key_travels_and_the_consumer_drops_the_repeat(
    kafka: Kafka, topic: str, producer: Make
) -> None:
    with producer(CACHE_URL="") as role:
        assert post(role, "k").headers["hive-position"] != post(role, "k").headers["hive-position"]
    first, second = read_all(kafka.brokers, topic)
    for name in ("hive-key", "hive-actor"):  # with the record's key and the end of hive-id, what the consumer compares
        assert dict(first.headers() or [])[name] == dict(second.headers() or [])[name]
