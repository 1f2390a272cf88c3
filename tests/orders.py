"""The four services of ``examples/orders`` as processes, and what is on their topics, as tests see it."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from hiveio.kafka.headers import headers_of
from hiveio.transaction import record as records
from hiveio.transaction.record import Commit
from hiveio.transaction.rule import ReferenceFold
from tests.integration.topics import read_all
from tests.process import ROOT, Role, wait_until
from tests.services import Kafka, Redis

NAMES = ("orders", "payments", "stock", "fulfilment")


Environ = Mapping[str, str]


class Shop:
    """The services, on a Kafka of their own.

    ``further`` are settings of single services that add to those that all have, or replace them; ``entrypoints`` are
    what single ones serve with instead of the image's; both by the service or by one instance of it, as in "stock-2".
    """

    def __init__(
        self,
        kafka: Kafka,
        redis: Redis,
        wait_s: float,
        partitions: int,
        further: Mapping[str, Environ] | None = None,
        entrypoints: Mapping[str, Path] | None = None,
    ) -> None:
        self.kafka, self.redis = kafka, redis
        self._wait_s, self._partitions = wait_s, partitions
        self.further, self.entrypoints = dict(further or {}), dict(entrypoints or {})
        self.roles: dict[str, Role] = {}
        self.client = httpx.Client(timeout=20)

    def start(self, *names: str) -> None:
        """Start services, and wait until all are ready, those that were begun before too."""
        self.begin(*names)
        for role in self.roles.values():
            role.ready(60)

    def begin(self, *names: str) -> None:
        for name in names:
            service = name.partition("-")[0]  # a second instance of it has a number
            settings = {
                "EVENT_STORE_BROKERS": self.kafka.brokers,
                "CACHE_URL": self.redis.url,
                "EVENT_STORE_TOPIC": service,
                "EVENT_STORE_GROUP_ID": service,
                "EVENT_STORE_FROM_START": "true",
                "EVENT_STORE_PARTITIONS": str(self._partitions),
            }
            if service == "fulfilment":
                settings |= {"EVENT_STORE_CONSUMER_TOPIC": "orders,payments,stock", "PAYMENT_WAIT": str(self._wait_s)}
            else:
                settings["COMMAND_TOPICS"] = "fulfilment.commands"
            settings |= {"ACTOR_PATH": str(ROOT / "examples"), "ACTOR_MODULE": f"orders.{service}"}
            settings |= {**self.further.get(service, {}), **self.further.get(name, {})}
            role = Role("stream-processor", {key: text for key, text in settings.items() if text})
            role.entrypoint = self.entrypoints.get(name, self.entrypoints.get(service, role.entrypoint))
            self.roles[name] = role.start()

    def kill(self, name: str) -> None:
        self.roles.pop(name).kill()

    def stop(self) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda role: role.stop(), self.roles.values()))
        self.client.close()

    def tool(self, name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """What ``hiveio`` says with the settings of a service."""
        command = [str(Path(sys.executable).parent / "hiveio"), *words]
        environ = self.roles[name].environ
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=90, check=False)

    def post(self, name: str, path: str, kind: str, **payload: Any) -> dict[str, Any]:
        """A command, sent with its key until its answer is definite."""
        body, key = {"type": kind, "payload": payload}, {"Idempotency-Key": uuid.uuid4().hex}

        def answer() -> httpx.Response | None:
            found = self.client.post(f"{self.roles[name].url}{path}", json=body, headers=key)
            return None if found.status_code in (503, 504) or "retry-after" in found.headers else found

        found = wait_until(answer, 60, f"an answer of {name} to {kind} {path}")
        assert found.status_code == 200, found.text
        return dict(found.json() or {})

    def state(self, name: str, path: str) -> dict[str, Any]:
        found = self.client.get(f"{self.roles[name].url}{path}")
        return dict(found.json()["payload"]) if found.status_code == 200 else {}

    def place(self, id: str, customer: str, sku: str, amount: int, quantity: int = 1) -> None:
        self.post("orders", f"/orders/{id}", "Place", customer=customer, sku=sku, quantity=quantity, amount=amount)

    def until(self, id: str, *statuses: str, within_s: float = 30) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            order = self.state("orders", f"/orders/{id}")
            return order if order.get("status") in statuses else None

        found: dict[str, Any] = wait_until(there, within_s, f"the order {id} is {statuses}")
        return found


@contextmanager
def shop(
    kafka: Kafka,
    redis: Redis,
    *,
    wait_s: float = 6,
    partitions: int = 1,
    further: Mapping[str, Environ] | None = None,
    entrypoints: Mapping[str, Path] | None = None,
    names: Sequence[str] = NAMES,
) -> Iterator[Shop]:
    """The shop with these instances of its services."""
    made = Shop(kafka, redis, wait_s, partitions, further, entrypoints)
    with ExitStack() as stack:
        stack.callback(made.stop)
        made.start(*names)
        try:
            yield made
        except BaseException:
            for name, role in made.roles.items():
                print(name, *[line["message"] for line in role.complaints()], sep="\n  ")
            raise


def headers(kafka: Kafka, topic: str) -> list[tuple[str, dict[str, str]]]:
    """The type and the headers of each record that a service has published, without repeats."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for message in read_all(kafka.brokers, topic):
        named = {name: (text or b"").decode() for name, text in headers_of(message)}
        if "hive-position" in named:
            found.setdefault(named["hive-position"], (json.loads(message.value() or b"")["type"], named))
    return list(found.values())


