"""docs/routing.md: its nginx before two stream processors, and what its examples make of a path."""

import asyncio
import re
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from tests.nginx import nginx
from tests.process import ROOT, Role, wait_until
from tests.services import Kafka, Redis, free_port

TEXT = (ROOT / "docs" / "routing.md").read_text("utf-8")
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
"""
# Of so many branches one instance alone has all but once in a million runs: the hash is over free ports.
ACCOUNTS = [f"branch{branch}-{number}" for branch in range(20) for number in (1, 2)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)


@pytest.fixture(scope="module")
def roles(kafka: Kafka, redis: Redis) -> Iterator[list[Role]]:
    environ = {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": f"test-{uuid.uuid4().hex[:12]}",
        "EVENT_STORE_PARTITIONS": "2",
        "CACHE_URL": redis.url,
    }
    with (
        Role("stream-processor", environ, actor=ACTOR, wait=False) as first,
        Role("stream-processor", environ, actor=ACTOR, wait=False) as second,
    ):
        yield [first.ready(), second.ready()]


@pytest.fixture(scope="module")
def url(roles: list[Role], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the nginx of the page. Each of its answers says which instance gave it."""
    port, ports = free_port(), iter([role.port for role in roles])
    http, servers = re.subn(r"server accounts-\d:3000", lambda _: f"server 127.0.0.1:{next(ports)}", blocks("nginx")[0])
    http, listens = re.subn(r"listen 80;", f"listen 127.0.0.1:{port};", http)
    assert (servers, listens) == (2, 1)
    with nginx(tmp_path_factory.mktemp("nginx"), port, f"add_header Instance $upstream_addr always;\n{http}"):
        yield f"http://127.0.0.1:{port}"


def deposit(client: httpx.Client, address: str) -> httpx.Response:
    """Sent again with the same key until it is answered, as docs/routing.md advises."""
    key = {"Idempotency-Key": uuid.uuid4().hex}

    def answer() -> httpx.Response | None:
        found = client.post(address, json={"type": "Deposit", "payload": {"amount": 1}}, headers=key)
        return found if found.status_code == 200 else None

    found: httpx.Response = wait_until(answer, 20, f"a deposit at {address}")
    return found


def instances(url: str) -> dict[str, set[str]]:
    """Who answers commands and reads of each account; in the header are all who were tried, in their order."""
    found: dict[str, set[str]] = {}
    with httpx.Client(base_url=url, timeout=20) as client:
        for account in ACCOUNTS:
            answers = [deposit(client, f"/accounts/{account}") for _ in range(2)]
            answers.append(client.get(f"/accounts/{account}?consistency=current"))
            assert [answer.status_code for answer in answers] == [200] * 3
            found[account] = {answer.headers["instance"].split(", ")[-1] for answer in answers}
    return found


def test_the_commands_of_a_scope_reach_one_instance(roles: list[Role], url: str) -> None:
    found = instances(url)
    assert all(len(by) == 1 for by in found.values()), found
    for account in ACCOUNTS:
        assert found[account] == found[account.replace("-2", "-1")], "the accounts of a branch"
    assert set.union(*found.values()) == {f"127.0.0.1:{role.port}" for role in roles}, "both have a share"


async def test_routing_is_not_needed_for_safety(roles: list[Role], url: str) -> None:
    """The same account over nginx and at each instance at once: each command counts once, in one order."""
    account, each = f"/accounts/north-{uuid.uuid4().hex[:6]}", 20

    async def deposits(client: httpx.AsyncClient, base: str) -> list[str]:
        answers = [
            await client.post(base + account, json={"type": "Deposit", "payload": {"amount": 1}}) for _ in range(each)
        ]
        assert {answer.status_code for answer in answers} == {200}
        return [answer.headers["etag"] for answer in answers]

    async with httpx.AsyncClient(timeout=30) as client:
        found = await asyncio.gather(*(deposits(client, base) for base in (url, roles[0].url, roles[1].url)))
        state = await client.get(url + account)
    assert sorted(tag for tags in found for tag in tags) == sorted(f'"{version}"' for version in range(1, 3 * each + 1))
    assert state.json()["payload"] == {"balance": 3 * each}


def test_the_share_of_a_lost_instance_moves_and_that_of_the_other_stays(roles: list[Role], url: str) -> None:
    lost, left = (f"127.0.0.1:{role.port}" for role in roles)
    with httpx.Client(base_url=url, timeout=20) as client:
        before = {account: client.get(f"/accounts/{account}") for account in ACCOUNTS}
        roles[0].kill()
        after = {account: deposit(client, f"/accounts/{account}") for account in ACCOUNTS}
        states = {account: client.get(f"/accounts/{account}").json()["payload"]["balance"] for account in ACCOUNTS}
    whose = {account: answer.headers["instance"] for account, answer in before.items()}
    assert lost in whose.values()
    assert {answer.headers["instance"].split(", ")[-1] for answer in after.values()} == {left}
    assert all(after[account].headers["instance"] == left for account, by in whose.items() if by == left)
    balances = {account: answer.json()["payload"]["balance"] for account, answer in before.items() if answer.is_success}
    assert states == {account: balances.get(account, 0) + 1 for account in ACCOUNTS}


# -- the other examples


def routed(path: str, envoy: dict[str, Any]) -> str:
    """What Envoy hashes of a path."""
    route = next(each for each in envoy["routes"] if path.startswith(each["match"]["prefix"]))
    (policy,) = route["route"]["hash_policy"]
    assert policy["header"]["header_name"] == ":path"
    rewrite = policy["header"]["regex_rewrite"]
    return re.sub(rewrite["pattern"]["regex"], rewrite["substitution"], path)


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/accounts/north-17", "accounts/north"),
        ("/accounts/north-18?consistency=current", "accounts/north"),
        ("/accounts/north", "accounts/north"),
        ("/quotes/7?x=/accounts/north-1", "/quotes/7"),
        ("/accounts", "/accounts"),
    ],
)
def test_nginx_and_envoy_hash_the_same(path: str, scope: str) -> None:
    uri = path.partition("?")[0]
    (pattern, value), (default, otherwise) = re.findall(r"^    (\S+) +(\S+);", blocks("nginx")[0], re.M)[:2]
    assert (pattern[0], default, otherwise) == ("~", "default", "$uri")
    found = re.search(pattern[1:].replace("?<", "?P<"), uri)
    assert (value.replace("$branch", found["branch"]) if found else uri) == scope
    assert routed(path, yaml.safe_load(blocks("yaml")[0])) == scope


def test_the_manifests_fit_and_have_the_same_map() -> None:
    config, ingress = yaml.safe_load_all(blocks("yaml")[1])
    for part in (config, ingress):
        kubernetes_validate.validate(part, "1.34", strict=True)
    assert ingress["metadata"]["annotations"]["nginx.org/lb-method"] in blocks("nginx")[0]
    pairs = [re.findall(r"^ +(~\S+|default) +(\S+);", text, re.M) for text in (config["data"]["http-snippets"], TEXT)]
    assert pairs[0] == pairs[1][:2]
