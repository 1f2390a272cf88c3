"""The services that all other tests rest on: they answer, keep their data, and never outlive their maker."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from redis import Redis as Client
from redis.exceptions import TimeoutError as RedisTimeoutError

from hiveio.cli import main
from tests.process import wait_until
from tests.services import HOST, Kafka, Redis, ServiceFailed, ServiceUnavailable, free_port, kafka_cluster

ROOT = Path(__file__).parents[2]


def make_topic(brokers: str, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(10)


def append(brokers: str, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": brokers, "acks": "all", "log_level": 0})
    producer.produce(topic, value)
    assert producer.flush(15) == 0


def leader_of(admin: AdminClient, topic: str) -> int:
    """The node that leads its partition. The one that is asked may not have heard of the topic yet."""

    def known() -> int:
        partitions = admin.list_topics(topic, timeout=5).topics[topic].partitions
        return max(partitions[0].leader, 0) if 0 in partitions else 0

    leader: int = wait_until(known, what="the leader is known")
    return leader


def values(brokers: str, topic: str, count: int) -> list[bytes | None]:
    group = {"group.id": f"of-{topic}", "group.protocol": "consumer", "auto.offset.reset": "earliest"}
    consumer = Consumer({"bootstrap.servers": brokers, "enable.auto.commit": False, **group})
    try:
        consumer.subscribe([topic])
        return [message.value() for message in consumer.consume(count, 15)]
    finally:
        consumer.close()


def client(redis: Redis, timeout_s: float = 5.0) -> Client:
    return Client.from_url(redis.url, socket_timeout=timeout_s, retry=None)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def test_no_two_processes_draw_the_same_port() -> None:
    port = free_port()
    other = f"""
import random
from unittest.mock import patch
from tests.services import free_port
draws = iter([{port}, {port}, *random.sample(range(15_000, 32_000), 100)])
with patch("random.SystemRandom.randrange", lambda *_: next(draws)):
    print(free_port())
"""
    drawn = subprocess.run([sys.executable, "-c", other], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(drawn) != port


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.02)


def processes_with(word: str) -> list[int]:
    """The processes, other than zombies, whose command line has `word`; Linux."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            pass  # it ended meanwhile
    return found


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    with Redis() as service:
        yield service


def test_kafka_answers(kafka: Kafka, topic: str) -> None:
    make_topic(kafka.brokers, topic)
    append(kafka.brokers, topic, b"one")
    assert values(kafka.brokers, topic, 1) == [b"one"]


def test_a_misspelt_topic_is_an_error(kafka: Kafka, topic: str) -> None:
    errors: list[KafkaError | None] = []
    producer = Producer({"bootstrap.servers": kafka.brokers, "topic.metadata.propagation.max.ms": 100})
    producer.produce(topic, b"one", on_delivery=lambda error, _: errors.append(error))
    producer.flush(10)
    assert [error and error.code() for error in errors] == [KafkaError.UNKNOWN_TOPIC_OR_PART]


def test_redis_answers(redis: Redis, topic: str) -> None:
    with client(redis) as connection:
        connection.set(topic, "one")
        assert connection.get(topic) == b"one"


def test_kafka_keeps_what_it_acknowledged(kafka: Kafka, topic: str) -> None:
    with Kafka() as own:  # not the one that tests share
        assert own.port != kafka.port
        make_topic(own.brokers, topic)
        append(own.brokers, topic, b"one")
        own.restart()
        append(own.brokers, topic, b"two")
        own.kill()
        assert not own.running
        own.start()
        append(own.brokers, topic, b"three")
        assert values(own.brokers, topic, 3) == [b"one", b"two", b"three"]
        assert topic not in AdminClient({"bootstrap.servers": kafka.brokers}).list_topics(timeout=5).topics
        own.restart(empty=True)
        assert topic not in AdminClient({"bootstrap.servers": own.brokers}).list_topics(timeout=5).topics
        folder = own.folder
    assert not folder.exists()


def test_kafka_keeps_its_data_in_a_folder_of_any_name(tmp_path: Path) -> None:
    with Kafka(folder=tmp_path / "José Жук \\ 100%") as own:
        assert (own.data / "meta.properties").exists()
    with pytest.raises(ServiceUnavailable, match="no folder with a comma"):
        Kafka(folder=tmp_path / "a,b").start()


