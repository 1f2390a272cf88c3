"""The log lines about a backend that is away: one when it goes, one each EVERY_S with a count, one when it is back."""

import logging
import random
import threading
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from hiveio import outages
from hiveio.errors import Unavailable
from hiveio.kafka import reachability
from hiveio.kafka.client import logger as client_logger
from hiveio.outages import BLINK_S, EVERY_S, Outage


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outage(clock: Clock) -> Outage:
    return Outage("Kafka at b:9092", clock)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    texts = [record.getMessage() for record in caplog.records if record.name == "hiveio.backends"]
    caplog.clear()
    return texts


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_line_when_it_goes_one_each_interval_with_a_count_and_one_when_it_is_back(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        outage.away("refused")
    assert logged(caplog) == ["Kafka at b:9092 is away: refused"]
    clock.now += EVERY_S
    for _ in range(11):
        outage.away("no route")
    assert logged(caplog) == ["Kafka at b:9092 is still away, after 30 s (999 more complaints): no route"]
    clock.now += 5
    outage.back()
    outage.back()
    assert logged(caplog) == ["Kafka at b:9092 is back, after 35.0 s (10 more complaints)"]


def test_one_that_is_back_and_away_again_is_logged_again_and_one_that_blinks_is_not(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outage.away("refused")
    outage.back()
    assert len(logged(caplog)) == 2
    for _ in range(100):
        outage.away("slow")
        clock.now += 0.1
        outage.back()
    assert not logged(caplog)
    outage.away("refused")
    clock.now += BLINK_S
    outage.away("refused")
    assert logged(caplog) == ["Kafka at b:9092 is away: refused"]


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> outages.Outage:
    monkeypatch.setattr(outages, "known", {})  # others may have left outages behind
    found = outages.of("Redis at nowhere:1")
    found.away("refused")
    return found


def line(name: str, level: int, text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, text, arguments, None)


def test_only_what_waits_is_counted_instead_of_logged(away: Outage) -> None:
    waits = Unavailable("Redis at nowhere:1 does not answer")
    try:
        assert not outages.worth_a_line(line("hiveio.scope", logging.WARNING, "%s waits: %s", "orders/0", waits))
        ends = Unavailable(
            "Kafka did not say where partitions end: Failed to query partition leaders: No leaders found"
        )
        text = "the publisher lag of %s cannot be measured: %s"
        assert not outages.worth_a_line(line("hiveio.lag", logging.WARNING, text, "orders", ends))
        assert away.count == 2
        assert outages.worth_a_line(line("hiveio.transaction", logging.CRITICAL, "it stops: %s", waits))
        assert outages.worth_a_line(line("hiveio.transaction", logging.ERROR, "a fault: %s", ValueError()))
        other = Unavailable("orders/0: Broker: Not enough in-sync replicas")
        assert outages.worth_a_line(line("hiveio.publisher", logging.WARNING, "%s is paused: %s", "orders", other))
        assert outages.worth_a_line(line("bank", logging.WARNING, "%s", Unavailable("the bank is closed")))
        assert outages.worth_a_line(line("hiveio.consumer", logging.ERROR, "dead letter: %s", "Redis at nowhere:1"))
        assert outages.worth_a_line(line("bank", logging.INFO, "no arguments"))
    finally:
        away.back()
    assert outages.worth_a_line(line("hiveio.scope", logging.WARNING, "%s waits: %s", "orders/0", waits))


def test_one_that_is_gone_for_good_excuses_nobody_for_ever(outage: Outage, clock: Clock) -> None:
    outage.away("refused")
    assert outage.is_current()
    clock.now += EVERY_S
    assert not outage.is_current()


class Asked:
    """Stands in for the client of one broker, or, without ``bootstrap.servers``, for one of the whole cluster."""

    def __init__(self, alone: list[set[str] | None], cluster: list[set[str] | None]) -> None:
        self._alone, self._cluster = alone, cluster

    def __call__(self, properties: Mapping[str, Any]) -> Any:
        answers = self._alone if "bootstrap.servers" in properties else self._cluster

        def list_topics(timeout: float) -> Any:
            if (answer := answers.pop(0)) is None:
                raise KafkaException(KafkaError(KafkaError._TRANSPORT))
            places = [name.rsplit(":", 1) for name in answer]
            return SimpleNamespace(brokers={n: SimpleNamespace(host=h, port=p) for n, (h, p) in enumerate(places)})

        return SimpleNamespace(list_topics=list_topics)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of a thread that asks for a broker, which are not waited for."""
    monkeypatch.setattr(outages, "known", {})
    found: list[float] = []
    own, sleep = threading.get_ident(), time.sleep

    def pause(seconds: float) -> None:
        """Threads that other tests have left, which ask for their brokers, do sleep."""
        found.append(seconds) if threading.get_ident() == own else sleep(seconds)

    monkeypatch.setattr("hiveio.kafka.reachability.time.sleep", pause)
    return found


def test_a_thread_that_asks_for_a_broker_disturbs_no_one_who_has_seeded_the_process(slept: list[float]) -> None:
    before = random.getstate()
    reachability.probe("nowhere:1", Asked([None, set()], [None]))
    assert len(slept) == 1
    assert random.getstate() == before


def test_a_broker_is_asked_ever_less_often(slept: list[float], caplog: pytest.LogCaptureFixture) -> None:
    outages.of("Kafka at b:9092").away("refused")
    reachability.probe("b:9092", Asked([None] * 20 + [{"b:9092"}], [None, {"b:9092"}] * 10))
    pauses = [0.5, 1, 2, 4, 8, 16] + [30.0] * 14
    assert all(most / 2 <= pause <= most for pause, most in zip(slept, pauses, strict=True))
    assert len(set(slept)) == 20, "with jitter"
    assert " is back, after " in logged(caplog)[-1]


def test_a_broker_that_the_cluster_names_no_more_is_forgotten(
    slept: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    outages.of("Kafka at [::1]:9092").away("refused")
    outages.of("Kafka at b:9092").away("refused")
    reachability.probe("b:9092", Asked([None] * 3, [None, {"b:9092", "c:9092"}, {"c:9092"}]))
    assert len(slept) == 2
    assert logged(caplog)[-1] == "Kafka at b:9092 is no longer used: the other brokers do not name it"
    reachability.probe("[::1]:9092", Asked([None, {"::1:9092"}], [{"::1:9092"}]))
    assert len(slept) == 3, "an address of IPv6 is named without brackets"
    assert [*outages.known] == ["Kafka at [::1]:9092"]


def test_what_clients_try_again_and_again_is_one_line_for_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none, if it soon succeeds."""
    now = 100.0
    monkeypatch.setattr("hiveio.kafka.reachability.time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep))
    caplog.set_level(logging.INFO)

    def say(client: int, broker: str) -> None:
        text = (
            f"[thrd:main]: Failed to acquire idempotence PID from broker {broker}: Broker: Coordinator load: retrying"
        )
        client_logger.log(logging.WARNING, "%s [%s] %s", "GETPID", f"hiveio#producer-{client}", text)

    for client in (1, 1, 2):
        say(client, "b:9092/1")
    say(1, "c:9092/2")
    assert caplog.records == []
    now += reachability.AGAIN_S
    for client in (1, 1, 2):
        say(client, "b:9092/1")
    assert [record.levelname for record in caplog.records] == ["INFO"]
    for after in (reachability.RETRY_S - 1, 2):
        now += after
        for _ in range(2):
            say(1, "b:9092/1")
    assert len(caplog.records) == 2
    now += reachability.RETRY_S + 1
    say(1, "b:9092/1")
    assert len(caplog.records) == 2, "another outage, which may soon be over"
