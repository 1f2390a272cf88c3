"""The runbooks of docs/operations.md, played: a log that is mirrored, a region that is lost, another number of
partitions, and what an aggregate and a key cost in Redis."""

import base64
import contextlib
import json
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx
import msgspec
import pytest
import redis as redis_client
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient

from hiveio.transaction.command import Token
from tests.conftest import required
from tests.integration.accounts import HEAD, balance, send
from tests.integration.conftest import Make
from tests.integration.topics import configure, make_topic, read_all
from tests.process import ROOT, Role, wait_until
from tests.services import Kafka, MirrorMaker, Redis, mirror_home

ACTOR = (
    HEAD
    + """
class Deposit(Command):
    amount: Annotated[int, Meta(gt=0)]
class Adopt(Command):
    owner: str
    balance: int
class Adopted(Event):
    owner: str
    balance: int

class AccountActor(Actor):
    path = "/accounts/{id}"

    def perform(
        self, account: Account | None, command: Open | Deposit | Adopt
    ) -> Opened | Deposited | Adopted:
        match command:
            case Open(owner=owner):
                return Opened(owner)
            case Adopt(owner=owner, balance=balance):
                if account:
                    raise Rejected("this account is here already")
                return Adopted(owner, balance)
            case Deposit(amount=amount):
                if not account:
                    raise Rejected("no such account")
                return Deposited(amount)

    def replay(self, account: Account | None, event: Opened | Deposited | Adopted) -> Account:
        match event:
            case Opened(owner=owner):
                return Account(owner)
            case Adopted(owner=owner, balance=balance):
                return Account(owner, balance)
            case Deposited(amount=amount):
                return Account(account.owner, account.balance + amount)
"""
)
OPENINGS = (
    HEAD
    + """
class Openings(Actor):
    path = "/accounts/{id}"

    def perform(self, message: Open) -> Opened:
        return Opened(message.owner)
"""
)
AMOUNTS = """
from hiveio import Context, Event
from hiveio.projection import SqliteProjection

class Deposited(Event):
    amount: int

class Amounts(SqliteProjection):
    unknown = "skip"
    database = "FILE"
    tables = "CREATE TABLE IF NOT EXISTS line (amount BIGINT)"

    def perform(self, event: Deposited, context: Context) -> None:
        self.once(context, lambda db: db.execute("INSERT INTO line VALUES (?)", (event.amount,)))
"""
RUNBOOKS = (ROOT / "docs" / "operations.md").read_text("utf-8")


def mirrored_topic(brokers: str, log: str) -> None:
    """As the first step of the runbook makes the log in the other cluster."""
    step = RUNBOOKS.split("1. Make `<event topic>.transactions` in the other cluster")[1].split("\n2. ")[0]
    config = dict(re.findall(r"`([a-z.]+)=([^`]+)`", step))
    assert config.keys() == {"message.timestamp.type", "retention.ms", "retention.bytes", "cleanup.policy"}
    make_topic(brokers, log, 1, config)


def mirror_maker(source: str, target: str, log: str) -> MirrorMaker:
    """With the properties of the runbook."""
    (properties,) = re.findall(r"```properties\n(.*?)```", RUNBOOKS, re.S)
    text = re.sub(r"(?m)^ +", "", properties)
    for word, ours in (("kafka-here:9092", source), ("kafka-there:9092", target), ("bank.transactions, visits", log)):
        assert word in text
        text = text.replace(word, ours)
    return MirrorMaker(text)


def records(brokers: str, topic: str) -> list[tuple[object, ...]]:
    """All of it that verdicts depend on, and more."""
    return [
        (message.offset(), message.timestamp()[1], message.key(), message.value(), message.headers())
        for message in read_all(brokers, topic)
    ]


def delete(brokers: str, *names: str) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})
    for deleted in admin.delete_topics(list(names)).values():
        deleted.result(10)
    wait_until(lambda: not {*names} & topics(brokers), 20, f"{names} gone")


def topics(brokers: str) -> set[str]:
    return set(AdminClient({"bootstrap.servers": brokers}).list_topics(timeout=10).topics)


