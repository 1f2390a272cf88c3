"""Every role and command works with the rights that docs/security.md lists for it, and says which one is missing."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.conftest import required
from tests.integration.consumers import wire
from tests.integration.test_security import AUTHORIZER, complaints_but_slowness, rights_in_force
from tests.integration.topics import make_topic, read_all, write
from tests.process import ROOT, Role, wait_until
from tests.services import Kafka, Redis, Security

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(300)]
FOREVER = {"retention.ms": "-1", "retention.bytes": "-1"}
ACTOR = """
import os
from hiveio import Actor, Command, Context, Event, Model, Query
from hiveio.projection import SqliteProjection

class Deposit(Command):
    amount: int
class Deposited(Event):
    amount: int
class Account(Model):
    amount: int = 0
class Amounts(Query):
    pass

class AccountActor(Actor):
    path = "/accounts/{id}"

    def perform(self, account: Account | None, command: Deposit) -> Deposited:
        return Deposited(command.amount)

    def replay(self, account: Account | None, event: Deposited) -> Account:
        return Account(event.amount)

class Lines(SqliteProjection):
    path = "/amounts"
    database = os.environ.get("DATABASE", ":memory:")
    tables = "CREATE TABLE IF NOT EXISTS line (amount INTEGER)"

    def perform(self, message: Deposited | Amounts, context: Context) -> list[int] | None:
        if isinstance(message, Amounts):
            return [amount for (amount,) in self.connection.execute("SELECT amount FROM line ORDER BY rowid")]
        if message.amount < 0 and not os.path.exists(os.environ["DATABASE"] + ".good"):
            raise ValueError("less than nothing")
        self.once(context, lambda db: db.execute("INSERT INTO line VALUES (?)", (message.amount,)))