def test_a_paused_kafka_is_silent_and_goes_on(topic: str) -> None:
    with Kafka() as own:
        make_topic(own.brokers, topic)
        own.pause()
        with pytest.raises(KafkaException):
            AdminClient({"bootstrap.servers": own.brokers, "log_level": 0}).list_topics(timeout=0.5)
        own.resume()
        append(own.brokers, topic, b"one")
        own.pause()  # a paused one can be stopped


def test_clients_of_the_second_listener_are_sent_to_the_advertised_port(topic: str) -> None:
    advertised = free_port()
    with Kafka(advertised_port=advertised) as own:
        assert own.upstream_port is not None
        admin = AdminClient({"bootstrap.servers": f"{HOST}:{own.upstream_port}", "log_level": 0})
        assert {broker.port for broker in admin.list_topics(timeout=10).brokers.values()} == {advertised}


def test_a_cluster_survives_one_of_its_brokers(topic: str) -> None:
    with kafka_cluster(3) as brokers:
        admin = AdminClient({"bootstrap.servers": ",".join(broker.brokers for broker in brokers), "log_level": 0})
        new = NewTopic(topic, 1, 3, config={"min.insync.replicas": "2"})
        admin.create_topics([new])[topic].result(10)
        append(brokers[0].brokers, topic, b"one")
        leader = leader_of(admin, topic)
        brokers[leader - 1].kill()
        other = brokers[leader % 3]
        append(other.brokers, topic, b"two")
        assert values(other.brokers, topic, 2) == [b"one", b"two"]


@pytest.mark.parametrize("binary", [None, "redis-server"])
def test_redis_keeps_what_it_acknowledged(binary: str | None) -> None:
    if binary and not shutil.which(binary):
        pytest.skip(f"{binary} is not in PATH")
    with Redis(binary=binary) as own, Redis(binary=binary) as other:
        with client(own) as connection:
            connection.set("key", "value")
        own.kill()
        assert not own.running
        own.start()
        with client(own) as connection:
            assert connection.get("key") == b"value"
        own.restart()
        with client(own) as connection, client(other) as unaffected:
            assert connection.get("key") == b"value"
            assert unaffected.get("key") is None
        own.restart(empty=True)
        with client(own) as connection:
            assert connection.get("key") is None


def test_a_paused_redis_is_silent_and_goes_on(own_redis: Redis) -> None:
    own_redis.pause()
    with client(own_redis, timeout_s=0.2) as connection, pytest.raises(RedisTimeoutError):
        connection.ping()
    own_redis.resume()
    with client(own_redis) as connection:
        assert connection.ping()


def test_a_missing_binary_is_unavailable() -> None:
    with pytest.raises(ServiceUnavailable, match="no-such-server"):
        Redis(binary="no-such-server").start()


def test_a_service_that_does_not_start_shows_its_log() -> None:
    with pytest.raises(ServiceFailed, match="no-such-option"), Redis(options={"no-such-option": "1"}):
        pass


