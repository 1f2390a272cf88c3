"""Every role on a Kafka that takes TLS with SASL only, and a Redis with TLS and a password; no secret is ever shown."""

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import redis as redis_client
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from hiveio.kafka.topics import FOREVER
from tests.conftest import required
from tests.integration.topics import make_topic, read_all
from tests.process import Role, wait_until
from tests.services import HOST, Kafka, Redis, Security

ACTOR = """
from hiveio import Actor, Command, Event, Model, Query

class Open(Command):
    owner: str
class Opened(Event):
    owner: str
class Account(Model):
    owner: str
class Owners(Query):
    path = "/owners"

class AccountActor(Actor):
    path = "/accounts/{id}"

    def perform(self, account: Account | None, command: Open) -> Opened:
        return Opened(command.owner)

    def replay(self, account: Account | None, event: Opened) -> Account:
        return Account(event.owner)

class Register(Actor):
    def __init__(self) -> None:
        self.owners: list[str] = []

    def perform(self, message: Opened | Owners) -> list[str] | None:
        if isinstance(message, Owners):
            return self.owners
        self.owners.append(message.owner)
        return None
"""

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(300)]
AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",  # the test itself, and the broker
}
TOPIC_RIGHTS = (
    AclOperation.DESCRIBE,
    AclOperation.DESCRIBE_CONFIGS,
    AclOperation.CREATE,
    AclOperation.READ,
    AclOperation.WRITE,
)
REDIS_RIGHTS = ["on", "~hive:*", "+@read", "+@write", "+@scripting", "+@connection", "+config|get", "+info", "+time"]


def allow(kafka: Kafka, user: str, prefix: str = "test-", topic_rights: Sequence[AclOperation] = TOPIC_RIGHTS) -> None:
    """The rights of docs/security.md, or others, on the topics and groups whose names begin so."""
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    rights = [(ResourceType.TOPIC, right) for right in topic_rights] + [(ResourceType.GROUP, AclOperation.READ)]
    acls = [
        AclBinding(kind, prefix, ResourcePatternType.PREFIXED, f"User:{user}", "*", right, AclPermissionType.ALLOW)
        for kind, right in rights
    ]
    for made in admin.create_acls(acls).values():
        made.result(30)
    wait_until(lambda: rights_in_force(admin).issuperset(acls), 20, "the rights in force")


def rights_in_force(admin: AdminClient) -> set[AclBinding]:
    """The controller confirms a change of them, and the broker comes to know it a moment later."""
    every: Any = None  # which the client takes, and its types do not
    rights = AclOperation.ANY, AclPermissionType.ANY
    of_all = AclBindingFilter(ResourceType.ANY, every, ResourcePatternType.ANY, every, every, *rights)
    return set(admin.describe_acls(of_all, request_timeout=10).result(20))


@pytest.fixture(scope="module")
def security(tmp_path_factory: pytest.TempPathFactory) -> Security:
    return Security(tmp_path_factory.mktemp("security"))


@pytest.fixture(scope="module")
def guarded(security: Security) -> Iterator[Kafka]:
    """A Kafka where the user may do what docs/security.md lists, and no more."""
    with required("kafka"), Kafka(security=security, properties=AUTHORIZER) as service:
        allow(service, security.user)
        yield service


@pytest.fixture(scope="module")
def guarded_redis(security: Security) -> Iterator[str]:
    """The URL of a Redis behind TLS, where only a user with a password may do anything."""
    with (
        required("redis"),
        Redis(options={"requirepass": security.password}) as service,
        tls_before(service.port, security) as port,
    ):
        with redis_client.Redis(port=service.port, password=security.password) as client:
            client.execute_command("ACL", "SETUSER", security.user, f">{security.password}", *REDIS_RIGHTS)
        yield f"rediss://{security.user}:{quote(security.password)}@{HOST}:{port}/0?ssl_ca_certs={security.ca}"


