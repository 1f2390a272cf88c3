# ruff: noqa: E501
from dataclasses import fields
from pathlib import Path

import pytest

from hiveio.config import Settings
from hiveio.environment import LINKED
from hiveio.errors import ConfigError
from hiveio.parsers import split_redis_url


def test_defaults() -> None:
    settings = Settings.read({})
    assert settings.port == 3000
    assert settings.request_timeout_ms == 10_000
    assert settings.body_limit == 1 << 20
    assert settings.cluster_size >= 1


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"PORT": "70000"}, "PORT='70000' is wrong: it takes a whole number from 0 to 65535"),
        ({"PORT": "http"}, "PORT='http' is wrong: it takes a whole number from 0 to 65535"),
        *(({"BIND": wrong}, f"BIND='{wrong}' is wrong: it takes an IPv4 or IPv6 address without a port, such as 127.0.0.1 or ::1; or :: for all of both") for wrong in ("localhost", "[::1]", "127.0.0.1:80", "127.1", "224.0.0.1", "*")),
        ({"LOCK_DRIFT_FACTOR": "2"}, "LOCK_DRIFT_FACTOR='2' is wrong: it takes a number from 0 to 1"),
        ({"EVENT_STORE_FROM_START": "yes"}, "EVENT_STORE_FROM_START='yes' is wrong: it takes true or false"),
        ({"EVENT_STORE_TOPIC": "a b"}, "EVENT_STORE_TOPIC='a b' is wrong: it takes a topic name: 1 to 220 of a-z A-Z 0-9 . _ -"),
        ({"EVENT_STORE_CONSUMER_TOPIC": "^("}, "EVENT_STORE_CONSUMER_TOPIC='^(' is wrong: it takes a topic name, a comma-separated list of them, or ^regex"),
        ({"PING_URL": "ping"}, "PING_URL='ping' is wrong: it takes a path that starts with /"),
        ({"CACHE_URL": "localhost"}, "CACHE_URL='localhost' is wrong: it takes a URL redis://host:port/db, redis+sentinel://host:port,…/service/db, redis+cluster://host:port,…, or unix://"),
        ({"LOCK_URLS": "redis://a,b"}, "LOCK_URLS='redis://a,b' is wrong: it takes one or more comma-separated URLs redis://host:port/db, or others that CACHE_URL takes"),
        ({"PRODUCER_ACK": "none"}, "PRODUCER_ACK='none' is wrong: it takes stored or queued"),
        ({"EVENT_HEADERS": "x-a,hive-id"}, "EVENT_HEADERS='x-a,hive-id' is wrong: it takes a comma-separated list of header names, or beginnings of names as in x-tenant-*; none of them may be or begin hive-*, ce_*, content-type, traceparent, tracestate, authorization, proxy-authorization or cookie"),
        ({"EVENT_HEADERS": "*"}, "EVENT_HEADERS='*' is wrong: it takes a comma-separated list of header names, or beginnings of names as in x-tenant-*; none of them may be or begin hive-*, ce_*, content-type, traceparent, tracestate, authorization, proxy-authorization or cookie"),
        *(({"EVENT_HEADERS": name}, f"EVENT_HEADERS='{name}' is wrong: it takes a comma-separated list of header names, or beginnings of names as in x-tenant-*; none of them may be or begin hive-*, ce_*, content-type, traceparent, tracestate, authorization, proxy-authorization or cookie") for name in ("h*", "hive*", "hive-x*", "HIVE-subject", "t*", "content-*", "c*", "ce_id", "ce_x*", "authorization", "Auth*", "proxy-authorization", "cookie")),
        ({"HTTP_VERSION": "3"}, "HTTP_VERSION='3' is wrong: it takes 1 or 2"),
        ({"SECURE": "on"}, "SECURE='on' is wrong: it takes true or false"),
        ({"TELEMETRY_URL": "http://x"}, "TELEMETRY_URL=http://x: this setting is not supported yet; remove it"),
        ({"PORT_FILE": "/nowhere"}, "PORT_FILE='/nowhere' cannot be read: No such file or directory"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_value_names_setting_value_and_what_is_allowed(environ: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.read(environ)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("given", "taken"),
    [("", "::"), ("0.0.0.0", "0.0.0.0"), ("::1", "::1"), ("0:0::1", "::1"), ("::ffff:127.0.0.1", "127.0.0.1"),
     ("fe80::1%eth0", "fe80::1%eth0")],
)  # fmt: skip
def test_an_address_is_kept_in_its_usual_form(given: str, taken: str) -> None:
    assert Settings.read({"BIND": given}).bind == taken


def test_unset_and_off_are_no_use_of_an_unsupported_setting() -> None:
    assert Settings.read({"PRODUCER_ACK": "", "TELEMETRY": "0", "PORT": ""}).port == 3000


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("redis://secret\n")
    environ = {"CACHE_URL_FILE": str(tmp_path / "secret"), "KAFKA_SASL_PASSWORD_FILE": str(tmp_path / "secret")}
    settings = Settings.read(environ)
    assert settings.cache_url == "redis://secret"
    assert settings.kafka == {"sasl.password": "redis://secret"}


def test_the_bundle_of_openssl_is_not_our_certificate(tmp_path: Path) -> None:
    (tmp_path / "bundle.pem").write_text("-----BEGIN CERTIFICATE-----")
    settings = Settings.read({"SSL_CERT_FILE": str(tmp_path / "bundle.pem"), "SSL_KEY": "/key.pem"})
    assert (settings.ssl_cert, settings.ssl_key) == ("", "/key.pem")


@pytest.mark.parametrize(
    "value",
    [
        "redis:/ada:hunter2@host",
        "redis://ada:hun/ter2@host",
        "redis://host:x?password=hunter2",
        "hunter2@host",
        "redis+cluster://ada:hun,ter2@host",
        "redis+sentinel://ada:hunter2@host:26379",
        "redis+raft://:hunter2@host",
    ],
)
def test_an_error_shows_no_secret(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^CACHE_URL='.*…' is wrong") as caught:
        Settings.read({"CACHE_URL": value})
    assert "ter2" not in str(caught.value)
    (tmp_path / "secret").write_text("hunter2")
    with pytest.raises(ConfigError, match=r"^the value of CACHE_URL, read from CACHE_URL_FILE, is wrong") as caught:
        Settings.read({"CACHE_URL_FILE": str(tmp_path / "secret")})
    assert "ter2" not in str(caught.value)
    assert "hunter2" not in repr(
        Settings.read({"CACHE_URL": "redis://:hunter2@host", "KAFKA_SASL_PASSWORD": "hunter2"})
    )


@pytest.mark.parametrize(
    "url",
    [
        "redis://a:1,b:2",
        "redis://a:26379/mymaster",
        "redis+cluster://",
        "redis+cluster://a:0",
        "redis+cluster://a:65536",
        "redis+cluster://a,,b",
        "redis+cluster://a b",
        "redis+cluster://a/1",
        "redis+sentinel://a:26379",
        "redis+sentinel://a/service/first",
        "redis+sentinel://a/service/1/2",
        "rediss-cluster://a",
    ],
)
def test_a_wrong_url_of_a_cluster_or_of_sentinels(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^CACHE_URL=.* is wrong: it takes a URL redis://host:port/db, redis"):
        Settings.read({"CACHE_URL": url})


def test_urls_of_clusters_and_sentinels_have_commas_of_their_own() -> None:
    cluster = "rediss+cluster://ada:pa%2Css@a:7000,[::1]:7001,c?ssl_ca_certs=/ca"
    sentinel = "redis+sentinel://a,b:26380/mymaster/3?sentinel_password=hunter2"
    assert Settings.read({"LOCK_URLS": f"{cluster}, redis://d,{sentinel}"}).lock_urls == (
        cluster,
        "redis://d",
        sentinel,
    )
    parts = split_redis_url(cluster)
    assert (parts.kind, parts.tls, parts.hosts) == ("cluster", True, [("a", 7000), ("::1", 7001), ("c", 6379)])
    assert parts.shown == "a:7000,[::1]:7001,c"
    parts = split_redis_url(sentinel)
    assert (parts.hosts, parts.service, parts.database) == ([("a", 26379), ("b", 26380)], "mymaster", 3)
    assert parts.shown == "a,b:26380/mymaster/3"


def test_a_value_and_its_file_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match=r"^PORT and PORT_FILE are both set: keep one of them$"):
        Settings.read({"PORT": "1", "PORT_FILE": "/nowhere"})
    with pytest.raises(ConfigError, match=r"^KAFKA_SASL_PASSWORD and KAFKA_SASL_PASSWORD_FILE are both set"):
        len(Settings.read({"KAFKA_SASL_PASSWORD": "x", "KAFKA_SASL_PASSWORD_FILE": "/nowhere"}).kafka)


def test_a_property_that_is_itself_a_path() -> None:
    environ = {
        "KAFKA_SASL_OAUTHBEARER_ASSERTION_PRIVATE_KEY_FILE": "/key",
        "KAFKA_SASL_OAUTHBEARER_ASSERTION_FILE": "/a",
    }
    assert Settings.read(environ).kafka == {
        "sasl.oauthbearer.assertion.private.key.file": "/key",
        "sasl.oauthbearer.assertion.file": "/a",
    }


def links(service: str, ports: dict[str, int], protocol: str = "tcp") -> dict[str, str]:
    """What Kubernetes sets in every container of a namespace for a service with these named ports."""
    name, host, first = service.upper().replace("-", "_"), "10.96.0.11", next(iter(ports.values()))
    found = {f"{name}_SERVICE_HOST": host, f"{name}_SERVICE_PORT": str(first)}
    found[f"{name}_PORT"] = f"{protocol}://{host}:{first}"
    for port_name, port in ports.items():
        found[f"{name}_SERVICE_PORT_{port_name.upper().replace('-', '_')}"] = str(port)
        prefix = f"{name}_PORT_{port}_{protocol.upper()}"
        found |= {prefix: f"{protocol}://{host}:{port}", f"{prefix}_PROTO": protocol}
        found |= {f"{prefix}_PORT": str(port), f"{prefix}_ADDR": host}
    return found


SERVICES = [
    *("kafka", "kafka-sasl", "kafka-ssl", "kafka-port", "kafka-service", "cache", "cache-url", "redis", "event-store"),
    *("event-store-brokers", "event-store-topic", "actor", "actor-module", "port", "request", "request-timeout"),
    *(
        "lock",
        "lock-ttl",
        "telemetry",
        "telemetry-url",
        "ssl",
        "ssl-cert",
        "producer",
        "consumer",
        "http",
        "body",
        "admin",
    ),
]


@pytest.mark.parametrize("service", SERVICES)
def test_what_kubernetes_sets_for_a_service_is_no_setting(service: str) -> None:
    ports = {"file": 9092, "internal-tls": 9093, "http": 80}  # KAFKA_SERVICE_PORT_FILE looks like a secret in a file
    for protocol in ("tcp", "udp", "sctp"):
        settings = Settings.read(links(service, ports, protocol) | {"PORT": "4000", "KAFKA_SASL_MECHANISM": "PLAIN"})
        assert (settings.given, settings.port) == (frozenset({"port"}), 4000)
        assert settings.kafka == {"sasl.mechanism": "PLAIN"}


def test_no_setting_looks_like_what_kubernetes_sets() -> None:
    names = [f.metadata["name"] for f in fields(Settings) if f.metadata]
    assert [name for name in names if LINKED.fullmatch(name)] == ["ADMIN_PORT"]  # whose value tells the two apart
    assert Settings.read({"ADMIN_PORT": "3001"}).probes_port == 3001
    assert Settings.read({"ADMIN_PORT": "tcp://10.0.0.7:80"}).probes_port == 3000


def test_properties_of_librdkafka_are_read_when_somebody_needs_them() -> None:
    settings = Settings.read({"KAFKA_SASL_PASSWORD_FILE": "/nowhere", "KAFKA_SASL_MECHANISM": "PLAIN"})
    with pytest.raises(ConfigError, match=r"^KAFKA_SASL_PASSWORD_FILE='/nowhere' cannot be read"):
        len(settings.kafka)


def test_topics() -> None:
    settings = Settings.read({"EVENT_STORE_TOPIC": "bank", "EVENT_STORE_CONSUMER_TOPIC": "a, b"})
    assert (settings.written_topic, settings.log_topic) == ("bank", "bank.transactions")
    assert settings.read_topics == ("a", "b")


def test_need_names_what_is_missing_and_why() -> None:
    with pytest.raises(ConfigError, match=r"^EVENT_STORE_BROKERS is not set: the producer writes$"):
        Settings.read({}).need(brokers="the producer writes")
    with pytest.raises(ConfigError, match=r"^EVENT_STORE_TOPIC is not set: x$"):
        Settings.read({"EVENT_STORE_BROKERS": "a:1"}).need(brokers="y", written_topic="x")
