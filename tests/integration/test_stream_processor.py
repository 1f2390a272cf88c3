"""hiveio/stream-processor as a real process, on real Kafka and Redis: what goes wrong from outside, and well again."""

import concurrent.futures
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import httpx
import pytest
import redis as redis_client

from tests.integration.accounts import ACTOR, balance, send  # noqa: F401 - ACTOR is what `processor` starts
from tests.integration.conftest import Make
from tests.integration.topics import read_all
from tests.process import Role, settled, wait_until
from tests.services import Kafka, Redis
from tests.unit.test_config import SERVICES, links

JSON = {"content-type": "application/json"}


@pytest.fixture
def role(processor: Make) -> Iterator[Role]:
    environ = {name: value for service in SERVICES for name, value in links(service, {"web": 80, "file": 81}).items()}
    with processor(**environ) as role:  # among services of Kubernetes: none of these variables is a setting
        yield role


BAD = [
    (b"{", 400, None),
    (b"\xff\xfe", 400, None),
    (b'{"type":"Open","payload":{"owner":"\xff"}}', 400, None),
    (b"[" * 100_000, 400, None),
    (b'{"type":"Open","payload":' + b"[" * 100_000, 400, None),
    (b'{"type":"Open","meta":' + b"[" * 100_000, 400, None),
    (b'{"type":"Close"}', 422, "/type"),
    (b'{"payload":{}}', 422, "/type"),
    (b'{"type":"Open"}', 422, "/payload/owner"),
    (b'{"type":"Open","payload":{"owner":"x","more":1}}', 422, "/payload/more"),
    (b'{"type":"Deposit","payload":{"amount":0}}', 422, "/payload/amount"),
    (b'{"type":"Open","payload":{"owner":"x"},"meta":5}', 422, "/meta"),
    (b'{"type":"Open","payload":{"owner":"' + b"x" * (1 << 20) + b'"}}', 413, None),
]


def test_bad_input_is_a_problem_of_its_own_and_the_service_is_well_afterwards(role: Role) -> None:
    for body, status, pointer in BAD:
        answer = httpx.post(f"{role.url}/accounts/ada", content=body, headers=JSON)
        shown = (body[:60], answer.status_code, answer.text[:200])
        assert answer.status_code == status, shown
        assert answer.headers["content-type"] == "application/problem+json", shown
        assert answer.json().get("pointer") == pointer, shown
    assert send(role, "ada", "Open", {"If-Match": "x"}, owner="Ada").status_code == 400
    assert send(role, "ada", "Open", {"Idempotency-Key": "x" * 256}, owner="Ada").status_code == 400
    assert httpx.put(f"{role.url}/accounts/ada").status_code == 405
    assert httpx.get(f"{role.url}/transactions/nonsense").status_code == 404
    assert httpx.get(f"{role.url}/accounts/ada").status_code == 404
    assert send(role, "ada", "Open", {"If-None-Match": "*"}, owner="Ada").status_code == 200
    for name, value, command, query in [
        ("If-Match", '"7", "1"', 200, 200),
        ("If-Match", "*", 200, 200),
        ("If-Match", 'W/"1"', 412, 412),
        ("If-Match", '"2"', 412, 412),
        ("If-None-Match", "*", 412, 304),
        ("If-None-Match", 'W/"1"', 412, 304),
        ("If-None-Match", '"7", "1"', 412, 304),
        ("If-None-Match", '"7", W/"2"', 200, 200),
    ]:
        assert send(role, "ada", "Break", {name: value}, how="not at all").status_code == command, (name, value)
        answer = httpx.get(f"{role.url}/accounts/ada", headers={name: value})
        assert (answer.status_code, answer.content == b"") == (query, query == 304), (name, value)
    assert role.complaints() == []


def test_a_fault_of_the_actor_never_reaches_the_log(role: Role, kafka: Kafka, topic: str) -> None:
    assert send(role, "ada", "Open", owner="Ada").status_code == 200
    for how in ("wrong type", "no event", "raises"):
        answer = send(role, "ada", "Break", how=how)
        assert answer.status_code == 500, how
        assert "secret" not in answer.text
    assert send(role, "ada", "Break", how="too large").status_code == 413
    nothing = send(role, "ada", "Break", how="not at all")
    assert (nothing.status_code, nothing.json()) == (200, None)
    assert send(role, "ada", "Deposit", amount=5).headers["etag"] == '"2"'
    records = [json.loads(m.value() or b"") for m in read_all(kafka.brokers, f"{topic}.transactions")]
    assert [record["kind"] for record in records] == ["format", "commit", "commit"]


