"""What every Kafka client of this package shares: its configuration and its log lines."""

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer

from hiveio.config import Settings
from hiveio.errors import ConfigError
from hiveio.kafka import reachability
from hiveio.kafka.threads import start_thread as start_thread

logger = logging.getLogger("hiveio.kafka")
Client = TypeVar("Client")

# Properties that safety rests on, or that another setting holds; with the reason that the error gives.
_OURS = (
    dict.fromkeys(("bootstrap.servers", "metadata.broker.list"), "EVENT_STORE_BROKERS says it")
    | dict.fromkeys(("auto.offset.reset",), "EVENT_STORE_FROM_START says it")
    | {"client.id": "EVENT_STORE_ID says it", "group.id": "EVENT_STORE_GROUP_ID says it"}
    | {"group.instance.id": "the workers of a container would share it"}
    | {"allow.auto.create.topics": "topics are made with the retention that events need"}
    | dict.fromkeys(("acks", "request.required.acks"), "an answered event is on every replica in sync")
    | dict.fromkeys(
        ("enable.idempotence", "retries", "message.send.max.retries", "enable.gapless.guarantee", "transactional.id"),
        "an event is written once and in order",
    )
    | {"delivery.report.only.error": "an event is answered when it is stored"}
    | dict.fromkeys(
        ("enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store"),
        "an offset is committed after its effect",
    )
    | {"partition.assignment.strategy": "KAFKA_GROUP_PROTOCOL is consumer or classic, and each has its own"}
    | {"enable.partition.eof": "the consumer loop reads events only"}
    | {"log.queue": "log lines go through logging"}
)

# A broker that was paused, or whose packets are dropped, closes no connection. After these times a client leaves it and
# looks for another leader. librdkafka's own values are 60, 30 and 300 s.
_SILENT_BROKER = {
    "socket.timeout.ms": 6_000,
    "request.timeout.ms": 5_000,  # of a producer; consumers ignore it
    "topic.metadata.refresh.interval.ms": 5_000,
}

BEGIN_S = 300.0
_begin: dict[str, tuple[str, float]] = {}  # for the configured brokers: those to connect to first, and until when


def client_config(settings: Settings, **own: Any) -> dict[str, Any]:
    """The properties of a client: brokers, id, logging, then ``own`` defaults, then KAFKA_*, which tune them.

    ``own`` is written with underscores (``linger_ms=0``). Raises ConfigError for a KAFKA_* property that is unknown,
    has a wrong value, or that safety rests on.
    """
    for name in settings.kafka:
        if name in _OURS:
            raise ConfigError(f"{_variable(name)} cannot be set: {_OURS[name]}")
    tuning = {_property(name): value for name, value in settings.kafka.items()}
    if tuning:
        _check(frozenset(tuning.items()))
        _check_security(tuning)
    connection = {"bootstrap.servers": settings.brokers, "client.id": settings.client_id, "logger": logger}
    reachability.probe_with(lambda more: make(Producer, {**connection, **tuning, **more}))
    return {
        **connection,
        "bootstrap.servers": first_brokers(settings),
        **_SILENT_BROKER,
        **{name if name.endswith("_cb") else _property(name.replace("_", ".")): value for name, value in own.items()},
        **tuning,
    }


def begin_with(settings: Settings, brokers: str) -> None:
    """For the next BEGIN_S, new clients connect to these brokers first, instead of the configured ones."""
    _begin[settings.brokers] = brokers, time.monotonic() + BEGIN_S


def first_brokers(settings: Settings) -> str:
    """The brokers that a new client connects to first."""
    brokers, until = _begin.get(settings.brokers, ("", 0.0))
    return brokers if time.monotonic() < until else settings.brokers


def make(kind: Callable[[dict[str, Any]], Client], config: Mapping[str, Any]) -> Client:
    """A client of this kind. Raises ConfigError for what librdkafka refuses (properties that contradict each other)."""
    try:
        return kind(dict(config))
    except KafkaException as error:
        raise ConfigError(f"The Kafka client refuses its configuration: {error.args[0].str()}") from None


