"""docs/routing.md: the examples in deploy/nginx and deploy/envoy before two stream processors, and the scope that their
scripts read from a path."""

import asyncio
import random
import re
import socket
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from hiveio.actor import Contract
from hiveio.envelope import Envelope, Outcome
from hiveio.http.routes import Router, messages, path_text
from hiveio.transaction.actors import Actors
from hiveio.transaction.rule import scope_of
from tests.process import ROOT, Role, wait_until
from tests.proxies import envoy, nginx
from tests.services import Kafka, Redis, free_port

DEPLOY = ROOT / "deploy"
PARTITIONS = 32
ACTOR = """
from hiveio import Actor, Command, Event, Model

class Deposit(Command): amount: int
class Deposited(Event): amount: int
class Account(Model): balance: int
class AccountActor(Actor):
    path = "/accounts/{id}"
    def scope(self, id: str) -> str:
        return id.partition("-")[0]
    def perform(self, account: Account | None, command: Deposit) -> Deposited:
        return Deposited(command.amount)
    def replay(self, account: Account | None, event: Deposited) -> Account:
        return Account((account.balance if account else 0) + event.amount)

class Order(Command): amount: int
class Ordered(Event): amount: int
class OrderActor(Actor):
    path = "/orders/{id}"
    def perform(self, account: Account | None, command: Order) -> Ordered:
        return Ordered(command.amount)
    def replay(self, account: Account | None, event: Ordered) -> Account:
        return Account(event.amount)
"""
# One branch for each scope. Of so many, one instance alone has all in less than one of a million runs: the hash that
# chooses it is over free ports.
BRANCHES = {scope_of(f"branch{number}", PARTITIONS): f"branch{number}" for number in range(1_000)}
ACCOUNTS = [f"{branch}-{number}" for branch in BRANCHES.values() for number in (1, 2)]


def adapted(script: str, constant: str) -> str:
    text, count = re.subn(rf"{constant} = 16\b", f"{constant} = {PARTITIONS}", (DEPLOY / script).read_text("utf-8"))
    assert count == 1
    return text


@pytest.fixture(scope="module")
def roles(kafka: Kafka, redis: Redis) -> Iterator[list[Role]]:
    environ = {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": f"test-{uuid.uuid4().hex[:12]}",
        "EVENT_STORE_PARTITIONS": str(PARTITIONS),
        "CACHE_URL": redis.url,
    }
    with Role("stream-processor", environ, actor=ACTOR):
        pass  # makes the log: who starts on one whose partitions Kafka is still making follows these
    with (
        Role("stream-processor", environ, actor=ACTOR, wait=False) as first,
        Role("stream-processor", environ, actor=ACTOR, wait=False) as second,
    ):
        yield [first.ready(), second.ready()]


@pytest.fixture(scope="module")
def by_nginx(roles: list[Role], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of nginx. Its answers say which instance gave them, and the scope that its script has found."""
    folder, port, ports = tmp_path_factory.mktemp("nginx"), free_port(), iter([role.port for role in roles])
    (folder / "scopes.js").write_text(adapted("nginx/scopes.js", "const PARTITIONS"))
    http = (DEPLOY / "nginx/accounts.conf").read_text("utf-8")
    for there, here, times in (
        (r"server accounts-\d:3000", lambda _: f"server 127.0.0.1:{next(ports)}", 2),
        (r"listen 80;", lambda _: f"listen 127.0.0.1:{port};", 1),
        (r"/etc/nginx/scopes.js", lambda _: str(folder / "scopes.js"), 1),
    ):
        http, count = re.subn(there, here, http)
        assert count == times
    headers = "add_header Instance $upstream_addr always; add_header Scope $scope always;"
    with nginx(folder, port, f"{headers}\n{http}", javascript=True):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def by_envoy(roles: list[Role], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Envoy, with the same headers."""
    folder, port = tmp_path_factory.mktemp("envoy"), free_port()
    (folder / "scopes.lua").write_text(adapted("envoy/scopes.lua", "local PARTITIONS"))
    resources = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text("utf-8"))["static_resources"]
    (listener,), (cluster,) = resources["listeners"], resources["clusters"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["http_filters"][0]["typed_config"]["default_source_code"] == {"filename": "/etc/envoy/scopes.lua"}
    manager["http_filters"][0]["typed_config"]["default_source_code"] = {"filename": str(folder / "scopes.lua")}
    manager["route_config"]["response_headers_to_add"] = [
        {"header": {"key": "instance", "value": "%UPSTREAM_REMOTE_ADDRESS%"}},
        {"header": {"key": "scope", "value": "%REQ(hive-scope)%"}},
    ]
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": role.port}}}}
        for role in roles
    ]
    cluster["type"] = "STATIC"  # of several names, Envoy begins once it has resolved the first
    cluster["health_checks"][0]["timeout"] = "30s"  # a busy machine is no reason to take an instance out
    with envoy(folder, port, yaml.safe_dump({"static_resources": resources})):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module", params=["nginx", "envoy"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"by_{request.param}"))