def reset(kafka: Kafka, group: str, topics: Sequence[str], partitions: Iterable[int] = (0,)) -> None:
    """Let a group begin again at the first record. It has no members."""
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    offsets = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, p, 0) for topic in topics for p in partitions])

    def altered() -> bool:
        try:
            for future in admin.alter_consumer_group_offsets([offsets]).values():
                future.result(10)
        except Exception:  # the dead member is still in the group
            return False
        return True

    wait_until(altered, 60, f"the group {group} is empty")


def answered(kafka: Kafka, over_http: str = "") -> bool:
    """Whether there are as many answers as commands, but for those of a service that is reached over HTTP."""
    commands = [at for _, at in headers(kafka, "fulfilment.commands") if at["hive-service"] != over_http]
    answers = [each for name in NAMES[:3] for each in headers(kafka, name) if "hive-cause" in each[1]]
    return len(answers) >= len(commands)


def check_commands(kafka: Kafka, over_http: str = "") -> None:
    """The outbox is what accepted records say, in their order; each command was executed or refused once, and answered
    with its cause, but for those of a service that is reached over HTTP."""
    commands = headers(kafka, "fulfilment.commands")
    accepted: dict[int, list[str]] = {}
    folds: dict[int, ReferenceFold] = {}
    for message in sorted(read_all(kafka.brokers, "fulfilment.transactions"), key=lambda each: each.offset() or 0):
        partition, record = message.partition() or 0, records.decode(message.value() or b"")
        key = (message.key() or b"").decode()
        if not folds.setdefault(partition, ReferenceFold()).append(key, record, message.timestamp()[1]):
            continue
        if isinstance(record, Commit) and record.process is not None:
            sends = range(len(record.process.sends))
            accepted.setdefault(partition, []).extend(f"{partition}:{message.offset()}:{index}" for index in sends)
    published: dict[int, list[str]] = {}
    for _, at in commands:
        published.setdefault(int(at["hive-position"].partition(":")[0]), []).append(at["hive-position"])
    assert published == {partition: sent for partition, sent in accepted.items() if sent}
    log = commands[0][1]["hive-log"]
    on_topics = [at for _, at in commands if at["hive-service"] != over_http]
    sent = sorted(f"fulfilment.commands/{log}/{at['hive-position'].replace(':', '/', 1)}" for at in on_topics)
    answers = [each for name in NAMES[:3] for each in headers(kafka, name) if "hive-cause" in each[1]]
    assert sorted(at["hive-cause"] for _, at in answers) == sent
    outcomes = {(kind, at["hive-outcome"]) for kind, at in answers if "hive-outcome" in at}
    assert outcomes <= {("CommandRefused", "refused"), ("CommandAccepted", "accepted")}