def metric(role: Role, name: str) -> float:
    lines = httpx.get(f"{role.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_each_phase_of_a_command_is_timed_and_each_lag_is_told(role: Role) -> None:
    send(role, "ada", "Open", owner="Ada")
    assert [send(role, "ada", "Deposit", amount=1).status_code for _ in range(9)] == [200] * 9
    assert send(role, "ada", "Open", owner="Eve").status_code == 422
    # Counts are written to the shared values now and then, each kind at its own time.
    for name, count in (
        ('hiveio_command_phase_seconds_count{phase="verdict"}', 10),
        ('hiveio_command_phase_seconds_count{phase="begin"}', 11),
        ('hiveio_command_phase_seconds_count{phase="perform"}', 10),
        ("hiveio_published_events_total", 10),
        ('hiveio_commands_total{actor="AccountActor",command="Open",outcome="accepted"}', 1),
        ('hiveio_commands_total{actor="AccountActor",command="Deposit",outcome="accepted"}', 9),
        ('hiveio_commands_total{actor="AccountActor",command="Open",outcome="refused"}', 1),
        ('hiveio_command_seconds_count{actor="AccountActor",command="Open"}', 2),
    ):
        wait_until(partial(lambda name, count: metric(role, name) == count, name, count), what=f"{name} {count}")
    wait_until(lambda: metric(role, 'hiveio_command_phase_seconds_count{phase="apply"}') >= 1)
    assert 0 < metric(role, 'hiveio_command_phase_seconds_sum{phase="verdict"}') < 60
    shown = httpx.get(f"{role.url}/metrics").text
    assert re.search(r'hiveio_build_info\{python="3\.\d+\.\d+",service="\w+",version="\d+\.\d+\.\d+"\} 1\.0', shown)
    assert re.search(r'hiveio_models_info\{fingerprint="[0-9a-f]{8}"\} 1\.0', shown)
    assert metric(role, "process_resident_memory_bytes") > 10_000_000
    assert 0 < metric(role, "process_open_fds") < metric(role, "process_max_fds")
    wait_until(lambda: 0 < metric(role, "process_cpu_seconds_total") < 600, what="the CPU of the process")
    assert abs(metric(role, "process_start_time_seconds") - time.time()) < 600
    for name in ("fold_lag", "watermark_lag", "publisher_lag"):
        assert f'hiveio_{name}_records{{scope="0"}}' in shown
        wait_until(partial(lambda name: metric(role, f"hiveio_{name}_records") == 0, name), what=name)
    for name in ("command_retries", "void_records", "lock_waits"):
        assert f"hiveio_{name}_total" in shown


def test_the_event_topic_has_every_accepted_event_in_order(role: Role, kafka: Kafka, topic: str) -> None:
    send(role, "ada", "Open", owner="Ada")
    for amount in range(1, 21):
        assert send(role, "ada", "Deposit", amount=amount).status_code == 200
    events = wait_until(lambda: len(found := read_all(kafka.brokers, topic)) == 21 and found, what="21 events")
    previous = None
    for version, message in enumerate(events, 1):
        headers = {name: bytes(value).decode() for name, value in message.headers()}
        assert message.key() == b"ada"
        assert headers["hive-actor"] == "AccountActor"
        assert headers["hive-version"] == str(version)
        assert headers["content-type"] == "application/json"
        assert headers.get("hive-previous") == previous
        previous = headers["hive-position"]
        assert previous == f"0:{version}:0"
    assert json.loads(events[20].value() or b"") == {"type": "Deposited", "payload": {"amount": 20}}


def test_the_cache_is_emptied_at_work_and_nothing_is_lost(role: Role, redis: Redis) -> None:
    send(role, "ada", "Open", owner="Ada")
    keyed = send(role, "ada", "Deposit", {"Idempotency-Key": "k"}, amount=5)
    for losses in range(1, 6):
        with redis_client.Redis.from_url(redis.url) as client:
            client.flushall()
        answers = [send(role, "ada", "Deposit", amount=1) for _ in range(3)]
        accepted = sum(answer.status_code == 200 for answer in answers)
        assert {answer.status_code for answer in answers} <= {200, 503}
        role.rebuilt(losses)
        before = balance(role, "ada")
        assert before >= 5 + accepted
    again = send(role, "ada", "Deposit", {"Idempotency-Key": "k"}, amount=5)
    assert (again.status_code, again.text, again.headers["etag"]) == (200, keyed.text, keyed.headers["etag"])
    assert balance(role, "ada") == before


def test_an_idempotency_key_is_known_to_every_instance_and_after_a_restart(processor: Make) -> None:
    key = {"Idempotency-Key": '"once"'}
    with processor() as a, processor() as b:
        assert send(a, "ada", "Open", owner="Ada").status_code == 200
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a storm of one key on both
            storm = list(pool.map(lambda n: send((a, b)[n % 2], "ada", "Deposit", key, amount=5), range(32)))
        assert {answer.status_code for answer in storm} <= {200, 409}
        bodies = {(r.text, r.headers["etag"], r.headers["hive-position"]) for r in storm if r.status_code == 200}
        assert len(bodies) == 1
        assert send(b, "ada", "Deposit", key, amount=6).status_code == 422
        assert balance(b, "ada") == 5
    with processor() as c:
        again = send(c, "ada", "Deposit", key, amount=5)
        assert (again.text, again.headers["etag"], again.headers["hive-position"]) in bodies
        assert balance(c, "ada") == 5


def test_sigterm_under_load_loses_nothing_that_was_answered(processor: Make, kafka: Kafka, topic: str) -> None:
    accepted = 0

    ending = threading.Event()

    def deposits(role: Role) -> int:
        """How many were accepted, up to the first after the signal that was not."""
        count = 0
        while True:
            try:
                accepted = send(role, "ada", "Deposit", amount=1).status_code == 200
            except httpx.TransportError:
                accepted = False
            count += accepted
            counted.append(accepted)
            if ending.is_set() and not accepted:
                return count

    counted: list[bool] = []
    with processor(CLUSTER_SIZE="2") as role:
        assert send(role, "ada", "Open", owner="Ada").status_code == 200
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(deposits, role) for _ in range(16)]
            wait_until(lambda: sum(counted) > 50, 60, "50 deposits")
            ending.set()
            role.terminate(signal.SIGTERM)
            accepted = sum(answer.result() for answer in answers)
        assert role.ended(25) == 0
        assert role.complaints() == []
    with processor() as role:
        assert accepted > 50
        assert balance(role, "ada") == accepted
        events = wait_until(lambda: len(found := read_all(kafka.brokers, topic)) == accepted + 1 and found)
        assert len(events) == accepted + 1