def deposit(client: httpx.Client, address: str) -> httpx.Response:
    """Sent again with the same key until it is answered, as docs/routing.md advises."""
    key = {"Idempotency-Key": uuid.uuid4().hex}
    answers: list[httpx.Response] = []

    def answered() -> bool:
        answers.append(client.post(address, json={"type": "Deposit", "payload": {"amount": 1}}, headers=key))
        return answers[-1].status_code == 200

    try:
        wait_until(answered, 20, f"a deposit at {address}")
    except AssertionError as error:
        error.add_note(f"{len(answers)} answers, the last one {answers[-1].status_code}: {answers[-1].text}")
        raise
    return answers[-1]


def instance(answer: httpx.Response) -> str:
    """Who gave the answer; in the header are all who were tried, in their order."""
    return answer.headers["instance"].split(", ")[-1]


def followed(role: Role) -> set[int]:
    """The scopes that it has followed so far."""
    text = httpx.get(f"{role.url}/metrics").text
    return {int(scope) for scope in re.findall(r'^hiveio_fold_lag_records\{scope="(\d+)"\}', text, re.M)}


def test_the_commands_of_a_scope_reach_one_instance(
    roles: list[Role], url: str, request: pytest.FixtureRequest
) -> None:
    by: dict[int, set[str]] = {}  # who answers commands and reads of each scope
    with httpx.Client(base_url=url, timeout=20) as client:
        for account in ACCOUNTS:
            answers = [deposit(client, f"/accounts/{account}"), client.get(f"/accounts/{account}?consistency=current")]
            assert {answer.status_code for answer in answers} == {200}
            scope = int(answers[0].headers["hive-position"].split("/")[1])  # the service's own word
            assert {answer.headers["scope"] for answer in answers} == {str(scope)}
            by.setdefault(scope, set()).update(map(instance, answers))
    assert set(by) == set(range(PARTITIONS))
    assert all(len(instances) == 1 for instances in by.values()), by
    shares = [{scope for scope, (name,) in by.items() if name == f"127.0.0.1:{role.port}"} for role in roles]
    assert all(shares), "both have a share"
    if request.node.callspec.id == "nginx":  # the first: an instance follows what it has used for a minute
        found = [followed(role) for role in roles]
        assert shares[0] <= found[0]
        assert shares[1] <= found[1]
        # The sweep of an instance may look at a scope just when another one opens it, and follow it as well: some do so
        # on a slow machine. Without the routing it is all of them.
        assert len(found[0] & found[1]) <= PARTITIONS // 4, found


# -- the number


def paths() -> list[bytes]:
    """What the scripts must read as the service does, and paths by chance."""
    found = [
        "/accounts/north-17", "/accounts/north-18?consistency=current", "/accounts/north", "/accounts/-",
        "/accounts/-7", "/accounts/%6Eorth%2D17", "/accounts/%6eorth%2d17", "/accounts/%C3%A9t%C3%A9-1",
        "/accounts/a%2Fb-1", "/accounts/a+b", "/accounts/a%20b-1", "/accounts/%20", "/accounts/%25-1",
        "/accounts/%2541-1", "/accounts/%E2%82%AC", "/accounts/..", "/accounts/%F0%9F%98%80-9",
        "/accounts/a:b;c=1,d~e@f!$&'()*", "/accounts/%3F?x=/orders/1", "/accounts/" + "x" * 255,
        "/%61ccounts/north-1", "/orders/north-17", "/orders/7?x=/accounts/north-1", "/orders/%C3%BC",
        "/orders/a/b", "/", "/accounts", "/accounts/", "/accounts/?id=7", "/accounts/a/b", "/Accounts/a",
        "/accounts//a", "/readyz", "/transactions/x",
    ]  # fmt: skip
    chance = random.Random(17)
    for _ in range(400):
        id = "".join(chance.choice("ab-7 /%?#+é€😀\n~") for _ in range(chance.randrange(1, 20)))
        found.append(f"/{chance.choice(('accounts', 'orders'))}/{quote(id, safe=chance.choice(('', '+~')))}")
    return [path.encode() for path in found]


def scopes(address: str) -> list[str]:
    """What the load balancer makes of each path. The requests are written by hand: a client would normalise some."""
    lines = b"\r\nHost: test\r\n"
    requests = [b"GET %b HTTP/1.1%b\r\n" % (path, lines) for path in paths()]
    requests.append(b"GET / HTTP/1.1%bConnection: close\r\n\r\n" % lines)
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(b"".join(requests))
        answers = b""
        while data := connection.recv(1 << 16):
            answers += data
    heads = re.findall(rb"HTTP/1\.1 \d+ .*?\r\n\r\n", answers, re.S)
    assert len(heads) == len(requests), answers[-2_000:]
    found = [re.search(rb"^scope: (\d+)\r$", head, re.M | re.I) for head in heads]
    return [match[1].decode() if match and len(match[1]) < 5 else "" for match in found][:-1]