def twice(environ: Mapping[str, str]) -> list[str]:
    """The ids of transactions that are on record more than once, as the runbook looks for them."""
    lines = hiveio(environ, "log", "--json", "--scope", "0").stdout.splitlines()
    found = Counter(json.loads(line)["transaction"] for line in lines)
    return [id for id, count in found.items() if count > 1]


def copy(source: str, target: str, topic: str, first: int = 0, end: int | None = None, *, to: str = "") -> None:
    """Append some of a topic's records there, as a mirror does: in order, with key, headers and time."""
    producer = Producer({"bootstrap.servers": target, "enable.idempotence": True})
    for message in read_all(source, topic)[first:end]:
        headers, (_, time_ms) = message.headers() or [], message.timestamp()
        producer.produce(to or topic, message.value(), message.key(), 0, headers=headers, timestamp=time_ms)
    assert producer.flush(30) == 0


def partition_of(message: Message) -> int:
    partition = message.partition()
    assert partition is not None
    return partition


def promote(target: str, log: str) -> None:
    """From now on the brokers' clock counts, as in a log that the runtime makes."""
    configure(target, log, {"message.timestamp.type": "LogAppendTime"})


def hiveio(environ: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    tool = str(Path(sys.executable).parent / "hiveio")
    return subprocess.run([tool, *words], env=dict(environ), capture_output=True, text=True, timeout=90, check=False)


def published(brokers: str, topic: str, count: int) -> list[Message]:
    def found() -> list[Message] | None:
        try:
            events = read_all(brokers, topic)
        except (AssertionError, KeyError):
            return None
        return events if len(events) >= count else None

    events: list[Message] = wait_until(found, 30, f"{count} events on {topic}")
    return events


def transaction(id: str, key: str, end: int) -> str:
    """The id of a transaction, as a 504 has it: of a command with a key that came when the log ended at this offset."""
    token = Token("AccountActor", id, key, end, int(time.time() * 1_000), True)
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).rstrip(b"=").decode()


def positions(events: list[Message]) -> list[bytes]:
    return [dict(event.headers() or [])["hive-position"] for event in events]  # type: ignore[misc]


def reader(brokers: str, topic: str, file: Path) -> Role:
    """A consumer that begins at the first event, and keeps the amounts in a file."""
    settings = {"EVENT_STORE_BROKERS": brokers, "EVENT_STORE_TOPIC": topic, "EVENT_STORE_FROM_START": "true"}
    return Role("consumer", {**settings, "EVENT_STORE_GROUP_ID": file.stem}, actor=AMOUNTS.replace("FILE", str(file)))


def amounts(file: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(file)) as database:
        return [amount for (amount,) in database.execute("SELECT amount FROM line ORDER BY rowid")]