def test_an_outcome_unknown_at_the_deadline_becomes_definite_when_asked(processor: Make) -> None:
    # The pause ends no session of the broker, which would have to begin anew.
    properties = {"broker.session.timeout.ms": 30_000}
    with Kafka(properties=properties) as kafka, processor(kafka.brokers, REQUEST_TIMEOUT="4000") as role:
        assert settled(lambda: send(role, "ada", "Open", {"Idempotency-Key": "open"}, owner="Ada")).status_code == 200
        kafka.pause()
        try:
            unknown = send(role, "ada", "Deposit", amount=5)
        finally:
            kafka.resume()
        assert unknown.status_code == 504, unknown.text
        asked = httpx.get(f"{role.url}/transactions/{unknown.json()['transaction']}", timeout=30)
        assert asked.status_code == 200, asked.text
        assert asked.json()["outcome"] in ("accepted", "closed")
        assert balance(role, "ada") == (5 if asked.json()["outcome"] == "accepted" else 0)
        wait_until(lambda: send(role, "ada", "Deposit", amount=1).status_code == 200, what="well again")


@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_while_the_cache_is_away_commands_are_refused_at_once_and_cheaply(how: str, processor: Make) -> None:
    with Redis() as redis, processor(url=redis.url) as role:
        assert send(role, "ada", "Open", owner="Ada").status_code == 200
        redis.kill() if how == "killed" else redis.pause()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # requests in flight are answered in time
            began = time.monotonic()
            first = list(pool.map(lambda n: send(role, f"c{n % 16}", "Open", owner="x"), range(64)))
            assert {answer.status_code for answer in first} <= {200, 422, 503}, "it goes on until it has noticed"
            assert time.monotonic() - began < 25
        wait_until(lambda: send(role, "b", "Open", owner="x").status_code == 503, what="it has noticed")
        (worker,) = role.workers()
        before = sum(worker.cpu_times()[:2])
        for number in range(100):
            refused = send(role, f"d{number}", "Open", owner="x")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1"), refused.text
            assert str(redis.port) not in refused.text, "clients do not learn where a backend is"
        assert sum(worker.cpu_times()[:2]) - before < 2, "100 refusals, with all that goes on besides"
        redis.start() if how == "killed" else redis.resume()
        wait_until(lambda: send(role, "ada", "Deposit", amount=5).status_code == 200, 30, "well again")
        assert balance(role, "ada") >= 5


