"""/openapi.json of every role, as public tools read it: a validator, schemathesis, and two generators of clients."""

import asyncio
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import openapi_spec_validator
import pytest

from tests.ahead import Ahead
from tests.conftest import require
from tests.integration import shop
from tests.integration.topics import make_topic
from tests.process import ROOT, Role
from tests.services import Kafka, Redis

BIN = Path(sys.executable).parent
CLIENTS = ROOT / "tests" / "clients"
CHECKS = ROOT / "tests" / "integration" / "schemathesis_checks.py"
EXAMPLES = 15  # of each operation, besides those that schemathesis always tries


class Shop:
    """A role each, and the topic that the producer writes and the consumer reads."""

    def __init__(self, topic: str, roles: list[Role]) -> None:
        self.topic = topic
        self.base, self.producer, self.consumer, self.processor = roles
        self.roles = roles
        self.documents = {role.name: httpx.get(role.url + "/openapi.json").json() for role in roles}


@pytest.fixture(scope="module")
def roles(kafka: Kafka, redis: Redis) -> Iterator[Shop]:
    topic = f"readings-{uuid.uuid4().hex[:12]}"
    make_topic(kafka.brokers, topic)
    shared = {"EVENT_STORE_BROKERS": kafka.brokers, "CACHE_URL": redis.url, "EVENT_STORE_GROUP_ID": topic}
    reading, accounts = shared | {"EVENT_STORE_TOPIC": topic}, shared | {"EVENT_STORE_TOPIC": f"{topic}-accounts"}
    with ExitStack() as stack:
        started = [
            stack.enter_context(Role(name, environ, actor=actor, module=module, wait=False))
            for name, environ, actor, module in [
                ("base", {}, shop.BASE, "orders"),
                ("producer", reading | {"EVENT_STORE_ID": "the shop"}, shop.PRODUCER, "readings"),
                ("consumer", reading, shop.CONSUMER, "thermometer"),
                ("stream-processor", accounts, shop.PROCESSOR, "accounts"),
            ]
        ]
        yield Shop(topic, [role.ready() for role in started])
        for role in started:
            assert not role.complaints()
            assert not role.errors