@pytest.mark.timeout(240, func_only=True)  # MirrorMaker needs a quarter of a minute of a core to start
@pytest.mark.ahead(mirror_home, print)
def test_a_log_that_is_mirrored_is_the_same_service_in_another_cluster(
    kafka: Kafka, own_kafka: Kafka, redis: Redis, topic: str, processor: Make, tmp_path: Path
) -> None:
    log, kept, empty = f"{topic}.transactions", tmp_path / "kept.db", tmp_path / "empty.db"
    with required("mirrormaker"), contextlib.closing(mirror_maker(kafka.brokers, own_kafka.brokers, log)) as mirror:
        with processor() as role, reader(kafka.brokers, topic, kept):
            assert send(role, "ada", "Open", owner="Ada").status_code == 200
            mirrored_topic(own_kafka.brokers, log)
            mirror.start()
            first = send(role, "ada", "Deposit", {"Idempotency-Key": "k"}, amount=5)
            refused = send(role, "bob", "Deposit", {"Idempotency-Key": "r"}, amount=5)
            assert (first.status_code, refused.status_code) == (200, 422)
            events = published(kafka.brokers, topic, 2)
            before, there = role.environ, role.environ | {"EVENT_STORE_BROKERS": own_kafka.brokers}
            wait_until(lambda: amounts(kept) == [5], 20, "the projection")
        written = records(kafka.brokers, log)
        wait_until(lambda: records(own_kafka.brokers, log) == written, 60, f"the copy that {mirror.folder} makes")
    assert twice(there) == []
    assert not [name for name in topics(kafka.brokers) if name.startswith(("mm2", "heartbeats"))], "it only reads there"
    mirrored_topic(own_kafka.brokers, f"{topic}-killed.transactions")
    for first_record in (0, -1):  # as a mirror does that was killed, and goes on a record too early
        copy(kafka.brokers, own_kafka.brokers, log, first_record, to=f"{topic}-killed.transactions")
    assert len(twice(there | {"EVENT_STORE_TOPIC": f"{topic}-killed"})) == 1, "such a copy is no backup"
    with processor(own_kafka.brokers, wait=False) as early:  # before the promotion: it is refused, and says why
        assert early.ended() == 20
        assert "message.timestamp.type" in early.errors[-1]
    promote(own_kafka.brokers, log)
    # The same Redis: its keys carry the id of the topic, so nothing of the other cluster is used.
    with processor(own_kafka.brokers) as role:
        assert balance(role, "ada") == 5
        assert httpx.get(f"{role.url}/accounts/ada").headers["etag"] == '"2"'
        again = send(role, "ada", "Deposit", {"Idempotency-Key": "k"}, amount=5)
        assert (again.content, again.headers["etag"], again.headers["hive-position"]) == (
            first.content,
            first.headers["etag"],
            first.headers["hive-position"],
        )
        assert send(role, "bob", "Deposit", {"Idempotency-Key": "r"}, amount=5).content == refused.content
        assert positions(published(own_kafka.brokers, topic, 2)) == positions(events)
        assert send(role, "ada", "Deposit", amount=1).status_code == 200
        with reader(own_kafka.brokers, topic, kept), reader(own_kafka.brokers, topic, empty):
            wait_until(lambda: amounts(empty) == [5, 1], 30, "the projection that began empty")
            wait_until(lambda: amounts(kept) == [5, 5, 1], 30, "each event a second time, as the runbook warns")
        verified = hiveio(role.environ, "verify")
        assert verified.returncode == 0, verified.stdout
        old, new = (hiveio(each, "log", "--json").stdout.splitlines() for each in (before, role.environ))
        assert old == new[: len(old)], "offsets, times, verdicts and records are those of the other cluster"


def test_a_mirror_that_is_behind_its_event_topic_stops_and_one_without_goes_on(
    kafka: Kafka, own_kafka: Kafka, topic: str, processor: Make
) -> None:
    log = f"{topic}.transactions"
    with Redis() as there:  # of the other region
        with processor() as role:
            assert send(role, "ada", "Open", owner="Ada").status_code == 200
            assert send(role, "ada", "Deposit", amount=5).status_code == 200
            lost = send(role, "ada", "Deposit", {"Idempotency-Key": "lost"}, amount=7)
            assert lost.status_code == 200
            published(kafka.brokers, topic, 3)
            asked = transaction("ada", "asked", 4)  # of a 504, whose command is on record here or not
            before = role.environ
        for name in (log, topic):
            mirrored_topic(own_kafka.brokers, name)
        copy(kafka.brokers, own_kafka.brokers, log, end=3)  # the format record and two commits
        copy(kafka.brokers, own_kafka.brokers, topic)
        promote(own_kafka.brokers, log)
        with processor(own_kafka.brokers, there.url) as role:
            wait_until(lambda: "does not match its log" in role.text(), 30, "the line that says why")
        delete(own_kafka.brokers, topic)
        with processor(own_kafka.brokers, there.url) as role:
            assert balance(role, "ada") == 5  # what had not arrived is lost
            assert len(published(own_kafka.brokers, topic, 2)) == 2
            again = send(role, "ada", "Deposit", {"Idempotency-Key": "lost"}, amount=7)  # and is done again by its key
            assert (again.status_code, balance(role, "ada")) == (200, 12)
            outcomes = [
                httpx.get(f"{role.url}/transactions/{each}").json()["outcome"]
                for each in (transaction("ada", "lost", 3), asked)
            ]
            assert outcomes == ["accepted", "closed"]
            assert send(role, "ada", "Deposit", {"Idempotency-Key": "asked"}, amount=9).status_code == 409
            old = hiveio(before, "log", "--json", "--scope", "0").stdout.splitlines()
            assert [json.loads(line)["position"] for line in old][3:] == [
                "0:3"
            ]  # what had not arrived, read in the lost one
            assert hiveio(role.environ, "verify").returncode == 0


