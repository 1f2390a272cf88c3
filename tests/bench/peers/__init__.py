"""Our roles beside the frameworks that one would use instead, in one run with the same settings for all.

The frameworks come from PyPI in the versions of ``requirements.txt``, and are installed into a folder of their own
under ``.cache``. ``programs/`` has a small service for each, as its documentation has it. It runs as one process, like
a role with one worker. All of them:

- answer once Kafka has stored the event: ``acks=all``, an idempotent producer, one partition, no compression, and the
  linger that the producer role has (0 below 8 clients, then 1 ms);
- take the same request, validate it by a model, and write the same JSON under the same key. Our roles write three to
  five headers besides, and the peers none, or those of their own;
- run on uvloop. uvicorn has httptools and no access log, FastStream no log line for each record;
- share one broker and one machine in rounds that alternate.
"""

import contextlib
import json
from pathlib import Path

import psycopg
from confluent_kafka import Consumer, TopicPartition

from tests.bench.bench import Bench, Served
from tests.bench.measure import Measure, Sample
from tests.bench.peers.environment import environment
from tests.bench.roles import VISIT, consumed, fill
from tests.bench.stream import DISTINCT, HOT
from tests.services import HOST, Postgres

PROGRAMS = Path(__file__).parent / "programs"
OURS = "hiveio"
USUAL = "FastAPI + confluent-kafka"
SLOWER = 20  # one record at a time through FastStream is measured over as many records less


class Peer(Served):
    """A program of a peer, served by its own Python."""

    def __init__(self, python: Path, program: str, **settings: object) -> None:
        super().__init__(program, "", {"SETTINGS": json.dumps(settings)})
        self._python = str(python)
        self.entrypoint = PROGRAMS / f"{program}.py"

    def command(self) -> list[str]:
        return [self._python, str(self.entrypoint)]


def peers(bench: Bench) -> None:
    """Our roles beside FastAPI with confluent-kafka, aiokafka, FastStream and eventsourcing-py."""
    with bench.console.status("peers: installing them, once"):
        python = environment()
    for clients in bench.clients:
        publishing(bench, python, clients)
    bench.show("peers: HTTP to Kafka", OURS)
    consuming(bench, python)
    bench.show("peers: Kafka to a handler", OURS)
    with Postgres() as postgres:
        for clients in bench.clients:
            deciding(bench, python, postgres, clients)
    bench.show("peers: commands on aggregates", OURS)


def publishing(bench: Bench, python: Path, clients: int) -> None:
    linger_ms = 0 if clients < 8 else 1  # as the producer's sender does

    def peer(client: str, linger_ms: int = linger_ms) -> Peer:
        topic = bench.make_topic()
        return Peer(python, "publish", client=client, brokers=bench.kafka.brokers, topic=topic, linger_ms=linger_ms)

    roles: dict[str, Served] = {
        OURS: bench.role("producer", "bench:Visits", EVENT_STORE_TOPIC=bench.make_topic()),
        USUAL: peer("confluent-kafka"),
        f"{USUAL}, its own linger": peer("confluent-kafka", 5),
        "FastAPI + aiokafka": peer("aiokafka"),
        "FastAPI + FastStream": peer("faststream"),
    }
    with contextlib.ExitStack() as stack:
        for role in roles.values():
            role.wait = False  # they start side by side
            stack.enter_context(role)
        for role in roles.values():
            role.ready()
        measures = {name: bench.http(role, VISIT, clients) for name, role in roles.items()}
        bench.compare("peers: HTTP to Kafka", clients, measures, OURS)
    for name, role in roles.items():
        topic = role.environ.get("EVENT_STORE_TOPIC") or json.loads(role.environ["SETTINGS"])["topic"]
        bench.check(f"{name}: records", end_of(bench, topic), role.acknowledged)


def end_of(bench: Bench, topic: str) -> int:
    """The number of records in a topic of one partition."""
    client = Consumer({"bootstrap.servers": bench.kafka.brokers, "group.id": "end"})
    try:
        return client.get_watermark_offsets(TopicPartition(topic, 0), 10)[1]
    finally:
        client.close()


def consuming(bench: Bench, python: Path) -> None:
    topic = bench.make_topic()
    with bench.console.status(f"peers: writing {bench.records:,} records"):
        fill(bench, topic)

    def peer(client: str, records: int = bench.records) -> Measure:
        def measure() -> Sample:
            options = {"client": client, "brokers": bench.kafka.brokers, "topic": topic, "records": records}
            program = bench.program([str(python), str(PROGRAMS / "consume.py")], **options, group=bench.topic())
            return program()

        return measure

    measures: dict[str, Measure] = {
        OURS: lambda: consumed(bench, topic, "bench:Views"),
        f"{OURS}, lists": lambda: consumed(bench, topic, "bench:Lists"),
        "aiokafka, lists": peer("aiokafka"),
        "FastStream": peer("faststream", max(bench.records // SLOWER, 100)),
        "FastStream, lists": peer("faststream-batch"),
    }
    bench.compare("peers: Kafka to a handler", 0, measures, OURS)


def deciding(bench: Bench, python: Path, postgres: Postgres, clients: int) -> None:
    database = f"peers_{clients}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    environ = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": database,
        "POSTGRES_HOST": HOST,
        "POSTGRES_PORT": str(postgres.port),
        "POSTGRES_USER": "hiveio",
        "POSTGRES_PASSWORD": "none",
        "POSTGRES_POOL_SIZE": "40",  # the threads of FastAPI
        "AGGREGATE_CACHE_MAXSIZE": "10000",
    }
    topic = bench.topic()
    with (
        bench.role("stream-processor", "tally:Tallies", EVENT_STORE_TOPIC=topic) as role,
        Peer(python, "aggregates", environ=environ) as peer,
    ):
        sides = {OURS: role, "eventsourcing-py on PostgreSQL": peer}
        for request, what in ((DISTINCT, "distinct"), (HOT, "one aggregate")):
            measures = {f"{name}, {what}": bench.http(each, request, clients) for name, each in sides.items()}
            bench.compare("peers: commands on aggregates", clients, measures, next(iter(measures)))
    bench.check(f"{OURS}: events", bench.stored(topic), role.acknowledged)
    url = postgres.url.replace("/postgres", f"/{database}")
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM tallies_events").fetchone()
    bench.check("eventsourcing-py: events", row[0] if row else 0, peer.acknowledged)