def of(document: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    operation: dict[str, Any] = document["paths"][path][method]
    return operation


def headers_of(operation: dict[str, Any]) -> set[str]:
    return {each["name"] for each in operation["parameters"] if each["in"] == "header"}


def test_each_document_is_valid(roles: Shop) -> None:
    for document in roles.documents.values():
        openapi_spec_validator.validate(document)


def test_a_service_has_its_name_and_version(roles: Shop) -> None:
    assert roles.documents["base"]["info"] == {
        "title": "orders",
        "version": "2.1.0",
        "description": "Orders, as the tests of /openapi.json see them.",
    }
    assert roles.documents["producer"]["info"] == {"title": "the shop", "version": "0.0.0"}
    assert httpx.get(roles.producer.url + "/asyncapi.json").json()["info"]["title"] == "the shop"


def test_what_a_producer_takes_and_answers(roles: Shop) -> None:
    operation = of(roles.documents["producer"], "/readings", "post")
    assert headers_of(operation) == {"Idempotency-Key"}
    assert set(operation["requestBody"]["content"]) == {"application/json", "application/x-ndjson"}
    assert set(operation["responses"]["200"]["headers"]) == {"Hive-Position", "X-Request-Id"}
    assert {"207", "409", "503", "504"} <= set(operation["responses"])


def test_what_a_consumer_takes_and_answers(roles: Shop) -> None:
    operation = of(roles.documents["consumer"], "/warmest", "get")
    assert headers_of(operation) == {"Hive-Position", "Prefer"}
    assert set(operation["responses"]["200"]["headers"]) == {"Age", "Hive-Parked", "X-Request-Id"}


def test_what_a_stream_processor_takes_and_answers(roles: Shop) -> None:
    document = roles.documents["stream-processor"]
    command = of(document, "/accounts/{id}", "post")
    assert headers_of(command) == {"Idempotency-Key", "If-Match", "If-None-Match"}
    assert set(command["responses"]["200"]["headers"]) == {"ETag", "Hive-Position", "X-Request-Id"}
    assert {"409", "412", "504"} <= set(command["responses"])
    state = of(document, "/accounts/{id}", "get")
    assert "consistency" in {each["name"] for each in state["parameters"]}
    assert headers_of(state) == {"If-Match", "If-None-Match"}
    for status in ("200", "304"):
        assert set(state["responses"][status]["headers"]) == {"ETag", "Hive-Consistency", "X-Request-Id"}
    assert "content" not in state["responses"]["304"]
    assert "304" not in command["responses"]
    assert "412" in state["responses"]
    outcome = of(document, "/transactions/{id}", "get")
    schema = outcome["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["properties"]["outcome"]["enum"] == ["accepted", "refused", "closed", "unknown"]


# -- schemathesis


async def examined(role: Role, folder: Path) -> str:
    """What schemathesis says of a role; "" where it finds nothing."""
    command = ["run", role.url + "/openapi.json", "--checks=all", "--exclude-checks=positive_data_acceptance"]
    command += ["--phases=coverage,fuzzing", f"--max-examples={EXAMPLES}", "--seed=7", "--no-color"]
    command += ["--suppress-health-check=all", "--warnings=off"]
    process = await asyncio.create_subprocess_exec(
        str(BIN / "schemathesis"),
        *command,
        cwd=folder,
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(CHECKS)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert b"Fuzzing" in said, said.decode()
    return "" if process.returncode == 0 else f"{role.name}: {said.decode()}"


async def test_schemathesis_finds_nothing(roles: Shop, tmp_path: Path) -> None:
    # A batch is answered as a whole, and each of its records in its place; what is too long is refused before the rest.
    settings = '[checks.negative_data_rejection]\nexpected-statuses = ["4xx", 207]\n'
    for role in roles.roles:
        (folder := tmp_path / role.name).mkdir()
        (folder / "schemathesis.toml").write_text(settings)
    found = await asyncio.gather(*(examined(role, tmp_path / role.name) for role in roles.roles))
    assert not any(found), "\n\n".join(found)


# -- generated clients


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=100, check=False, env=os.environ
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.fixture
def generated(roles: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A client in Python for each role, as a package to import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    names = {}
    for role, document in roles.documents.items():
        (tmp_path / f"{role}.json").write_text(json.dumps(document))
        names[role] = f"client_{role.replace('-', '_')}"
        options = ["--path", f"{role}.json", "--meta=none", "--output-path", names[role]]
        run(BIN / "openapi-python-client", "generate", *options, cwd=tmp_path)
    yield names
    for module in [name for name in sys.modules if name.partition(".")[0] in names.values()]:
        del sys.modules[module]


def test_a_generated_client_in_python(roles: Shop, generated: dict[str, str]) -> None:
    def part(role: str, name: str) -> ModuleType:
        return importlib.import_module(f"{generated[role]}.{name}")

    with ExitStack() as stack:
        base, producer, consumer, processor = (
            stack.enter_context(part(role.name, "client").Client(role.url)) for role in roles.roles
        )
        in_python(roles, part, base, producer, consumer, processor)


def in_python(
    roles: Shop, part: Callable[[str, str], Any], base: Any, producer: Any, consumer: Any, processor: Any
) -> None:
    models, orders = part("base", "models"), part("base", "api.orders.orders_order_or_cancel_or_split")
    body = models.SplitMessage(type_=models.SplitMessageType.SPLIT, payload=models.Split(into=2))
    parts = orders.sync("o 1/ü", client=base, body=body, idempotency_key="k")
    assert [each.payload.number for each in parts] == [0, 1]
    line = models.Line(sku="a", count=2, price="1.50")
    body = models.OrderMessage(type_=models.OrderMessageType.ORDER, payload=models.Order(lines=[line]))
    assert orders.sync("1", client=base, body=body).payload.lines[0].price == "1.50"
    body = models.OrderMessage(type_=models.OrderMessageType.ORDER, payload=models.Order(lines=[]))
    problem = orders.sync("1", client=base, body=body)
    assert (problem.status, problem["least"]) == (422, 1)
    overview = part("base", "api.orders.orders_overview").sync("1", client=base, tags=["a", "b"], limit=7)
    assert overview.payload.tags == ["a", "b"]

    models, readings = part("producer", "models"), part("producer", "api.readings.readings_reading")
    reading = models.Reading(sensor="cellar", celsius=9.5, count=1)
    answer = readings.sync_detailed(client=producer, body=reading)
    assert answer.parsed.payload.celsius == 9.5
    position = answer.headers["hive-position"]
    assert position.startswith(f"{roles.topic}/0/")
    cold = models.Reading(sensor="cellar", celsius=-300, count=1)
    assert [each.status for each in readings.sync(client=producer, body=[reading, cold])] == [200, 422]

    latest = part("consumer", "api.thermometer.thermometer_latest")
    assert latest.sync("cellar", client=consumer, hive_position=position, prefer="wait=9").payload.celsius == 9.5
    warmest = part("consumer", "api.thermometer.thermometer_warmest").sync(client=consumer, above=9, sensors=["a", "b"])
    assert warmest[0].payload.celsius >= 9.5

    models = part("stream-processor", "models")
    commands = part("stream-processor", "api.accounts.accounts_open_or_deposit")
    body = models.OpenMessage(type_=models.OpenMessageType.OPEN, payload=models.Open(owner="Ada"))
    opened = commands.sync_detailed("python", client=processor, body=body, idempotency_key="open")
    assert opened.parsed.payload.owner == "Ada"
    payload = models.Deposit(amounts=[3, 4])
    body = models.DepositMessage(type_=models.DepositMessageType.DEPOSIT, payload=payload)
    deposited = commands.sync("python", client=processor, body=body, if_match=opened.headers["etag"])
    assert [each.payload.amount for each in deposited] == [3, 4]
    assert commands.sync("python", client=processor, body=body, if_match=opened.headers["etag"]).status == 412
    state = part("stream-processor", "api.accounts.accounts_get").sync("python", client=processor)
    assert state.payload.balance == 7


def installed(clients: Path) -> Path:
    """A folder with these files, and the packages that they name."""
    folder = Path(tempfile.mkdtemp())
    for file in clients.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    run("npm", "ci", cwd=folder)
    return folder


@pytest.mark.ahead(installed, CLIENTS)
def test_a_generated_client_in_typescript(roles: Shop, ahead: Ahead) -> None:
    if shutil.which("npm") is None:
        require("node", "no npm in PATH")
    folder: Path = ahead.result(installed, CLIENTS)
    commands = folder / "node_modules" / ".bin"

    def generate(role: str) -> None:
        name = role.removeprefix("stream-")
        (folder / f"{name}.json").write_text(json.dumps(roles.documents[role]))
        options = ["--output", f"{name}.ts", "--default-non-nullable=false"]
        run(commands / "openapi-typescript", f"{name}.json", *options, cwd=folder)

    with ThreadPoolExecutor() as pool:
        list(pool.map(generate, roles.documents))
    run(commands / "tsc", cwd=folder)
    run("node", "client.js", *(role.url for role in roles.roles), roles.topic, cwd=folder)