@contextlib.contextmanager
def tls_before(port: int, security: Security) -> Iterator[int]:
    """TLS in front of a server on ``port``: the Valkey of the wheel is built without."""
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plain_reader, plain_writer = await asyncio.open_connection(HOST, port)
        await asyncio.gather(pump(reader, plain_writer), pump(plain_reader, writer))

    server = loop.run_until_complete(asyncio.start_server(connected, HOST, 0, ssl=security.server_context()))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:

        async def end() -> None:
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextlib.contextmanager
def issuer(security: Security) -> Iterator[str]:
    """The token endpoint of an identity provider: RFC 6749 section 4.4, for a client id and its secret."""
    expected = httpx.BasicAuth(security.user, security.password)._auth_header

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            known = self.headers["authorization"] == expected
            body = {"access_token": security.token(), "token_type": "Bearer", "expires_in": 600} if known else {}
            self.send_response(200 if known else 401)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{HOST}:{server.server_port}/token"
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def failing(guarded: Kafka, guarded_redis: str, security: Security) -> Iterator[list[tuple[Role, int, str]]]:
    """Roles that cannot start, their exit code and what they say; most try for 20 s, while another test runs."""
    settings = {
        "EVENT_STORE_BROKERS": guarded.secure,
        "EVENT_STORE_TOPIC": "test-never",
        "CACHE_URL": guarded_redis,
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SSL_CA_LOCATION": str(security.ca),
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "KAFKA_SASL_USERNAME": security.user,
        "KAFKA_SASL_PASSWORD": security.password,
        "KAFKA_DEBUG": "conf,security",
    }
    wrong = f"{security.password}-wrong"
    no_authority = guarded_redis.partition("?")[0]
    cases: list[tuple[dict[str, str], int, str]] = [
        ({"KAFKA_SASL_PASSWORD": wrong}, 20, "invalid credentials with SASL mechanism SCRAM-SHA-512"),
        ({"KAFKA_SSL_CA_LOCATION": "probe"}, 20, "verify that ssl.ca.location is correctly configured"),
        ({"CACHE_URL": guarded_redis.replace(security.password, wrong)}, 20, "invalid username-password pair"),
        ({"CACHE_URL": no_authority}, 20, "certificate verify failed"),
        ({"CACHE_URL": no_authority + "?ssl_ca_certs=/nowhere"}, 2, "ssl_ca_certs=/nowhere, which cannot be read"),
        ({"KAFKA_SASL_MECHANISM": "SCRAM"}, 2, "Unsupported SASL mechanism: SCRAM"),
        ({"KAFKA_SSL_CA_LOCATION": "/nowhere"}, 2, "KAFKA_SSL_CA_LOCATION='/nowhere' cannot be read"),
        ({"KAFKA_SASL_PASWORD": wrong}, 2, "KAFKA_SASL_PASWORD is wrong: librdkafka has no such property"),
        ({"CACHE_URL": guarded_redis.replace("rediss://", "redis:/")}, 2, "CACHE_URL='…' is wrong"),
    ]
    roles = [
        (Role("stream-processor", settings | changed, actor=ACTOR, module="accounts:AccountActor"), code, reason)
        for changed, code, reason in cases
    ]
    started: list[Role] = []
    try:
        for role, _, _ in roles:
            started.append(role.start())
        yield roles
    finally:
        for role in started:
            role.kill()


