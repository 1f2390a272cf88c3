"""The environment, read once into one frozen object. ``docs/settings.md`` is generated from it."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hiveio import parsers
from hiveio.environment import Properties, is_linked, lookup, without_secrets
from hiveio.errors import ConfigError

# Variables that may be given and are not supported yet. The start stops at one, so that nobody relies on it in vain.
_UNSUPPORTED = re.compile(r"TELEMETRY_(?!(SERVICE_NAME|URL_TRACES|URL_METRICS)(_FILE)?$)\w+$")


def setting(name: str, default: Any, parse: Callable[[str], Any], text: str, shown: str | None = None) -> Any:
    """A field of ``Settings``: its name in the environment, default, parser (whose docstring says what is allowed)."""
    about = {"name": name, "parse": parse, "text": text, "shown": shown}
    if callable(default):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True, repr=False)  # a repr would show secrets
class Settings:
    """Every setting, with its default. ``Settings.read()`` takes them from an environment."""

    actor_module: str = setting(
        "ACTOR_MODULE", "", parsers.any_text, "The actor to load, as `module` or `module:Class`."
    )
    actor_path: str = setting("ACTOR_PATH", "/actor", parsers.any_text, "The folder from which the actor is loaded.")
    bind: str = setting(
        "BIND",
        "::",
        parsers.ip_address,
        "The address on which the service listens. `::` is all of IPv6 and IPv4, `0.0.0.0` all of IPv4.",
    )
    port: int = setting("PORT", 3000, parsers.whole_number(0, 65535), "The port on which the service listens.")
    admin_port: int | None = setting(
        "ADMIN_PORT",
        None,
        parsers.whole_number(0, 65535),
        "A port of their own for probes, metrics and documents. PORT then has only the paths of actors and PING_URL.",
        "PORT",
    )
    cluster_size: int = setting(
        "CLUSTER_SIZE",
        parsers.cpu_quota,
        parsers.whole_number(1, 256),
        "The number of worker processes.",
        "the CPU quota",
    )
    http_version: int = setting(
        "HTTP_VERSION", 1, parsers.http_version, "The version of HTTP: 1, or 2 for HTTP/2 and HTTP/1.1 on one port."
    )
    secure: bool = setting(
        "SECURE", False, parsers.flag, "Whether the service speaks HTTPS, with SSL_CERT and SSL_KEY."
    )
    ssl_cert: str = setting(
        "SSL_CERT",
        "",
        parsers.any_text,
        "The PEM file of the certificate and its chain. It may be renewed while the service runs.",
    )
    ssl_key: str = setting("SSL_KEY", "", parsers.any_text, "The PEM file of the private key, without a passphrase.")
    auth_jwks_url: str = setting(
        "AUTH_JWKS_URL",
        "",
        parsers.keys_url,
        "The URL of the keys (JWKS) that verify the tokens of requests. Without it no request is authenticated.",
    )
    auth_issuer: str = setting(
        "AUTH_ISSUER", "", parsers.any_text, "The issuer of the tokens: their `iss`, exactly as it is written there."
    )
    auth_audience: str = setting(
        "AUTH_AUDIENCE", "", parsers.any_text, "What the tokens are for: it must be in their `aud`."
    )
    ping_url: str = setting("PING_URL", "/ping", parsers.url_path, "The path that answers `pong`.")
    body_limit: int = setting(
        "BODY_LIMIT",
        1 << 20,
        parsers.whole_number(1, 1 << 30),
        "The largest size of a request body, in bytes. A larger one is answered 413.",
    )
    batch_limit: int = setting(
        "BATCH_LIMIT",
        64 << 20,
        parsers.whole_number(1, 1 << 30),
        "The largest size of a batch, in bytes. BODY_LIMIT bounds each record in it.",
    )
    request_timeout_ms: int = setting(
        "REQUEST_TIMEOUT",
        10_000,
        parsers.whole_number(1, 600_000),
        "The longest time to an answer, in milliseconds. After it the answer is 504 or 503.",
    )
    drain_timeout_ms: int = setting(
        "DRAIN_TIMEOUT",
        20_000,
        parsers.whole_number(1, 600_000),
        "The longest time from SIGTERM to the end of the process, in milliseconds.",
    )
    brokers: str = setting("EVENT_STORE_BROKERS", "", parsers.any_text, "The Kafka brokers, as `host:port,…`.")
    topic: str = setting("EVENT_STORE_TOPIC", "", parsers.topic_name, "The topic of the events.")
    producer_topic: str = setting(
        "EVENT_STORE_PRODUCER_TOPIC",
        "",
        parsers.topic_name,
        "The topic to which events are written.",
        "EVENT_STORE_TOPIC",
    )
    consumer_topic: tuple[str, ...] = setting(
        "EVENT_STORE_CONSUMER_TOPIC",
        (),
        parsers.topic_names,
        "The topics from which events are read: a name, a list of names or a `^regex`.",
        "EVENT_STORE_TOPIC",
    )
    command_topics: tuple[str, ...] = setting(
        "COMMAND_TOPICS", (), parsers.topic_names, "The topics of commands that it takes: `orders.commands,…`."
    )
    command_urls: tuple[tuple[str, str], ...] = setting(
        "COMMAND_URLS", (), parsers.service_urls, "Where commands go by HTTP: `payments=http://host/wallets/{id},…`."
    )
    command_window_s: int = setting(
        "COMMAND_WINDOW",
        3_600,
        parsers.whole_number(1, 31_536_000),
        "How long a service of COMMAND_URLS is sent a command again, in seconds: it remembers keys for longer.",
    )
    client_id: str = setting("EVENT_STORE_ID", "hiveio", parsers.any_text, "The client id of the service in Kafka.")
    group_id: str = setting("EVENT_STORE_GROUP_ID", "", parsers.any_text, "The consumer group.")
    from_start: bool = setting(
        "EVENT_STORE_FROM_START",
        False,
        parsers.flag,
        "Whether a group without offsets begins at the first event in the topics. Otherwise it begins at the next one.",
    )
    partitions: int = setting(
        "EVENT_STORE_PARTITIONS",
        1,
        parsers.whole_number(1, 10_000),
        "The number of partitions of the topics that the service creates. It cannot be changed later.",
    )
    replication: int = setting(
        "EVENT_STORE_REPLICATION",
        0,
        parsers.whole_number(1, 99),
        "The number of replicas of the topics that the service creates. Each start compares it with those that exist.",
        "the brokers' default, at least 3 where there are 3",
    )
    buffer: int = setting(
        "EVENT_STORE_BUFFER",
        500,
        parsers.whole_number(1, 100_000),
        "The largest number of records in a batch to or from Kafka.",
    )
    buffer_timeout_ms: int = setting(
        "EVENT_STORE_TIMEOUT",
        1,
        parsers.whole_number(0, 60_000),
        "The longest time for which a record waits for its batch under load, in milliseconds.",
    )
    producer_ack: str = setting(
        "PRODUCER_ACK",
        "stored",
        parsers.one_of("stored", "queued"),
        "When the producer answers: `stored` (200 once Kafka has stored the event) or `queued` (202 at once).",
    )
    event_format: str = setting(
        "EVENT_FORMAT",
        "action",
        parsers.one_of("action", "cloudevents"),
        "How the producer writes events: `action` (Flux Standard Action), or `cloudevents` (Kafka's binary mode).",
    )
    event_headers: tuple[str, ...] = setting(
        "EVENT_HEADERS",
        (),
        parsers.header_names,
        "The request headers that are copied to the records of the events: names, or `x-tenant-*` for a prefix.",
    )
    consumer_concurrency: int = setting(
        "CONSUMER_CONCURRENCY",
        1,
        parsers.whole_number(1, 1_000),
        "The number of keys that the consumer handles in parallel, in each partition.",
    )
    consumer_attempts: int = setting(
        "CONSUMER_ATTEMPTS",
        8,
        parsers.whole_number(1, 1_000),
        "The number of attempts to handle an event. After the last one it goes to the dead-letter topic.",
    )
    consumer_backoff_ms: int = setting(
        "CONSUMER_BACKOFF",
        100,
        parsers.whole_number(1, 600_000),
        "The time to the second attempt, in milliseconds. It is doubled for each further attempt, with jitter.",
    )
    consumer_backoff_limit_ms: int = setting(
        "CONSUMER_BACKOFF_LIMIT",
        5_000,
        parsers.whole_number(1, 3_600_000),
        "The longest time between two attempts, in milliseconds.",
    )
    consumer_timeout_ms: int = setting(
        "CONSUMER_TIMEOUT",
        60_000,
        parsers.whole_number(1, 86_400_000),
        "The longest time of one attempt, in milliseconds. After it the attempt has failed.",
    )
    consumer_parked: int = setting(
        "CONSUMER_PARKED",
        1_000,
        parsers.whole_number(0, 1_000_000),
        "The largest number of keys that are parked in a partition. Beyond it the partition stops.",
    )
    cache_url: str = setting(
        "CACHE_URL",
        "",
        parsers.redis_url,
        "The URL of the Redis that holds the transaction cache, or the idempotency keys of the producer. A cluster is "
        "`redis+cluster://host:port,…`, and Sentinels are `redis+sentinel://host:port,…/service/db`.",
    )
    lock_urls: tuple[str, ...] = setting(
        "LOCK_URLS", (), parsers.redis_urls, "The URLs of the Redis nodes for Redlock.", "CACHE_URL"
    )
    lock_ttl_ms: int = setting(
        "LOCK_TTL", 2_000, parsers.whole_number(50, 600_000), "The time to live of a lock, in milliseconds."
    )
    lock_drift_factor: float = setting(
        "LOCK_DRIFT_FACTOR", 0.01, parsers.fraction, "The share of LOCK_TTL that is allowed for clock drift."
    )
    lock_retry_count: int = setting(
        "LOCK_RETRY_COUNT",
        50,
        parsers.whole_number(0, 100_000),
        "The number of retries of a command or a lock. After the last one the answer is 409.",
    )
    lock_retry_delay_ms: int = setting(
        "LOCK_RETRY_DELAY", 20, parsers.whole_number(0, 60_000), "The time between two retries, in milliseconds."
    )
    lock_retry_jitter_ms: int = setting(
        "LOCK_RETRY_JITTER",
        20,
        parsers.whole_number(0, 60_000),
        "The largest random time that is added to LOCK_RETRY_DELAY, in milliseconds.",
    )
    misplaced: str = setting(
        "EVENT_STORE_MISPLACED",
        "",
        parsers.any_text,
        "The aggregates (`ACTOR/ID,…`) that are known to be in a wrong partition.",
    )
    idempotency_count: int = setting(
        "IDEMPOTENCY_COUNT",
        10_000,
        parsers.whole_number(1, 10_000_000),
        "The number of records for which command ids are remembered. It is fixed when the log is created.",
    )
    idempotency_time_s: int = setting(
        "IDEMPOTENCY_TIME",
        3_600,
        parsers.whole_number(0, 31_536_000),
        "The time for which an Idempotency-Key is remembered, in seconds. It is fixed when the log is created.",
    )
    telemetry: bool = setting(
        "TELEMETRY",
        False,
        parsers.flag,
        "Whether the service sends spans and metrics with OpenTelemetry, as the `OTEL_*` variables say.",
    )
    telemetry_service_name: str = setting(
        "TELEMETRY_SERVICE_NAME",
        "",
        parsers.any_text,
        "The `service.name` of spans and metrics.",
        "OTEL_SERVICE_NAME, EVENT_STORE_ID",
    )
    telemetry_url_traces: str = setting(
        "TELEMETRY_URL_TRACES",
        "",
        parsers.http_url,
        "The URL to which spans are sent, by OTLP/HTTP.",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    telemetry_url_metrics: str = setting(
        "TELEMETRY_URL_METRICS",
        "",
        parsers.http_url,
        "The URL to which metrics are sent, by OTLP/HTTP.",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
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
    def outbox_topic(self) -> str:
        """The topic of the commands that processes send."""
        return f"{self.written_topic}.commands"

    @property
    def read_topics(self) -> tuple[str, ...]:
        return self.consumer_topic or ((self.topic,) if self.topic else ())

    @property
    def service_name(self) -> str:
        """What the service is called in its descriptions: TELEMETRY_SERVICE_NAME, EVENT_STORE_ID, or its module."""
        given = self.telemetry_service_name or (self.client_id if "client_id" in self.given else "")
        return given or self.actor_module.partition(":")[0] or self.client_id

    @property
    def probes_port(self) -> int:
        """Where probes, metrics and documents are."""
        return self.port if self.admin_port is None else self.admin_port

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
        environ = {name: value for name, value in environ.items() if not is_linked(name, value)}
        for name, value in environ.items():
            if _UNSUPPORTED.match(name) and value.lower() not in ("", "0", "false"):
                raise ConfigError(f"{name}={value}: this setting is not supported yet; remove it")
        values: dict[str, Any] = {}
        for f in fields(cls):
            if not f.metadata:
                continue
            name, parse = f.metadata["name"], f.metadata["parse"]
            text = lookup(environ, name)
            if text is None or text == "":
                continue
            try:
                values[f.name] = parse(text.strip())
            except (ValueError, KeyError, re.error):
                raise ConfigError(
                    f"{without_secrets(environ, name, text)} is wrong: it takes {parse.__doc__}"
                ) from None
        return cls(**values, given=frozenset(values), kafka=Properties(environ))