def foreground(folder: Path, *words: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """`hiveio services`, and the addresses it prints for this machine."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hiveio.cli", "services", "--data", str(folder), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    addresses: dict[str, str] = {}
    for line in process.stdout:
        key, _, value = line.strip().partition("=")
        if value:
            addresses[key] = value
        if "CACHE_URL" in addresses:
            break
    return process, addresses


def outer_address() -> str:
    """One of this machine that is not its loopback; no packet is sent to find it. Empty if there is none."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def reached_from_outside(host: str, outside: dict[str, str]) -> None:
    """Whoever comes from another address is sent back to that one, and to no other."""
    servers = outside["EVENT_STORE_BROKERS"]
    found = AdminClient({"bootstrap.servers": servers}).list_topics(timeout=10).brokers.values()
    assert [f"{broker.host}:{broker.port}" for broker in found] == [servers]
    assert servers.startswith(f"{host}:")
    with Client.from_url(outside["CACHE_URL"]) as connection:
        assert connection.ping()


def refuses_a_stranger(addresses: dict[str, str], host: str) -> None:
    """What is for this machine alone listens on its loopback alone."""
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(addresses["EVENT_STORE_BROKERS"].rpartition(":")[2]))) != 0


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_the_foreground_leaves_no_process_behind(
    kafka: Kafka, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    host = outer_address() if number == signal.SIGTERM else ""
    process, addresses = foreground(tmp_path, "--host", host)
    assert process.stdout is not None
    with process, process.stdout:
        assert AdminClient({"bootstrap.servers": addresses["EVENT_STORE_BROKERS"]}).list_topics(timeout=10).brokers
        if host:
            lines = [process.stdout.readline().strip() for _ in range(4)]
            assert lines[:2] == ["", "From containers:"]
            outside = dict(line.split("=", 1) for line in lines[2:])
            reached_from_outside(host, outside)
            refuses_a_stranger(addresses, host)
        with Client.from_url(addresses["CACHE_URL"]) as connection:
            assert connection.ping()
            redis_pid = int(connection.info("server")["process_id"])
        process.send_signal(number)
        assert process.wait(30) == code
    eventually(lambda: not processes_with(str(tmp_path)) and not Path(f"/proc/{redis_pid}/exe").exists())
    ports = [int(address.rsplit(":", 1)[1]) for address in addresses.values()]
    eventually(lambda: not any(listens(port) for port in ports))


@pytest.mark.redis
def test_the_foreground_ends_when_a_child_dies(kafka: Kafka, tmp_path: Path) -> None:
    process, addresses = foreground(tmp_path)
    assert process.stdout is not None
    with process, process.stdout:
        with Client.from_url(addresses["CACHE_URL"]) as connection:
            os.kill(int(connection.info("server")["process_id"]), signal.SIGKILL)
        assert process.wait(30) == 1
        assert "redis on port" in process.stdout.read()
    assert not processes_with(str(tmp_path))


@pytest.mark.kafka
@pytest.mark.redis
def test_three_brokers_in_the_foreground_are_one_cluster_that_may_lose_one(
    kafka: Kafka, tmp_path: Path, topic: str
) -> None:
    """What they have acknowledged is there at the next start, on other ports."""
    process, addresses = foreground(tmp_path, "--brokers", "3")
    assert process.stdout is not None
    with process, process.stdout:
        servers = addresses["EVENT_STORE_BROKERS"]
        admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        ports = sorted(int(server.rpartition(":")[2]) for server in servers.split(","))
        assert len(ports) == 3
        # The one that is asked may not have heard of all others yet.
        eventually(lambda: sorted(broker.port for broker in admin.list_topics(timeout=10).brokers.values()) == ports)
        new = NewTopic(topic, 1, 3, config={"min.insync.replicas": "2"})
        admin.create_topics([new])[topic].result(10)
        append(servers, topic, b"one")
        words = iter(process.stdout.readline, "")
        said = next(line for line in words if "kill its process" in line)
        pids = [int(word) for word in said.replace(".", " ").split() if word.isdigit()]
        leader = leader_of(admin, topic)
        os.kill(pids[leader - 1], signal.SIGKILL)
        assert next(line for line in words if "ended by itself" in line).startswith("✗ kafka on port")
        append(servers, topic, b"two")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not processes_with(str(tmp_path))
    process, addresses = foreground(tmp_path, "--brokers", "3")
    assert process.stdout is not None
    with process, process.stdout:
        assert values(addresses["EVENT_STORE_BROKERS"], topic, 2) == [b"one", b"two"]
        process.send_signal(signal.SIGTERM)


def test_what_cannot_be_is_named_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in [
        (["--brokers", "6"], "--brokers 6 is wrong: it takes a number from 1 to 5"),
        (["--brokers", "3", "--kafka-port", "65535"], "--kafka-port 65535 is wrong: it takes a number from 1 to 65530"),
        (["--host", "127.0.0.1"], "--host 127.0.0.1 is wrong"),
        (["--host", "localhost"], "--host localhost is wrong"),
    ]:
        assert main(["services", *words]) == 2
        assert said in capsys.readouterr().err