@pytest.fixture(params=["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
def login(
    request: pytest.FixtureRequest, guarded: Kafka, security: Security, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """Settings with which a role may use Kafka, the secret in a file."""
    with contextlib.ExitStack() as stack:
        password = tmp_path / "password"
        password.write_text(security.password + "\n")
        settings = {
            "EVENT_STORE_BROKERS": guarded.secure,
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SSL_CA_LOCATION": str(security.ca),
            "KAFKA_SASL_MECHANISM": request.param,
        }
        if request.param == "OAUTHBEARER":
            settings |= {
                "KAFKA_SASL_OAUTHBEARER_METHOD": "oidc",
                "KAFKA_SASL_OAUTHBEARER_CLIENT_ID": security.user,
                "KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET_FILE": str(password),
                "KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL": stack.enter_context(issuer(security)),
            }
        else:
            settings |= {"KAFKA_SASL_USERNAME": security.user, "KAFKA_SASL_PASSWORD_FILE": str(password)}
        yield settings


def complaints_but_slowness(role: Role) -> list[str]:
    """What a role complains of, other than that a backend has been slow, as it may be on a machine under load."""
    slow = re.compile(r" at \S+ is away: .*(in time|no answer within|timed out|TimeoutError)")
    return [text for line in role.complaints() if not slow.search(text := line["message"])]


def test_every_role_works_and_says_no_secret(
    guarded: Kafka,
    guarded_redis: str,
    security: Security,
    topic: str,
    login: dict[str, str],
    tmp_path: Path,
) -> None:
    """The stream processor uses every client but the producer's sender and the consumer's poller."""
    url = tmp_path / "url"
    url.write_text(guarded_redis)
    settings = login | {"EVENT_STORE_TOPIC": topic}
    cache = {"CACHE_URL_FILE": str(url)}
    account = "accounts:AccountActor"
    group = {"EVENT_STORE_GROUP_ID": topic, "EVENT_STORE_FROM_START": "true"}
    with contextlib.ExitStack() as stack:
        processor = stack.enter_context(Role("stream-processor", settings | cache, actor=ACTOR, module=account))
        answer = httpx.post(processor.url + "/accounts/1", json={"owner": "Ada"}, timeout=30)
        assert answer.status_code == 200, answer.text
        assert httpx.get(processor.url + "/accounts/1", timeout=30).json()["payload"] == {"owner": "Ada"}
        other = settings | {"EVENT_STORE_TOPIC": f"{topic}-other"}
        producer = stack.enter_context(Role("producer", other | cache, actor=ACTOR, module=account))
        for _ in range(2):  # the second is answered from Redis
            key = {"Idempotency-Key": "one"}
            answer = httpx.post(producer.url + "/accounts/2", json={"owner": "Bob"}, headers=key, timeout=30)
            assert answer.status_code == 200, answer.text
        both = {"EVENT_STORE_CONSUMER_TOPIC": f"{topic},{topic}-other"}
        consumer = Role("consumer", settings | group | both, actor=ACTOR, module="accounts:Register")
        stack.enter_context(consumer)
        wait_until(lambda: sorted(httpx.get(consumer.url + "/owners").json()) == ["Ada", "Bob"], 60, "both consumed")
        for role in (processor, producer, consumer):
            verbose = httpx.get(role.url + "/readyz?verbose").text + httpx.get(role.url + "/metrics").text
            assert security.password not in verbose
    for role in (processor, producer, consumer):
        assert role.process.returncode == 0, role.text()
        assert complaints_but_slowness(role) == []
        assert security.password not in role.text()
    assert len(read_all(guarded.brokers, topic)) == 1


def test_topics_made_beforehand_need_no_right_to_make_or_configure_any(
    guarded: Kafka, guarded_redis: str, security: Security, topic: str
) -> None:
    """Read, Write and Describe are enough; without DescribeConfigs a line says what is not checked."""
    ready = f"ready-{topic}"
    allow(guarded, security.user, ready, [AclOperation.DESCRIBE, AclOperation.READ, AclOperation.WRITE])
    for name in (ready, f"{ready}.transactions", f"{ready}-other"):
        make_topic(guarded.brokers, name, config=FOREVER)
    settings = {
        "EVENT_STORE_BROKERS": guarded.secure,
        "EVENT_STORE_TOPIC": ready,
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SSL_CA_LOCATION": str(security.ca),
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": security.user,
        "KAFKA_SASL_PASSWORD": security.password,
    }
    account, cache, other = (
        "accounts:AccountActor",
        {"CACHE_URL": guarded_redis},
        {"EVENT_STORE_TOPIC": f"{ready}-other"},
    )
    group = {
        "EVENT_STORE_GROUP_ID": ready,
        "EVENT_STORE_FROM_START": "true",
        "EVENT_STORE_CONSUMER_TOPIC": f"{ready},{ready}-other",
    }
    with (
        Role("stream-processor", settings | cache, actor=ACTOR, module=account) as processor,
        Role("producer", settings | other, actor=ACTOR, module=account) as producer,
        Role("consumer", settings | group, actor=ACTOR, module="accounts:Register") as consumer,
    ):
        for role, owner in ((processor, "Ada"), (producer, "Bob")):
            assert httpx.post(role.url + "/accounts/1", json={"owner": owner}, timeout=30).status_code == 200
            assert "has no right DescribeConfigs" in role.text()
        wait_until(lambda: sorted(httpx.get(consumer.url + "/owners").json()) == ["Ada", "Bob"], 60, "both consumed")
    missing = {"EVENT_STORE_TOPIC": f"{ready}-missing"}
    with Role("producer", settings | missing, actor=ACTOR, module=account, wait=False) as producer:
        wait_until(lambda: producer.port)
        wait_until(lambda: "grant Describe and Create" in httpx.get(producer.url + "/readyz?verbose").text, 20)


@pytest.mark.usefixtures("failing")  # which are at it meanwhile
def test_a_client_certificate(security: Security, topic: str) -> None:
    listener = "listener.name.secure.ssl"
    wants = {f"{listener}.client.auth": "required", f"{listener}.truststore.type": "PEM"}
    wants |= {f"{listener}.truststore.location": str(security.ca)}
    settings = {
        "EVENT_STORE_TOPIC": topic,
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SSL_CA_LOCATION": str(security.ca),
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": security.user,
        "KAFKA_SASL_PASSWORD": security.password,
    }
    certificate = {
        "KAFKA_SSL_CERTIFICATE_LOCATION": str(security.server),
        "KAFKA_SSL_KEY_LOCATION": str(security.server),
    }
    account = "accounts:AccountActor"
    with Kafka(security=security, properties=wants) as kafka:
        settings |= {"EVENT_STORE_BROKERS": kafka.secure}
        with Role("producer", settings | certificate, actor=ACTOR, module=account) as producer:
            assert httpx.post(producer.url + "/accounts/1", json={"owner": "Ada"}, timeout=30).status_code == 200
        with Role("producer", settings, actor=ACTOR, module=account, wait=False) as producer:
            wait_until(lambda: "certificate required" in producer.text(), 30, "a refusal")
            assert httpx.get(producer.url + "/readyz").status_code == 503


def test_a_start_that_fails_says_why_and_no_secret(failing: list[tuple[Role, int, str]], security: Security) -> None:
    for role, code, reason in failing:
        assert role.ended(100) == code, role.text()
        assert len(role.errors) == 1, role.errors
        (line,) = role.errors
        assert reason in line
        assert security.password not in role.text()
