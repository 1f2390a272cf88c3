"""The configuration of Kafka clients: what may be tuned, what may not, and what an error names."""

import logging

import pytest
from confluent_kafka import Consumer, Producer

from hiveio.config import Settings
from hiveio.errors import ConfigError
from hiveio.kafka.client import client_config, logger, make


def settings(**kafka: str) -> Settings:
    environ = {f"KAFKA_{name}": value for name, value in kafka.items()}
    return Settings.read({"EVENT_STORE_BROKERS": "nowhere:9092", "EVENT_STORE_ID": "me", **environ})


def test_tuning_overrides_defaults() -> None:
    config = client_config(settings(LINGER_MS="7", LOG_LEVEL="3"), linger_ms=1, batch_num_messages=5)
    assert config["linger.ms"] == "7"
    assert config["batch.num.messages"] == 5
    assert (config["bootstrap.servers"], config["client.id"]) == ("nowhere:9092", "me")
    assert config["log_level"] == "3"
    make(Producer, config)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("FOO_BAR", "1", "librdkafka has no such property"),
        ("SASL_FOO", "1", "librdkafka has no such property"),
        ("LINGER_MS", "soon", "KAFKA_LINGER_MS='soon'"),
        ("ACKS", "1", "KAFKA_ACKS cannot be set"),
        ("ENABLE_IDEMPOTENCE", "false", "KAFKA_ENABLE_IDEMPOTENCE"),
        ("ENABLE_AUTO_COMMIT", "true", "committed after its effect"),
        ("GROUP_ID", "x", "EVENT_STORE_GROUP_ID"),
        ("BOOTSTRAP_SERVERS", "x:1", "EVENT_STORE_BROKERS"),
        ("AUTO_OFFSET_RESET", "latest", "EVENT_STORE_FROM_START"),
    ],
)
def test_a_wrong_property_is_named(name: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        client_config(settings(**{name: value}))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"SECURITY_PROTOCOL": "SASL_SSL"}, "needs KAFKA_SASL_MECHANISM, one of PLAIN, SCRAM"),
        ({"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "GSSAPI"}, "one of PLAIN, SCRAM"),
        ({"SASL_MECHANISM": "OAUTHBEARER"}, "needs KAFKA_SASL_OAUTHBEARER_METHOD=oidc"),
        ({"SSL_CA_LOCATION": "/nowhere"}, "KAFKA_SSL_CA_LOCATION='/nowhere' cannot be read"),
        ({"SASL_PASWORD": "hunter2"}, "^KAFKA_SASL_PASWORD is wrong: librdkafka has no such property$"),
    ],
)
def test_security_that_cannot_work_is_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        client_config(settings(**given))


def test_what_contradicts_is_a_config_error() -> None:
    config = client_config(settings(SESSION_TIMEOUT_MS="6000")) | {"group.id": "g", "group.protocol": "consumer"}
    with pytest.raises(ConfigError, match=r"session\.timeout\.ms"):
        make(Consumer, config)


def test_properties_of_the_other_kind_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    producer = make(Producer, client_config(settings(FETCH_WAIT_MAX_MS="100", LOG_LEVEL="0")))
    producer.poll(0)
    logger.log(logging.WARNING, "%s [%s] %s", "CONFWARN", "x", "property and will be ignored by this producer instance")
    assert not caplog.records