def test_accounts_move_to_a_service_with_more_partitions(kafka: Kafka, topic: str, processor: Make) -> None:
    names = [f"a{number}" for number in range(12)]
    with processor() as old, processor(EVENT_STORE_TOPIC=f"{topic}-4", EVENT_STORE_PARTITIONS="4") as new:
        for number, name in enumerate(names):
            assert send(old, name, "Open", owner=name).status_code == 200
            if number:
                assert send(old, name, "Deposit", amount=number).status_code == 200
        known = {event.key() for event in published(kafka.brokers, topic, 2 * len(names) - 1)}
        for _ in range(2):  # it may be run again, from its start
            for key in sorted(known, key=str):
                name = key.decode() if isinstance(key, bytes) else str(key)
                state = httpx.get(f"{old.url}/accounts/{name}").json()["payload"]
                moved = send(new, name, "Adopt", {"Idempotency-Key": f"move-{name}"}, **state)
                assert moved.status_code == 200, moved.text
        assert [balance(new, name) for name in names] == list(range(12))
        assert {partition_of(event) for event in published(kafka.brokers, f"{topic}-4", 12)} == {0, 1, 2, 3}
        assert httpx.get(f"{new.url}/accounts/a1").headers["etag"] == '"1"'  # versions begin again


# -- capacity


def table() -> dict[str, int]:
    """The bytes in the table of the runbook, by what they are of."""
    text = RUNBOOKS.split("### Runbook: capacity")[1]
    return {name: int(size.replace(",", "")) for name, size in re.findall(r"^\| ([^|]+?) \| ([\d,]+) B", text, re.M)}


def test_what_an_aggregate_and_a_key_cost_in_redis(kafka: Kafka, redis: Redis, topic: str, processor: Make) -> None:
    """``pytest tests/integration/test_runbooks.py -k redis -s`` prints the bytes, as MEMORY USAGE has them."""
    count, owner = 200, "x" * 20
    body = {"type": "Open", "payload": {"owner": owner}}
    store = redis_client.Redis.from_url(redis.url)

    def used(pattern: str) -> list[int]:
        return [int(store.memory_usage(key, samples=0) or 0) for key in store.scan_iter(pattern, count=1_000)]

    def fill(role: Role) -> None:
        with httpx.Client(base_url=role.url) as client:
            for number in range(count):
                key = {"Idempotency-Key": f"0b6e3b1c-6b0e-4e0a-9f5e-0e6a1d2c{number:04d}"}
                assert client.post(f"/accounts/customer-{number:06d}", json=body, headers=key).status_code == 200

    scope = f"hive:{{{topic}.transactions/*}}:*:"
    with processor() as role:
        fill(role)
        wait_until(lambda: len(used(f"{scope}a:*")) == count, 20, "all snapshots")
        snapshot = msgspec.json.encode(httpx.get(f"{role.url}/accounts/customer-000000").json()["payload"])
        aggregates, ids = used(f"{scope}a:*"), [*used(f"{scope}ids"), *used(f"{scope}order:*")]
    with Role(
        "producer",
        {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": f"{topic}-opened", "CACHE_URL": redis.url},
        actor=OPENINGS,
    ) as role:
        fill(role)
        keys = used(f"hive:keys:{{{topic}-opened/*}}:*")
        assert len(keys) >= count
        answer = len(httpx.post(f"{role.url}/accounts/1", json=body).content)
    store.close()
    measured = {
        "an aggregate in Redis, without its snapshot": sum(aggregates) / count - len(snapshot),
        "a command id in Redis, with an `Idempotency-Key` of 36 characters": sum(ids) / count,
        "an `Idempotency-Key` of a producer in Redis, without its answer": sum(keys) / count - answer,
    }
    print(json.dumps(measured))
    assert {name: pytest.approx(size, rel=0.1) for name, size in measured.items()} == {
        name: table()[name] for name in measured
    }
