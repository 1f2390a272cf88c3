"""The environment, read once into one frozen object. ``docs/settings.md`` is generated from it."""

import functools
import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hiveio.errors import ConfigError

# Given and not yet supported: the start stops with that sentence, so nobody believes in a setting that does nothing.
_UNSUPPORTED = re.compile(r"TELEMETRY_(?!(SERVICE_NAME|URL_TRACES|URL_METRICS)(_FILE)?$)\w+$")
_WRITTEN = ("content-type", "traceparent", "tracestate")  # stand on every record anyway
# What Kubernetes and container links set for every service, whatever it is called: kafka, telemetry, event-store.
LINKED = re.compile(r".+_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
# Properties of librdkafka whose own names end in .file: they take a path, and librdkafka reads it.
_PATHS = re.compile(r"KAFKA_SASL_OAUTHBEARER_ASSERTION_(PRIVATE_KEY_|JWT_TEMPLATE_)?FILE$")


def _cpu_quota() -> int:
    """Whole CPUs that the cgroup and the affinity mask allow, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # cgroup 2, cgroup 1
        try:
            quota, period = (int(w) for name in names for w in Path("/sys/fs/cgroup", name).read_text().split())
        except (OSError, ValueError):  # not this version, or "max"
            continue
        if quota > 0:
            allowed = min(allowed, quota // period)
    return max(1, allowed)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    parse.__doc__ = f"a whole number from {low} to {high}"
    return parse


def _fraction(text: str) -> float:
    """a number from 0 to 1"""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    parse.__doc__ = " or ".join(words)
    return parse


def _flag(text: str) -> bool:
    """true or false"""
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _text(text: str) -> str:
    """any text"""
    return text


def _topic(text: str) -> str:
    """a topic name: 1 to 220 of a-z A-Z 0-9 . _ -"""
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,220}", text):
        raise ValueError
    return text


def _topics(text: str) -> tuple[str, ...]:
    """a topic name, a comma-separated list of them, or ^regex"""
    if text.startswith("^"):
        re.compile(text)
        return (text,)
    return tuple(_topic(name.strip()) for name in text.split(","))


def _http_url(text: str) -> str:
    """a URL http://host:port/path or https://"""
    if not re.match(r"https?://[^/]", text) or urlsplit(text).port == 0:
        raise ValueError
    return text


def _headers(text: str) -> tuple[str, ...]:
    """a comma-separated list of header names, or beginnings of names as in x-tenant-*; not hive-*, content-type"""
    names = tuple(name.strip().lower() for name in text.split(","))
    for name in names:
        if not re.fullmatch(r"[a-z0-9!#$%&'+.^_`|~-]+\*?", name) or name.startswith("hive-") or name in _WRITTEN:
            raise ValueError
    return names


def _path(text: str) -> str:
    """a path that starts with /"""
    if not text.startswith("/"):
        raise ValueError
    return text


def _redis_url(text: str) -> str:
    """a URL redis://host:port/db, rediss:// or unix://"""
    # The port is a ValueError where a password with / # or ? is not percent-encoded.
    if not re.match(r"(rediss?|unix)://", text) or urlsplit(text).port == 0:
        raise ValueError
    return text


def _redis_urls(text: str) -> tuple[str, ...]:
    """one or more comma-separated URLs redis://host:port/db"""
    return tuple(_redis_url(url.strip()) for url in text.split(","))


def _address(text: str) -> str:
    """an IPv4 or IPv6 address without a port, such as 127.0.0.1 or ::1; or :: for all of both"""
    address = ipaddress.ip_address(text)
    if address.is_multicast:
        raise ValueError
    return str(getattr(address, "ipv4_mapped", None) or address)


def _http_version(text: str) -> int:
    """1 or 2"""
    return {"1": 1, "1.1": 1, "2": 2}[text]


def setting(name: str, default: Any, parse: Callable[[str], Any], text: str, shown: str | None = None) -> Any:
    """A field of ``Settings``: its name in the environment, default, parser (whose docstring says what is allowed)."""
    about = {"name": name, "parse": parse, "text": text, "shown": shown}
    if callable(default):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True, repr=False)  # a repr would show secrets
