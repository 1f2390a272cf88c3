"""Brokers that cannot be reached, told in few lines: what librdkafka and its callbacks say many times a second.

librdkafka does not say when it is connected again, so a client of its own asks the broker, while it is away. One that
the cluster no longer names is asked no more.
"""

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import BrokerMetadata  # type: ignore[attr-defined]

from hiveio import outages
from hiveio.kafka.threads import start_thread

FIRST_S = 1.6  # the longest that a first answer may take
ASK_S = 2.0
PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # between two questions; they double
_BROKER = re.compile(r"(?:\w+://)?(\[[0-9a-fA-F:.]+\]:\d+|[\w.-]+:\d+)(?:/\w+)?: ")
_CONNECTION = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._AUTHENTICATION,
    KafkaError._RESOLVE,
    KafkaError._SSL,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
}
Client = Callable[[Mapping[str, Any]], Producer]

_silent = logging.Logger("silent", logging.CRITICAL + 1)
_client: Client | None = None  # made as this process makes its clients
_asking: set[str] = set()
_lock = threading.Lock()


def ask_with(client: Client) -> None:
    """Brokers that are away are asked with what this makes."""
    global _client
    _client = client


def is_connection(error: KafkaError) -> bool:
    """Whether an error only says that a broker cannot be reached, which is told here."""
    return error.code() in _CONNECTION and not error.fatal() and _complain(error.str())


def worth_a_line(record: logging.LogRecord) -> bool:
    """A filter for librdkafka's own lines."""
    text = record.getMessage()
    if text.endswith(": retrying"):
        record.levelno, record.levelname = logging.INFO, "INFO"  # seen at every first start on a new cluster
    if isinstance(record.args, tuple) and record.args and record.args[0] in ("FAIL", "ERROR", "REQTMOUT"):
        # A connection that is closed is opened again, and if it cannot be, the next line says so.
        return record.levelno > logging.INFO and not _complain(str(record.args[-1]))
    # One environment tunes producers and consumers; each would warn about the other's properties.
    return "property and will be ignored by this" not in text


def expect(brokers: str) -> None:
    """Look whether they answer; where they do not, a line soon says why. Raises ConfigError."""
    if _client is not None:
        client = _client({"logger": _silent, "log_level": 0, "error_cb": is_connection})
        start_thread("kafka first contact", lambda: _contact(brokers, client))


def _contact(brokers: str, client: Producer) -> None:
    until = time.monotonic() + FIRST_S
    while time.monotonic() < until:
        try:
            client.list_topics(timeout=0.3)
            return
        except KafkaException:
            client.poll(0)  # error_cb
    hint = "look at EVENT_STORE_BROKERS, and whether KAFKA_SECURITY_PROTOCOL is what it speaks there"
    for broker in brokers.split(","):
        if outages.of(f"Kafka at {broker.strip()}").away_since is None:
            _away(broker.strip(), f"no answer within {FIRST_S:g} s; {hint}")


def _complain(text: str) -> bool:
    """Tell the outage that the text is about; False if it is about none."""
    found = _BROKER.search(text)
    if found is not None:
        _away(found[1], text[found.end() :])
    # Of all of them each is told; the coordinator of a group is one of them, by a second connection.
    return found is not None or "brokers are down" in text or "GroupCoordinator: " in text


def _away(broker: str, reason: str) -> None:
    outages.of(f"Kafka at {broker}").away(reason)
    with _lock:
        if broker in _asking or _client is None:
            return
        _asking.add(broker)
        made = _client
    start_thread("kafka away", lambda: ask(broker, made))


def ask(broker: str, made: Client) -> None:
    """Until it answers, or others do and do not name it, which is then told."""
    quiet = {"logger": _silent, "log_level": 0, "reconnect.backoff.max.ms": 500}
    client = made(quiet | {"bootstrap.servers": broker, "socket.connection.setup.timeout.ms": 2000})
    cluster = made(quiet)
    # Its own: whoever seeds the one of the process, to repeat a run, shall not find it disturbed by a thread.
    jitter = random.Random()
    pause_s = PAUSE_S
    while not (answers := _named(client) is not None) and broker in (_named(cluster) or {broker}):
        time.sleep(pause_s * jitter.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    with _lock:
        _asking.discard(broker)
    if answers:
        outages.of(f"Kafka at {broker}").back()
    else:
        outages.forget(f"Kafka at {broker}", "the other brokers do not name it")


def _named(client: Producer) -> set[str] | None:
    """The brokers of the cluster, as its metadata names them; None without an answer."""
    try:
        brokers = client.list_topics(timeout=ASK_S).brokers.values()
    except KafkaException:
        return None
    return {address(each) for each in brokers}


def address(broker: BrokerMetadata) -> str:
    host = str(broker.host)
    return f"[{host}]:{broker.port}" if ":" in host else f"{host}:{broker.port}"
