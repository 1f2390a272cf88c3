"""Brokers that cannot be reached, in few log lines: librdkafka and its callbacks say so many times a second.

librdkafka does not say when it is connected again, so a separate client probes the broker while it is away. A broker
that the cluster no longer names is not probed any more.
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
PROBE_S = 2.0
RETRY_S = 10.0  # between two lines that say the same of an attempt that is repeated
AGAIN_S = (
    1.0  # an attempt that succeeds sooner, in its repetitions, needs no line: on a new cluster each client has one
)
PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # between two probes; it doubles
_BROKER = re.compile(r"(?:\w+://)?(\[[0-9a-fA-F:.]+\]:\d+|[\w.-]+:\d+)(?:/\w+)?: ")
_CONNECTION = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._AUTHENTICATION,
    KafkaError._RESOLVE,
    KafkaError._SSL,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
}
MakeProducer = Callable[[Mapping[str, Any]], Producer]

_silent = logging.Logger("silent", logging.CRITICAL + 1)
_make_client: MakeProducer | None = None  # makes clients that are configured as those of this process
_probing: set[str] = set()
_retries: dict[str, "_Retry"] = {}  # by what librdkafka says of them
_lock = threading.Lock()


def probe_with(client: MakeProducer) -> None:
    """Probe brokers that are away with clients that this function makes."""
    global _make_client
    _make_client = client


def is_connection_error(error: KafkaError) -> bool:
    """Whether an error only says that a broker cannot be reached; if so, the outage is logged here."""
    return error.code() in _CONNECTION and not error.fatal() and _report(error.str())


def worth_a_line(record: logging.LogRecord) -> bool:
    """A filter for librdkafka's own log lines."""
    text = record.getMessage()
    if text.endswith(": retrying"):
        record.levelno, record.levelname = logging.INFO, "INFO"
        return _is_new(text.partition("]: ")[2])  # after the names of the client and its thread
    if isinstance(record.args, tuple) and record.args and record.args[0] in ("FAIL", "ERROR", "REQTMOUT"):
        # A connection that is closed is opened again, and if it cannot be, the next line says so.
        return record.levelno > logging.INFO and not _report(str(record.args[-1]))
    # One environment tunes producers and consumers; each would warn about the other's properties.
    return "property and will be ignored by this" not in text


class _Retry:
    """Times: of the first attempt, of the latest one, and of the latest line, if there was one."""

    def __init__(self, now: float) -> None:
        self.first = self.latest = now
        self.said: float | None = None


def _is_new(retry: str) -> bool:
    """Whether it goes on, and no client has said so lately: each says it up to 20 times a second."""
    now = time.monotonic()
    with _lock:
        for said in [said for said, each in _retries.items() if now - each.latest > RETRY_S]:
            del _retries[said]
        each = _retries.setdefault(retry, _Retry(now))
        each.latest = now
        if now - each.first < AGAIN_S or (each.said is not None and now - each.said < RETRY_S):
            return False
        each.said = now
        return True


def check_first_contact(brokers: str) -> None:
    """Check that they answer; if they do not, a log line soon says why. Raises ConfigError."""
    if _make_client is not None:
        client = _make_client({"logger": _silent, "log_level": 0, "error_cb": is_connection_error})
        start_thread("kafka first contact", lambda: _first_contact(brokers, client))


def _first_contact(brokers: str, client: Producer) -> None:
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
            _report_away(broker.strip(), f"no answer within {FIRST_S:g} s; {hint}")


def _report(text: str) -> bool:
    """Report the outage that the text is about; False if it is about none."""
    found = _BROKER.search(text)
    if found is not None:
        _report_away(found[1], text[found.end() :])
    # "All brokers are down" follows a line about each. A group's coordinator is one of them, by another connection.
    return found is not None or "brokers are down" in text or "GroupCoordinator: " in text


def _report_away(broker: str, reason: str) -> None:
    outages.of(f"Kafka at {broker}").away(reason)
    with _lock:
        if broker in _probing or _make_client is None:
            return
        _probing.add(broker)
        make = _make_client
    start_thread("kafka away", lambda: probe(broker, make))


def probe(broker: str, make: MakeProducer) -> None:
    """Probe the broker until it answers, or until others answer and do not name it; then the log says so."""
    quiet = {"logger": _silent, "log_level": 0, "reconnect.backoff.max.ms": 500}
    client = make(quiet | {"bootstrap.servers": broker, "socket.connection.setup.timeout.ms": 2000})
    cluster = make(quiet)
    # A generator of its own: a thread must not disturb that of the process, which somebody may seed to repeat a run.
    jitter = random.Random()
    pause_s = PAUSE_S
    while not (answers := _brokers_named_by(client) is not None) and broker in (_brokers_named_by(cluster) or {broker}):
        time.sleep(pause_s * jitter.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    with _lock:
        _probing.discard(broker)
    if answers:
        outages.of(f"Kafka at {broker}").back()
    else:
        outages.forget(f"Kafka at {broker}", "the other brokers do not name it")


def _brokers_named_by(client: Producer) -> set[str] | None:
    """The brokers of the cluster, as its metadata names them; None without an answer."""
    try:
        brokers = client.list_topics(timeout=PROBE_S).brokers.values()
    except KafkaException:
        return None
    return {address(each) for each in brokers}


def address(broker: BrokerMetadata) -> str:
    host = str(broker.host)
    return f"[{host}]:{broker.port}" if ":" in host else f"{host}:{broker.port}"