@pytest.mark.parametrize("count", [1, 3, 5])
def test_lock_nodes_a_minority_of_which_is_away(processor: Make, count: int) -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(Redis()) for _ in range(count)]
        urls = ",".join(node.url for node in nodes)
        role, other = (stack.enter_context(processor(LOCK_URLS=urls, REQUEST_TIMEOUT="4000")) for _ in range(2))
        for name in ("ada", "eve"):  # both work on them, so they take locks
            assert send(other, name, "Open", owner="Ada").status_code == 200
            assert balance(role, name) == 0
        few = count // 2
        for number, node in enumerate(nodes[:few]):  # some hang, some are dead
            node.pause() if number % 2 == 0 else node.kill()
        assert [send(role, "ada", "Deposit", amount=5).status_code for _ in range(5)] == [200] * 5
        nodes[few].kill()
        refused = send(role, "eve", "Deposit", amount=5)  # the lock of ada may be held for a moment still
        assert (refused.status_code, refused.headers.get("retry-after")) == (503, "1"), refused.text
        assert not any(str(node.port) in refused.text for node in nodes), "clients do not learn where a backend is"
        logged = "\n".join(line["message"] for line in role.logs() if line["level"] != "info")
        assert [str(node.port) in logged for node in nodes] == [number <= few for number in range(count)]
        nodes[few].start()
        wait_until(lambda: send(role, "ada", "Deposit", amount=5).status_code == 200, what="well again")
        for number, node in enumerate(nodes[:few]):
            node.resume() if number % 2 == 0 else node.start()


@pytest.mark.parametrize(
    ("environ", "code", "line"),
    [
        ({"CACHE_URL": ""}, 2, "CACHE_URL is not set"),
        ({"EVENT_STORE_TOPIC": ""}, 2, "EVENT_STORE_TOPIC is not set"),
        ({"EVENT_STORE_PARTITIONS": "3"}, 20, "set EVENT_STORE_PARTITIONS=1"),
        ({"IDEMPOTENCY_COUNT": "5"}, 20, "set IDEMPOTENCY_COUNT=10000"),
        ({"IDEMPOTENCY_TIME": "5"}, 20, "set IDEMPOTENCY_TIME=3600"),
        ({"LOCK_TTL": "soon"}, 2, "LOCK_TTL='soon' is wrong: it takes a whole number"),
    ],
)
def test_a_start_that_would_be_unsafe_ends_with_one_line(
    processor: Make, environ: dict[str, str], code: int, line: str
) -> None:
    with processor():
        pass
    with processor(**environ, wait=False) as role:
        assert role.ended(30) == code, role.text()
    assert line in role.text()
    assert len(role.errors) == 1, role.text()


def test_a_redis_that_may_evict_is_refused(processor: Make) -> None:
    with Redis(options={"maxmemory-policy": "allkeys-lru"}) as redis:
        with processor(url=redis.url, wait=False) as role:
            assert role.ended(30) == 20
        assert "set maxmemory-policy noeviction" in role.text()


def test_an_idle_instance_notices_that_kafka_is_away(processor: Make) -> None:
    with Kafka() as own, processor(own.brokers) as role:
        own.stop()
        wait_until(lambda: httpx.get(f"{role.url}/readyz").status_code == 503, 30, "not ready")
        assert httpx.get(f"{role.url}/livez").status_code == 200
        own.start()
        role.ready(60)
        assert send(role, "ada", "Open", owner="Ada").status_code == 200