def first_contact(settings: Settings) -> None:
    """At the start of a role: if Kafka does not answer, a log line says why within 2 s. Not every client does that.

    Raises ConfigError.
    """
    client_config(settings)
    reachability.check_first_contact(settings.brokers)


def answered(asked: "Future[Any]", timeout_s: float) -> Any:
    """The result of a request to an AdminClient, which is waited for no longer than this, and a little more for the
    client to say why there is none. Raises KafkaException.

    If the client has ended meanwhile, nothing completes its requests, whatever their time-out.
    """
    try:
        return asked.result(timeout_s + 1.0)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None


# For librdkafka. It ends the process (an assertion in rd_kafka_enq_once_del_source_return) if a group's coordinator is
# found after the request to it has timed out, while the client lives. So who asks a coordinator gives up long before
# (see ``answered``), and drops the client.
COORDINATOR_TIMEOUT_S = 600.0


def is_fatal(error: KafkaError) -> bool:
    """Whether the client cannot be used any more and must be replaced."""
    return error.fatal() or error.code() == KafkaError._FATAL


_DENIED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)


def denied(error: object, what: str, rights: str) -> str | None:
    """Which right is missing on which resource, if that is the error; docs/security.md lists all rights."""
    if isinstance(error, KafkaError) and error.code() in _DENIED:
        return f"{what}: the user may not {rights}: {error.str()}"
    return None


def _property(name: str) -> str:
    return "log_level" if name == "log.level" else name  # the one property that is spelt with an underscore


def _variable(name: str) -> str:
    return "KAFKA_" + name.upper().replace(".", "_")


@functools.lru_cache(maxsize=8)
def _check(tuning: frozenset[tuple[str, str]]) -> None:
    """Ask librdkafka about each property alone, so that the error names the one variable that is wrong."""
    silent = logging.Logger("silent", logging.CRITICAL + 1)
    for name, value in sorted(tuning):
        try:
            Producer({name: value, "logger": silent})
        except KafkaException as error:
            text = error.args[0].str()
            if "No such configuration property" in text:
                # Without the value: under a misspelt name it may be a secret.
                raise ConfigError(f"{_variable(name)} is wrong: librdkafka has no such property") from None
            if name.startswith(("sasl.", "ssl.", "security.")):
                continue  # these need each other: the client that has all of them judges them
            raise ConfigError(f"{_variable(name)}={value!r} is wrong: {text}") from None


def _check_security(tuning: Mapping[str, str]) -> None:
    """Errors for which librdkafka does not say what to do, or none at all: it would wait for a token without end."""
    for name, value in tuning.items():
        if name.endswith(".location") and value not in ("probe", "dynamic") and not os.access(value, os.R_OK):
            raise ConfigError(f"{_variable(name)}={value!r} cannot be read")
    protocol = tuning.get("security.protocol", "")
    mechanism = tuning.get("sasl.mechanism", tuning.get("sasl.mechanisms", "")).upper()
    if protocol.upper() in ("SASL_SSL", "SASL_PLAINTEXT") and mechanism in ("", "GSSAPI"):
        allowed = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
        raise ConfigError(f"KAFKA_SECURITY_PROTOCOL={protocol} needs KAFKA_SASL_MECHANISM, one of {allowed}")
    unsigned = tuning.get("enable.sasl.oauthbearer.unsecure.jwt", "false").lower() == "true"
    if mechanism == "OAUTHBEARER" and tuning.get("sasl.oauthbearer.method", "").lower() != "oidc" and not unsigned:
        raise ConfigError("KAFKA_SASL_MECHANISM=OAUTHBEARER needs KAFKA_SASL_OAUTHBEARER_METHOD=oidc")


logger.addFilter(reachability.worth_a_line)
