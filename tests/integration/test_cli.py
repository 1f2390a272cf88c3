"""``hiveio verify``, ``hiveio log`` and ``hiveio transaction`` on a real log, while services work on it."""

import concurrent.futures
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis as redis_client
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from hiveio.transaction.record import FORMAT
from tests.integration.accounts import ACTOR, send  # noqa: F401 - ACTOR is what `processor` starts
from tests.integration.conftest import Make
from tests.integration.topics import read_all, write
from tests.process import Role, settled, wait_until
from tests.services import Kafka, Redis

Hiveio = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hiveio(processor: Make) -> Hiveio:
    made = processor()  # not started: the tool takes the same settings

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        tool = str(Path(sys.executable).parent / "hiveio")
        return subprocess.run([tool, *words], env=made.environ, capture_output=True, text=True, timeout=90, check=False)

    return call


@pytest.fixture
def role(processor: Make) -> Iterator[Role]:
    with processor() as role:
        for id in ("ada", "bob", "eve"):
            assert send(role, id, "Open", owner=id).status_code == 200
        yield role


def test_verify_finds_nothing_while_commands_come_in(role: Role, hiveio: Hiveio, topic: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for n in range(40):
            send(role, "ada", "Deposit", {"Idempotency-Key": f"k{n}"}, amount=1)
        going = True

        def deposit(number: int) -> None:
            while going:
                send(role, f"c{number}", "Open", owner="x")
                send(role, "bob", "Deposit", amount=1)

        for number in range(3):
            pool.submit(deposit, number)
        try:
            verified = hiveio("verify")
        finally:
            going = False
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stdout + verified.stderr
    assert verified.stdout.startswith(f"{topic}.transactions/0: ")
    assert verified.stdout.endswith("no difference\n")


def test_verify_finds_what_was_changed_by_hand(
    role: Role, hiveio: Hiveio, kafka: Kafka, redis: Redis, topic: str
) -> None:
    assert send(role, "ada", "Deposit", {"Idempotency-Key": "k"}, amount=1).status_code == 200
    wait_until(lambda: hiveio("verify").returncode == 0, 60, "applied and published")
    with redis_client.Redis.from_url(redis.url) as client:
        (ada,) = client.scan_iter(f"hive:{{{topic}.transactions/0/*}}:*:a:AccountActor/ada", count=10_000)
        before = client.get(ada)
        assert before is not None
        prefix = ada.removesuffix(b":a:AccountActor/ada")

        def difference() -> str:
            verified = hiveio("verify")
            assert verified.returncode == 1, verified.stdout
            assert "1 difference\n" in verified.stdout, verified.stdout
            return verified.stdout

        client.delete(ada)
        assert "AccountActor/ada is nothing in the cache, and '2 " in difference()
        client.set(ada, before.replace(b'"balance":1', b'"balance":1000'))
        assert '"balance":1000' in difference()
        client.set(ada, before)
        client.set(prefix + b":a:AccountActor/mallory", before)
        assert "AccountActor/mallory is in the cache, and the log has no record of it" in difference()
        client.delete(prefix + b":a:AccountActor/mallory")
        (key,) = [name for name in client.hkeys(prefix + b":ids") if name.endswith(b"/k")]
        id = client.hget(prefix + b":ids", key)
        client.hdel(prefix + b":ids", key)
        assert "command id 16:AccountActor/ada/k is nothing in the cache" in difference()
        client.hset(prefix + b":ids", key, id or b"")
        client.setbit(prefix + b":verdicts:0", 2, 0)
        assert "the verdict of offset 2 is 0 in the cache, and 1 by the log" in difference()
        client.setbit(prefix + b":verdicts:0", 2, 1)
        ((writer, number),) = client.hgetall(prefix + b":writers").items()
        client.hset(prefix + b":writers", writer, b"1:1")
        assert (
            f"the writer {writer.decode()} is at 1:1 in the cache, and at {number.decode()} by the log" in difference()
        )
        client.hset(prefix + b":writers", writer, number)
    assert hiveio("verify").returncode == 0
    write(kafka.brokers, topic, [(0, "ada", b'{"type":"Deposited","payload":{"amount":9}}', {})])
    assert f"{topic}/0/4: this record has no hive-position, so hiveio did not write it" in difference()
    write(kafka.brokers, topic, [(0, "ada", b"{}", {"hive-position": "0:4:7"})])
    assert f"{topic}/0/5: no accepted event has the position of this record" in hiveio("verify").stdout


def test_verify_finds_events_that_are_gone(role: Role, hiveio: Hiveio, kafka: Kafka, topic: str) -> None:
    wait_until(lambda: hiveio("verify").returncode == 0, 60, "applied and published")
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    partition = TopicPartition(topic, 0, 2)
    admin.delete_records([partition])[partition].result(10)
    verified = hiveio("verify")
    assert verified.returncode == 1, verified.stdout
    assert "2 differences" in verified.stdout, verified.stdout


def test_verify_looks_no_further_than_the_watermark(role: Role, hiveio: Hiveio, kafka: Kafka, topic: str) -> None:
    wait_until(lambda: len(read_all(kafka.brokers, topic)) == 3)
    assert role.stop() == 0
    commit = (read_all(kafka.brokers, f"{topic}.transactions")[1].value() or b"").replace(b"ada", b"zoe")
    write(kafka.brokers, f"{topic}.transactions", [(0, "by-hand", commit, {})])
    verified = hiveio("verify")  # the cache is behind it, so it is not looked at
    assert (verified.returncode, "4 records (0 void), 3 aggregates, 3 events published" in verified.stdout) == (0, True)


def test_log_shows_records_with_their_verdicts(role: Role, hiveio: Hiveio, kafka: Kafka, topic: str) -> None:
    send(role, "ada", "Deposit", {"Idempotency-Key": "k"}, amount=5)
    stale = read_all(kafka.brokers, f"{topic}.transactions")[1].value() or b""
    write(kafka.brokers, f"{topic}.transactions", [(0, "stale", stale, {})])
    lines = hiveio("log").stdout.splitlines()
    assert f"format {FORMAT}: 1 scopes, crc32, ids kept for 10000 records and 3600 s" in lines[0]
    assert lines[1].startswith("0:1  20")
    assert "  accepted  " in lines[1]
    assert lines[2] == '    AccountActor/ada  0 → 1  Opened {"owner": "ada"}'
    assert any("Idempotency-Key k" in line for line in lines)
    assert "  VOID      stale  commit AccountActor/ada" in lines[-2]
    mine = [json.loads(line) for line in hiveio("log", "AccountActor/ada", "--json").stdout.splitlines()]
    assert [(found["position"], found["verdict"]) for found in mine] == [
        ("0:1", "accepted"),
        ("0:4", "accepted"),
        ("0:5", "void"),
    ]
    assert len(hiveio("log", "--last", "1", "--json").stdout.splitlines()) == 1
    missing = hiveio("log", "AccountActor/nobody")
    text = f"hiveio log: no record of AccountActor/nobody is in {topic}.transactions"
    assert (missing.returncode, missing.stdout, missing.stderr) == (1, "", f"{text}\n")
    renamed = hiveio("log", "OrderActor/ada").stderr
    assert renamed == f"{text}: it has no actor OrderActor, but AccountActor\n".replace("Account", "Order", 1).replace(
        "nobody", "ada"
    )
    assert hiveio("log", "ada").returncode == 2
    send(role, "a%1B%5B2J%0Ab", "Open", {"Idempotency-Key": "k"}, owner="\x9b2J")
    last = hiveio("log", "--last", "1").stdout
    assert "AccountActor/a\\x1b[2J\\nb  0 → 1" in last
    assert len(last.splitlines()) == 2
    assert "\x9b" not in last
    wrong = hiveio("log", "--scope", "7")
    assert (wrong.returncode, wrong.stderr) == (2, "hiveio log: --scope 7: the log has the scopes 0 to 0\n")


def test_log_follows(role: Role, kafka: Kafka, topic: str) -> None:
    environ = {"PATH": os.environ["PATH"], "EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic}
    tool = str(Path(sys.executable).parent / "hiveio")
    with subprocess.Popen([tool, "log", "--follow", "--json"], env=environ, stdout=subprocess.PIPE, text=True) as found:
        assert found.stdout is not None
        seen = [json.loads(found.stdout.readline())["position"] for _ in range(4)]
        send(role, "ada", "Deposit", amount=5)
        seen.append(json.loads(found.stdout.readline())["position"])
        found.terminate()
    assert seen == ["0:0", "0:1", "0:2", "0:3", "0:4"]


def test_a_topic_that_is_not_there_is_said_in_one_line(hiveio: Hiveio, topic: str) -> None:
    for words in (("transaction", "nonsense"), ("log",), ("verify",)):
        missing = hiveio(*words)
        assert missing.returncode == 1
        assert missing.stderr.startswith(f"hiveio {words[0]}: the topic {topic}.transactions does not exist at ")
        assert missing.stderr.count("\n") == 1


def test_transaction_tells_what_became_of_a_504(processor: Make, topic: str) -> None:
    with Kafka() as kafka:
        few = {"REQUEST_TIMEOUT": "1500", "IDEMPOTENCY_COUNT": "5", "IDEMPOTENCY_TIME": "0"}
        with processor(kafka.brokers, **few) as role:
            # Without a second record of it, if it takes longer than REQUEST_TIMEOUT until its scope is open.
            assert settled(lambda: httpx.get(f"{role.url}/accounts/ada", timeout=30)).status_code == 404
            assert send(role, "ada", "Open", owner="Ada").status_code == 200
            kafka.pause()
            try:
                unknown = send(role, "ada", "Deposit", amount=1_000)
            finally:
                kafka.resume()
            for _ in range(10):  # so many that the service remembers it no more
                wait_until(lambda: send(role, "ada", "Deposit", amount=1).status_code == 200)
            transaction = unknown.json()["transaction"]
            outcome = httpx.get(f"{role.url}/transactions/{transaction}", timeout=30).json()["outcome"]
            balance = httpx.get(f"{role.url}/accounts/ada", timeout=30).json()["payload"]["balance"]
        environ = {"PATH": os.environ["PATH"], "EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic}
        tool = str(Path(sys.executable).parent / "hiveio")

        def ask(id: str) -> subprocess.CompletedProcess[str]:
            words = [tool, "transaction", id]
            return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=False)

        assert outcome == "unknown"
        found = ask(transaction)
        if balance >= 1_000:  # each of the others may count twice, as it is sent again after a 504
            assert (found.returncode, f"outcome: accepted at {topic}.transactions/0/" in found.stdout) == (0, True)
        else:
            assert (found.returncode, found.stdout.splitlines()[-1]) == (
                1,
                "outcome: not on record: nothing has happened so far",
            )
        event = wait_until(lambda: read_all(kafka.brokers, topic), 30, "an event is published")[0]
        id = dict(event.headers() or [])["hive-id"]
        by_event = ask(id.decode() if isinstance(id, bytes) else str(id))
        assert by_event.stdout.splitlines()[-1] == f"outcome: accepted at {topic}.transactions/0/1"