class Settings:
    """Every setting, with its default. ``Settings.read()`` takes them from an environment."""

    actor_module: str = setting("ACTOR_MODULE", "", _text, "the actor: `module` or `module:Class`")
    actor_path: str = setting("ACTOR_PATH", "/actor", _text, "the folder from which the actor is loaded")
    bind: str = setting(
        "BIND", "::", _address, "address on which it listens; `::` is all of IPv6 and IPv4, `0.0.0.0` all of IPv4"
    )
    port: int = setting("PORT", 3000, _whole(0, 65535), "port of the HTTP server")
    cluster_size: int = setting("CLUSTER_SIZE", _cpu_quota, _whole(1, 256), "worker processes", "the CPU quota")
    http_version: int = setting("HTTP_VERSION", 1, _http_version, "1; or 2 for HTTP/2, which takes HTTP/1.1 as well")
    secure: bool = setting("SECURE", False, _flag, "HTTPS, with SSL_CERT and SSL_KEY")
    ssl_cert: str = setting("SSL_CERT", "", _text, "PEM file of the certificate and its chain; a renewed one is taken")
    ssl_key: str = setting("SSL_KEY", "", _text, "PEM file of its private key, without a passphrase")
    ping_url: str = setting("PING_URL", "/ping", _path, "path of the ping")
    body_limit: int = setting("BODY_LIMIT", 1 << 20, _whole(1, 1 << 30), "largest request body, bytes; beyond it 413")
    batch_limit: int = setting(
        "BATCH_LIMIT", 64 << 20, _whole(1, 1 << 30), "largest batch (producer), bytes; each record within BODY_LIMIT"
    )
    request_timeout_ms: int = setting(
        "REQUEST_TIMEOUT", 10_000, _whole(1, 600_000), "longest time to an answer, ms; then 504 or 503"
    )
    drain_timeout_ms: int = setting(
        "DRAIN_TIMEOUT", 20_000, _whole(1, 600_000), "longest time from SIGTERM to the end, ms"
    )
    brokers: str = setting("EVENT_STORE_BROKERS", "", _text, "Kafka brokers, `host:port,…`")
    topic: str = setting("EVENT_STORE_TOPIC", "", _topic, "topic of events")
    producer_topic: str = setting(
        "EVENT_STORE_PRODUCER_TOPIC", "", _topic, "topic that events are written to", "EVENT_STORE_TOPIC"
    )
    consumer_topic: tuple[str, ...] = setting(
        "EVENT_STORE_CONSUMER_TOPIC",
        (),
        _topics,
        "topics that events are read from: name, list or `^regex`",
        "EVENT_STORE_TOPIC",
    )
    client_id: str = setting("EVENT_STORE_ID", "hiveio", _text, "client id towards Kafka")
    group_id: str = setting("EVENT_STORE_GROUP_ID", "", _text, "consumer group")
    from_start: bool = setting(
        "EVENT_STORE_FROM_START", False, _flag, "a group without offsets begins at the first event, not at the next"
    )
    partitions: int = setting(
        "EVENT_STORE_PARTITIONS", 1, _whole(1, 10_000), "partitions with which topics are created; fixed from then on"
    )
    replication: int = setting(
        "EVENT_STORE_REPLICATION",
        0,
        _whole(1, 99),
        "replicas with which topics are made; each start compares",
        "the brokers' default, at least 3 where there are 3",
    )
    buffer: int = setting("EVENT_STORE_BUFFER", 500, _whole(1, 100_000), "most records in a batch")
    buffer_timeout_ms: int = setting(
        "EVENT_STORE_TIMEOUT", 1, _whole(0, 60_000), "longest time a record waits for its batch under load, ms"
    )
    producer_ack: str = setting(
        "PRODUCER_ACK",
        "stored",
        _one_of("stored", "queued"),
        "when the producer answers: `stored` (200 once Kafka has it) or `queued` (202 at once)",
    )
    event_format: str = setting(
        "EVENT_FORMAT",
        "action",
        _one_of("action", "cloudevents"),
        "how the producer writes events: `action` (Flux Standard Action) or `cloudevents` (Kafka binding, binary mode)",
    )
    event_headers: tuple[str, ...] = setting(
        "EVENT_HEADERS", (), _headers, "request headers that the producer writes to its records: names, or `x-tenant-*`"
    )
    consumer_concurrency: int = setting(
        "CONSUMER_CONCURRENCY", 1, _whole(1, 1_000), "keys that the consumer handles in parallel, in each partition"
    )
    consumer_attempts: int = setting(
        "CONSUMER_ATTEMPTS", 8, _whole(1, 1_000), "attempts to handle an event; then it goes to the dead-letter topic"
    )
    consumer_backoff_ms: int = setting(
        "CONSUMER_BACKOFF", 100, _whole(1, 600_000), "time to the second attempt, ms; doubled each time, with jitter"
    )
    consumer_backoff_limit_ms: int = setting(
        "CONSUMER_BACKOFF_LIMIT", 5_000, _whole(1, 3_600_000), "longest time between two attempts, ms"
    )
    consumer_timeout_ms: int = setting(
        "CONSUMER_TIMEOUT", 60_000, _whole(1, 86_400_000), "longest time of one attempt, ms; then it counts as failed"
    )
    consumer_parked: int = setting(
        "CONSUMER_PARKED", 1_000, _whole(0, 1_000_000), "most keys parked in a partition; beyond it the partition stops"
    )
    cache_url: str = setting("CACHE_URL", "", _redis_url, "Redis: the transaction cache; keys of the producer")
    lock_urls: tuple[str, ...] = setting("LOCK_URLS", (), _redis_urls, "Redlock nodes", "CACHE_URL")
    lock_ttl_ms: int = setting("LOCK_TTL", 2_000, _whole(50, 600_000), "time to live of a lock, ms")
    lock_drift_factor: float = setting(
        "LOCK_DRIFT_FACTOR", 0.01, _fraction, "share of LOCK_TTL allowed for clock drift"
    )
    lock_retry_count: int = setting(
        "LOCK_RETRY_COUNT", 50, _whole(0, 100_000), "retries of a command or a lock; then 409"
    )
    lock_retry_delay_ms: int = setting("LOCK_RETRY_DELAY", 20, _whole(0, 60_000), "time between retries, ms")
    lock_retry_jitter_ms: int = setting("LOCK_RETRY_JITTER", 20, _whole(0, 60_000), "most random time added to it, ms")
    misplaced: str = setting(
        "EVENT_STORE_MISPLACED", "", _text, "aggregates (`ACTOR/ID,…`) that are known to be in a wrong partition"
    )
    idempotency_count: int = setting(
        "IDEMPOTENCY_COUNT", 10_000, _whole(1, 10_000_000), "records for which command ids are kept; fixed with the log"
    )
    idempotency_time_s: int = setting(
        "IDEMPOTENCY_TIME",
        3_600,
        _whole(0, 31_536_000),
        "seconds for which an Idempotency-Key is remembered; fixed when the log is made",
    )
    telemetry: bool = setting("TELEMETRY", False, _flag, "OpenTelemetry: spans and metrics, as the `OTEL_*` say")
    telemetry_service_name: str = setting(
        "TELEMETRY_SERVICE_NAME", "", _text, "`service.name` of spans and metrics", "OTEL_SERVICE_NAME, EVENT_STORE_ID"
    )
    telemetry_url_traces: str = setting(
        "TELEMETRY_URL_TRACES", "", _http_url, "where spans go, by OTLP/HTTP", "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    telemetry_url_metrics: str = setting(
        "TELEMETRY_URL_METRICS", "", _http_url, "where metrics go, by OTLP/HTTP", "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    given: frozenset[str] = frozenset()  # the attributes that the environment sets; the others have their defaults
    kafka: Mapping[str, str] = field(default_factory=dict)  # librdkafka properties, from KAFKA_<NAME>; see Properties

    @property
    def written_topic(self) -> str:
        return self.producer_topic or self.topic

    @property
    def log_topic(self) -> str:
        """The transaction log."""
        return f"{self.written_topic}.transactions"

    @property
    def read_topics(self) -> tuple[str, ...]:
        return self.consumer_topic or ((self.topic,) if self.topic else ())

    @property
    def service_name(self) -> str:
        """What the service is called in its descriptions: TELEMETRY_SERVICE_NAME, EVENT_STORE_ID, or its module."""
        given = self.telemetry_service_name or (self.client_id if "client_id" in self.given else "")
        return given or self.actor_module.partition(":")[0] or self.client_id

    @property
    def lock_nodes(self) -> tuple[str, ...]:
        return self.lock_urls or (self.cache_url,)

    def need(self, **reasons: str) -> None:
        """Raise ConfigError for the first attribute that is not set: ``need(brokers="the producer writes")``."""
        names = {f.name: f.metadata["name"] for f in fields(self) if f.metadata}
        names |= {"written_topic": "EVENT_STORE_TOPIC", "read_topics": "EVENT_STORE_TOPIC"}
        for attribute, reason in reasons.items():
            if not getattr(self, attribute):
                raise ConfigError(f"{names[attribute]} is not set: {reason}")

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Take the settings from an environment. ``NAME_FILE`` names a file that holds the value of ``NAME``.

        Raises ConfigError with the name, the value and what is allowed. What Kubernetes sets for its services is no
        setting.
        """
        environ = {name: value for name, value in environ.items() if not LINKED.fullmatch(name)}
        for name, value in environ.items():
            if _UNSUPPORTED.match(name) and value.lower() not in ("", "0", "false"):
                raise ConfigError(f"{name}={value}: this setting is not supported yet; remove it")
        values: dict[str, Any] = {}
        for f in fields(cls):
            if not f.metadata:
                continue
            name, parse = f.metadata["name"], f.metadata["parse"]
            text = _lookup(environ, name)
            if text is None or text == "":
                continue
            try:
                values[f.name] = parse(text.strip())
            except (ValueError, KeyError, re.error):
                raise ConfigError(f"{_shown(environ, name, text)} is wrong: it takes {parse.__doc__}") from None
        return cls(**values, given=frozenset(values), kafka=Properties(environ))


def _shown(environ: Mapping[str, str], name: str, text: str) -> str:
    """Name and value for an error line, without secrets: what came from a file, a URL that names a user or more."""
    if not environ.get(name):
        return f"the value of {name}, read from {name}_FILE,"
    if "@" in text or ("://" in text and "?" in text):
        text = re.sub(r"^(\w+://)?.*", r"\1…", text, count=1, flags=re.DOTALL)
    return f"{name}={text!r}"


def _lookup(environ: Mapping[str, str], name: str) -> str | None:
    path = environ.get(f"{name}_FILE")
    # These two are paths already, and SSL_CERT_FILE is OpenSSL's: the authorities that clients trust.
    if not path or name in ("SSL_CERT", "SSL_KEY"):
        return environ.get(name)
    if environ.get(name):
        raise ConfigError(f"{name} and {name}_FILE are both set: keep one of them")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{name}_FILE={path!r} cannot be read: {error.strerror}") from None


class Properties(Mapping[str, str]):
    """The properties of librdkafka: ``KAFKA_SASL_MECHANISM=PLAIN`` → ``{"sasl.mechanism": "PLAIN"}``.

    They are read, their files too, when somebody looks: a role without Kafka has no use for them. That raises
    ConfigError for a file that cannot be read.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    @functools.cached_property
    def _values(self) -> dict[str, str]:
        found = {}
        for name in self._environ:
            if name.startswith("KAFKA_"):
                is_path = _PATHS.match(name)
                plain = name if is_path else name.removesuffix("_FILE")
                value = self._environ[name] if is_path else _lookup(self._environ, plain)
                if value is not None:
                    found[plain.removeprefix("KAFKA_").lower().replace("_", ".")] = value
        return found

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