def test_the_scripts_make_of_a_path_what_the_service_makes_of_it(url: str) -> None:
    names: dict[str, Any] = {"__name__": "accounts"}
    exec(ACTOR, names)
    contracts = [Contract(names[name]) for name in ("AccountActor", "OrderActor")]
    router = Router([route for contract in contracts for route in messages(contract, unused)], "/ping")
    actors = Actors(contracts, PARTITIONS)

    def scope(path: bytes) -> str:
        found = router.find(path.partition(b"?")[0])
        if found is None:
            return ""  # it may go anywhere
        resource, parameters = found
        contract = resource.routes["POST"].contract
        assert contract is not None
        return str(actors.partition(contract, path_text(parameters[0])))

    expected = [scope(path) for path in paths()]
    assert scopes(url) == expected
    assert len(set(expected)) == PARTITIONS + 1


async def unused(envelope: Envelope) -> Outcome:
    raise AssertionError


# -- an instance that is lost, and a load balancer that is passed by


async def test_routing_is_not_needed_for_safety(roles: list[Role], by_nginx: str, by_envoy: str) -> None:
    """The same account over the load balancers and at each instance at once: each command counts once, in one order."""
    account, each = f"/accounts/north-{uuid.uuid4().hex[:6]}", 20

    async def deposits(client: httpx.AsyncClient, base: str) -> list[str]:
        answers = [
            await client.post(base + account, json={"type": "Deposit", "payload": {"amount": 1}}) for _ in range(each)
        ]
        assert {answer.status_code for answer in answers} == {200}
        return [answer.headers["etag"] for answer in answers]

    bases = (by_nginx, by_envoy, *(role.url for role in roles))
    async with httpx.AsyncClient(timeout=30) as client:
        found = await asyncio.gather(*(deposits(client, base) for base in bases))
        state = await client.get(by_nginx + account)
    total = len(bases) * each
    assert sorted(tag for tags in found for tag in tags) == sorted(f'"{version}"' for version in range(1, total + 1))
    assert state.json()["payload"] == {"balance": total}


def test_the_share_of_a_lost_instance_moves_and_that_of_the_other_stays(
    roles: list[Role], by_nginx: str, by_envoy: str
) -> None:
    lost, left = (f"127.0.0.1:{role.port}" for role in roles)
    accounts = ACCOUNTS[::2]  # one of each scope
    with httpx.Client(timeout=20) as client:
        before = {
            (base, account): client.get(f"{base}/accounts/{account}")
            for account in accounts
            for base in (by_nginx, by_envoy)
        }
        roles[0].kill()
        after = {(base, account): deposit(client, f"{base}/accounts/{account}") for base, account in before}
        states = {account: client.get(f"{by_nginx}/accounts/{account}").json()["payload"] for account in accounts}
    whose = {key: instance(answer) for key, answer in before.items()}
    for base in (by_nginx, by_envoy):
        assert {by for (there, _), by in whose.items() if there == base} == {lost, left}
    assert {instance(answer) for answer in after.values()} == {left}
    assert all(after[key].headers["instance"] == left for key, by in whose.items() if by == left)
    for account in accounts:
        answer = before[by_nginx, account]
        balance = answer.json()["payload"]["balance"] if answer.is_success else 0
        assert states[account] == {"balance": balance + 2}


# -- the manifests


def test_the_ingress_fits_and_names_the_script() -> None:
    config, ingress = yaml.safe_load_all((DEPLOY / "nginx/ingress.yaml").read_text("utf-8"))
    for part in (config, ingress):
        kubernetes_validate.validate(part, "1.34", strict=True)
    conf = (DEPLOY / "nginx/accounts.conf").read_text("utf-8")
    assert f"    {ingress['metadata']['annotations']['nginx.org/lb-method']};\n" in conf
    for line in config["data"]["http-snippets"].splitlines():
        assert f"\n{line.replace('/hiveio/', '/')}\n" in conf


def test_the_gateway_hashes_the_header_of_the_script() -> None:
    script, policy = yaml.safe_load_all((DEPLOY / "envoy/gateway.yaml").read_text("utf-8"))
    assert script["spec"]["targetRefs"] == policy["spec"]["targetRefs"]
    header = policy["spec"]["loadBalancer"]["consistentHash"]["header"]["name"]
    (cluster,) = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text("utf-8"))["static_resources"]["clusters"]
    assert cluster["lb_policy"] == "RING_HASH"
    assert f'headers:add("{header}", ' in (DEPLOY / "envoy/scopes.lua").read_text("utf-8")