"""


@pytest.fixture(scope="module")
def security(tmp_path_factory: pytest.TempPathFactory) -> Security:
    return Security(tmp_path_factory.mktemp("rights"))


@pytest.fixture(scope="module")
def guarded(security: Security) -> Iterator[Kafka]:
    """A Kafka where a user may do what a test allows, and no more."""
    with required("kafka"), Kafka(security=security, properties=AUTHORIZER) as service:
        yield service


def documented() -> list[tuple[str, str, str, list[str]]]:
    """The rows of the page: who, topic or group, its name, rights."""
    page = (ROOT / "docs" / "security.md").read_text()
    row = re.compile(r"^\| ([^|]+) \| (topic|group) `([^`]+)` \| ([^|]+?) \|", re.MULTILINE)
    found = [(who, kind, name, rights.split(", ")) for who, kind, name, rights in row.findall(page)]
    assert len(found) > 10
    return found


@contextlib.contextmanager
def rights(
    guarded: Kafka, user: str, who: str, topic: str, *, create: bool = False, without: Collection[tuple[str, str]] = ()
) -> Iterator[None]:
    """Give the user what the page lists, for as long; ``without`` are names of rows, each with a right."""
    admin = AdminClient({"bootstrap.servers": guarded.brokers})
    acls = []
    for _, kind, name, operations in (row for row in documented() if row[0] == who):
        real = name.replace("<event topic>", topic).replace("<topic>", topic).replace("<group>", f"{topic}-group")
        for operation in [*operations, *(["Create"] if create and kind == "topic" else [])]:
            if (name, operation) in without:
                continue
            pattern = ResourcePatternType.PREFIXED if real.endswith("*") else ResourcePatternType.LITERAL
            right = AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()]
            resource = ResourceType.TOPIC if kind == "topic" else ResourceType.GROUP
            acls.append(
                AclBinding(resource, real.rstrip("*"), pattern, f"User:{user}", "*", right, AclPermissionType.ALLOW)
            )
    for made in admin.create_acls(acls).values():
        made.result(30)
    wait_until(lambda: rights_in_force(admin).issuperset(acls), 20, "the rights in force")
    try:
        yield
    finally:
        given = [
            AclBindingFilter(
                acl.restype, acl.name, acl.resource_pattern_type, acl.principal, acl.host, acl.operation,
                acl.permission_type,
            )
            for acl in acls
        ]  # fmt: skip
        for deleted in admin.delete_acls(given).values():
            deleted.result(30)
        # Else those that are given next might be seen in force before these are gone.
        wait_until(lambda: rights_in_force(admin).isdisjoint(acls), 20, "the rights gone")


@pytest.fixture
def environ(guarded: Kafka, security: Security, topic: str, tmp_path: Path) -> dict[str, str]:
    return {
        "EVENT_STORE_BROKERS": guarded.secure,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": f"{topic}-group",
        "EVENT_STORE_FROM_START": "true",
        "CONSUMER_ATTEMPTS": "1",
        "DATABASE": str(tmp_path / "lines.sqlite"),
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SSL_CA_LOCATION": str(security.ca),
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": security.user,
        "KAFKA_SASL_PASSWORD": security.password,
        "KAFKA_TOPIC_METADATA_REFRESH_INTERVAL_MS": "500",
    }


def role(name: str, environ: dict[str, str], actor: str, **more: Any) -> Role:
    return Role(name, environ, actor=ACTOR, module=f"accounts:{actor}", **more)


def handled(service: Role, amounts: list[int]) -> None:
    try:
        wait_until(lambda: httpx.get(service.url + "/amounts").json() == amounts, 30)
    except AssertionError:
        raise AssertionError(service.text()) from None


def events(*amounts: int) -> list[Any]:
    return [(0, f"k{amount}", wire(amount), {}) for amount in amounts]


@pytest.mark.parametrize("made", ["made beforehand", "made by the service"])
def test_every_role(
    guarded: Kafka, security: Security, redis: Redis, topic: str, environ: dict[str, str], made: str
) -> None:
    create = made == "made by the service"
    names = (f"{topic}-p", f"{topic}-s", f"{topic}-s.transactions", f"{topic}-c", f"{topic}-c.{topic}-c-group.dead")
    for name in (names[3:4]) if create else names:
        log = {"message.timestamp.type": "LogAppendTime"} if name.endswith(".transactions") else {}
        make_topic(guarded.brokers, name, 1, FOREVER | log)
    producing, streaming, consuming = (environ | {"EVENT_STORE_TOPIC": name} for name in (names[0], names[1], names[3]))
    with (
        rights(guarded, security.user, "producer", names[0], create=create),
        role("producer", producing, "AccountActor") as service,
    ):
        assert httpx.post(service.url + "/accounts/1", json={"amount": 1}, timeout=30).status_code == 200
        assert complaints_but_slowness(service) == []
    with (
        rights(guarded, security.user, "stream processor", names[1], create=create),
        role("stream-processor", streaming | {"CACHE_URL": redis.url}, "AccountActor") as service,
    ):
        assert httpx.post(service.url + "/accounts/1", json={"amount": 1}, timeout=30).status_code == 200
        wait_until(lambda: read_all(guarded.brokers, names[1]), 30, "the event is published")
        assert complaints_but_slowness(service) == []
    consuming["EVENT_STORE_GROUP_ID"] = f"{names[3]}-group"
    write(guarded.brokers, names[3], events(1, -2, 3))
    with (
        rights(guarded, security.user, "consumer", names[3], create=create),
        role("consumer", consuming, "Lines") as service,
    ):
        handled(service, [1, 3])
        assert [text for text in complaints_but_slowness(service) if "less than nothing" not in text] == []
    assert len(read_all(guarded.brokers, names[4])) == 1


def test_every_command_of_the_consumer(
    guarded: Kafka, security: Security, topic: str, environ: dict[str, str], tmp_path: Path
) -> None:
    make_topic(guarded.brokers, topic, 1, FOREVER)
    make_topic(guarded.brokers, f"{topic}.{topic}-group.dead", 1, FOREVER)
    write(guarded.brokers, topic, events(1, -2, 3))
    (tmp_path / "accounts.py").write_text(ACTOR)

    def command(who: str, *words: str) -> str:
        with rights(guarded, security.user, who, topic):
            done = subprocess.run(
                [Path(sys.executable).parent / "hiveio", *words],
                capture_output=True, text=True, timeout=60, check=False,
                env={**environ, "ACTOR_PATH": str(tmp_path), "ACTOR_MODULE": "accounts:Lines"},
            )  # fmt: skip
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    with rights(guarded, security.user, "consumer", topic), role("consumer", environ, "Lines") as service:
        handled(service, [1, 3])
    assert "1 dead letter of 1 key\n" in command("`hiveio dead`", "dead", "list")
    command("`hiveio dead`", "dead", "retry", "--all", "--no-wait")
    Path(environ["DATABASE"] + ".good").touch()
    assert "3 events replayed" in command("`hiveio replay`", "replay")
    assert "begins anew" in command("`hiveio replay`", "replay", "--reset", "--no-wait")


@pytest.mark.parametrize(
    ("row", "right", "says"),
    [
        ("<topic>", "Describe", r"topic {topic}: the user may not Describe"),
        ("<topic>", "Read", r"topic {topic}: the user may not Describe or Read"),
        ("<group>", "Read", r"group {topic}-group: the user may not Read"),
        ("<topic>.<group>.dead", "Write", r"{topic}\.{topic}-group\.dead.*Write"),
    ],
)
def test_what_is_missing_is_named(
    guarded: Kafka, security: Security, topic: str, environ: dict[str, str], row: str, right: str, says: str
) -> None:
    make_topic(guarded.brokers, topic, 1, FOREVER)
    make_topic(guarded.brokers, f"{topic}.{topic}-group.dead", 1, FOREVER)
    write(guarded.brokers, topic, events(1, -2))
    says = says.replace("{topic}", topic)
    without = {(row, right)} | ({(row, "Read")} if right == "Describe" else set())  # which Read implies
    with (
        contextlib.ExitStack() as stack,
        role("consumer", environ, "Lines", wait=False) as service,
    ):
        stack.enter_context(rights(guarded, security.user, "consumer", topic, without=without))
        wait_until(lambda: service.port, 30, "it listens")

        def is_reported() -> bool:
            answer = httpx.get(service.url + "/readyz?verbose", timeout=10)
            return answer.status_code == 503 and re.search(says, answer.text) is not None

        try:
            wait_until(is_reported, 40, says)
        except AssertionError:
            raise AssertionError(httpx.get(service.url + "/readyz?verbose").text + service.text()) from None
        wait_until(lambda: any(re.search(says, line["message"]) for line in service.complaints()), 10, "a line says so")
