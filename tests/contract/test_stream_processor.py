"""What a stream processor promises over HTTP, the same over memory and over real Kafka and Redis.

Each backend is a cluster of two instances. Afterwards the log itself is read, and judged by the rule alone.
"""

import asyncio
import base64
import json
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
import redis as redis_client

from examples.bank.accounts import AccountActor
from hiveio import Actor, testing
from hiveio.config import Settings
from hiveio.http.edge import Edge
from hiveio.service import Service
from hiveio.transaction import record as records
from hiveio.transaction.record import Barrier, Commit, Record
from hiveio.transaction.routes import commands, outcomes, snapshots, transacting
from hiveio.transaction.rule import ReferenceFold, scope_of
from tests.faults import actors
from tests.integration.topics import read_all
from tests.keys import strays
from tests.process import ROOT, Role
from tests.services import Redis

JSON = {"content-type": "application/json"}
SERVED = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(func_only=True)]
KINDS: list[Any] = ["memory", pytest.param("valkey", marks=SERVED)]
if shutil.which("redis-server"):  # Debian's, where it is installed
    KINDS.append(pytest.param("redis-server", marks=SERVED))


class Answer(NamedTuple):
    status: int
    body: Any
    headers: httpx.Headers

    @property
    def version(self) -> int:
        return int(self.headers["etag"].strip('"'))


ReadLog = Callable[[], list[tuple[str, bytes, int]]]  # transaction id, value, time (ms)


class Bank:
    """Two instances (or one), their log, and their cache to lose."""

    def __init__(
        self,
        clients: list[httpx.AsyncClient],
        log: Callable[[], list[tuple[str, bytes, int]]],
        lose: Callable[[], None],
    ) -> None:
        self.clients, self._log, self.lose_cache = clients, log, lose

    async def send(
        self, id: str, kind: str, *, at: int = 0, key: str | None = None, if_match: str | None = None, **payload: Any
    ) -> Answer:
        headers = {"idempotency-key": key, "if-match": if_match}
        return await self.ask(
            "POST",
            f"/accounts/{id}",
            at=at,
            content=json.dumps({"type": kind, "payload": payload}),
            headers=JSON | {name: value for name, value in headers.items() if value is not None},
        )

    async def get(self, id: str, none_match: str) -> httpx.Response:
        return await self.clients[0].get(f"/accounts/{id}", headers={"if-none-match": none_match})

    async def ask(self, method: str, path: str, *, at: int = 0, **request: Any) -> Answer:
        """A 503 says that nothing happened and to try again: so does this client, for a while."""
        for _ in range(200):
            found = await self.clients[at % len(self.clients)].request(method, path, **request)
            if found.status_code != 503:
                break
            await asyncio.sleep(0.05)
        return Answer(found.status_code, found.json(), found.headers)

    async def account(self, *owners: str) -> list[str]:
        """New accounts, opened."""
        ids = [f"{owner}-{uuid.uuid4().hex[:8]}" for owner in owners]
        for id in ids:
            assert (await self.send(id, "Open", owner=id)).status == 200
        return ids

    async def balance(self, id: str, at: int = 0) -> int:
        return int((await self.ask("GET", f"/accounts/{id}", at=at)).body["payload"]["balance"])

    async def log(self) -> list[tuple[str, Record, bool]]:
        """Transaction id, record and verdict of every record, by the rule alone."""
        fold, found = ReferenceFold(), []
        for key, value, time in await asyncio.to_thread(self._log):
            record = records.decode(value)
            found.append((key, record, fold.append(key, record, time)))
        return found

    async def chain(self, id: str) -> list[str]:
        """The event types of an account; its accepted records form one chain of heads with contiguous versions."""
        head, version, events = "", 0, []
        for tx, record, accepted in await self.log():
            name = f"AccountActor/{id}"
            if accepted and isinstance(record, Barrier) and name in record.aggregates:
                head = tx
            for write in record.writes if accepted and isinstance(record, Commit) else ():
                if write.aggregate == name:
                    assert (write.head, write.version) == (head, version)
                    head, version = tx, version + len(write.events)
                    events += [msgspec.json.decode(event)["type"] for event in write.events]
        return events


@asynccontextmanager
async def in_memory(partitions: int, instances: int, actor: type[Actor] = AccountActor) -> AsyncIterator[Bank]:
    async with AsyncExitStack() as stack:
        first = testing.Service(actor, settings=Settings(partitions=partitions))
        services = [first]
        services += [testing.Service(actor, log=first.log, cache=first.cache) for _ in range(instances - 1)]
        clients = []
        for service in services:
            await stack.enter_async_context(service)
            log, (contract,) = service.transactions, service.contracts
            routes = [outcomes(log), *commands(contract, transacting(contract, log)), snapshots(contract, log)]
            hosted = Service(service.settings, service.contracts)
            await hosted.start()
            transport = httpx.ASGITransport(Edge(hosted, routes))
            client = httpx.AsyncClient(transport=transport, base_url="http://memory")
            clients.append(await stack.enter_async_context(client))
        yield Bank(clients, lambda: [(m.key, m.value, m.time) for m in first.log.partitions[0]], first.lose_cache)


class Cluster(NamedTuple):
    urls: list[str]
    topic: str
    brokers: str
    redis: Redis

    @asynccontextmanager
    async def bank(self) -> AsyncIterator[Bank]:
        async with AsyncExitStack() as stack:
            clients = [httpx.AsyncClient(base_url=url, timeout=30) for url in self.urls]
            for client in clients:
                await stack.enter_async_context(client)
            yield Bank(clients, self._log, self._lose)
            assert strays(key.decode() for key in self._keys()) == []

    def _log(self) -> list[tuple[str, bytes, int]]:
        found = read_all(self.brokers, f"{self.topic}.transactions")
        return [((m.key() or b"").decode(), m.value() or b"", m.timestamp()[1]) for m in found]

    def _keys(self) -> list[bytes]:
        """Only what is ours: the server is shared."""
        with redis_client.Redis.from_url(self.redis.url) as client:
            return list(client.scan_iter(f"hive:{{{self.topic}.transactions/*", count=10_000))

    def _lose(self) -> None:
        if keys := self._keys():
            with redis_client.Redis.from_url(self.redis.url) as client:
                client.delete(*keys)


@contextmanager
def served(
    kind: str,
    request: pytest.FixtureRequest,
    partitions: int,
    instances: int,
    module: str = "bank.accounts",
    actor_path: Path = ROOT / "examples",
) -> Iterator[Cluster]:
    kafka = request.getfixturevalue("kafka")
    with ExitStack() as stack:
        redis = request.getfixturevalue("redis") if kind == "valkey" else stack.enter_context(Redis(binary=kind))
        topic = f"test-{uuid.uuid4().hex[:12]}"
        environ = {
            "EVENT_STORE_BROKERS": kafka.brokers,
            "EVENT_STORE_TOPIC": topic,
            "EVENT_STORE_PARTITIONS": str(partitions),
            "CACHE_URL": redis.url,
        }
        roles = [
            stack.enter_context(Role("stream-processor", environ, module=module, actor_path=actor_path, wait=False))
            for _ in range(instances)
        ]
        yield Cluster([role.ready().url for role in roles], topic, kafka.brokers, redis)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(kind: str, request: pytest.FixtureRequest) -> Iterator[Cluster | None]:
    if kind == "memory":
        yield None
        return
    with served(kind, request, partitions=1, instances=2) as found:
        yield found


@pytest.fixture
async def bank(cluster: Cluster | None) -> AsyncIterator[Bank]:
    async with cluster.bank() if cluster else in_memory(partitions=1, instances=2) as found:
        yield found


def event(kind: str, **payload: Any) -> dict[str, Any]:
    return {"type": kind, "payload": payload}


def transaction(id: str, key: str) -> str:
    """The id under which the outcome of a keyed command is asked for, as a 504 carries it."""
    return base64.urlsafe_b64encode(json.dumps(["AccountActor", id, key, 0, 0, True]).encode()).rstrip(b"=").decode()


async def gathered(*sent: Awaitable[Answer]) -> list[Answer]:
    return list(await asyncio.gather(*sent))


async def test_one_aggregate(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    answer = await bank.send(id, "Deposit", amount=500)
    assert (answer.status, answer.body, answer.version) == (200, event("Deposited", amount=500), 2)
    topic, partition, offset = answer.headers["hive-position"].rsplit("/", 2)
    assert topic.endswith(".transactions")
    assert partition == "0"
    _, record, accepted = (await bank.log())[int(offset)]
    assert accepted
    assert isinstance(record, Commit)
    assert [(write.aggregate, write.version, len(write.events)) for write in record.writes] == [
        (f"AccountActor/{id}", 1, 1)
    ]
    read = await bank.ask("GET", f"/accounts/{id}")
    assert (read.status, read.body, read.version) == (200, event("Account", owner=id, balance=500), 2)
    assert await bank.chain(id) == ["Opened", "Deposited"]


async def test_what_never_was_is_not_found(bank: Bank) -> None:
    assert (await bank.ask("GET", "/accounts/nobody")).status == 404


async def test_a_transfer_happens_to_both(bank: Bank) -> None:
    ada, bob = await bank.account("ada", "bob")
    await bank.send(ada, "Deposit", amount=500)
    answer = await bank.send(ada, "Transfer", to=bob, amount=200, at=1)
    assert (answer.status, answer.body) == (200, event("TransferSent", recipient=bob, amount=200))
    for at in (0, 1):
        assert [await bank.balance(ada, at), await bank.balance(bob, at)] == [300, 200]
    assert await bank.chain(ada) == ["Opened", "Deposited", "TransferSent"]
    assert await bank.chain(bob) == ["Opened", "TransferReceived"]
    both = [r for _, r, accepted in await bank.log() if accepted and isinstance(r, Commit) and len(r.writes) == 2]
    assert {f"AccountActor/{ada}", f"AccountActor/{bob}"} in [{write.aggregate for write in r.writes} for r in both]


async def test_a_transfer_that_is_refused_happens_to_neither(bank: Bank) -> None:
    ada, bob = await bank.account("ada", "bob")
    answer = await bank.send(ada, "Transfer", to=bob, amount=200)
    assert (answer.status, answer.body["detail"], answer.body["balance"]) == (422, "overdrawn", 0)
    assert (await bank.send(ada, "Transfer", to="nobody", amount=1)).status == 422
    assert await bank.chain(ada) == await bank.chain(bob) == ["Opened"]


async def test_transfers_at_once_neither_make_nor_lose_money(bank: Bank) -> None:
    ids = await bank.account("ada", "bob", "eve")
    for id in ids:
        await bank.send(id, "Deposit", amount=100)
    pairs = [(a, b) for a in ids for b in ids if a != b]
    answers = await gathered(
        *(bank.send(a, "Transfer", to=b, amount=7, at=n) for n in range(4) for a, b in pairs for _ in range(2))
    )
    assert {answer.status for answer in answers} <= {200, 409, 422}
    assert sum(answer.status == 200 for answer in answers) > 0
    assert sum([await bank.balance(id) for id in ids]) == 300
    kinds = [kind for id in ids for kind in await bank.chain(id)]
    sent = sum(answer.status == 200 for answer in answers)
    assert Counter(kinds)["TransferSent"] == Counter(kinds)["TransferReceived"] == sent


async def test_a_refusal_is_a_problem_document_and_leaves_no_trace(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    before = len(await bank.log())
    answer = await bank.send(id, "Withdraw", amount=9)
    assert answer.status == 422
    assert answer.headers["content-type"] == "application/problem+json"
    found = {name: answer.body[name] for name in ("title", "status", "detail", "balance", "amount")}
    assert found == {"title": "Rejected", "status": 422, "detail": "overdrawn", "balance": 0, "amount": 9}
    assert len(await bank.log()) == before


async def test_a_message_that_does_not_fit_is_refused_with_its_field(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    answer = await bank.send(id, "Deposit", amount=-1)
    assert (answer.status, answer.body["pointer"]) == (422, "/payload/amount")


async def test_a_key_is_executed_once_and_answered_alike_on_any_instance(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    first = await bank.send(id, "Deposit", amount=5, key="k")
    again = [await bank.send(id, "Deposit", amount=5, key="k", at=at) for at in (0, 1, 0)]
    for answer in again:
        assert answer[:2] == first[:2] == (200, event("Deposited", amount=5))
        assert answer.version == first.version
        assert answer.headers["hive-position"] == first.headers["hive-position"]
    assert await bank.balance(id) == 5


async def test_a_key_sent_at_once_is_executed_once(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    answers = await gathered(*(bank.send(id, "Deposit", amount=5, key="k", at=at) for at in range(20)))
    assert {answer.status for answer in answers} <= {200, 409}
    assert len({answer.headers["hive-position"] for answer in answers if answer.status == 200}) == 1
    assert await bank.balance(id) == 5


async def test_a_key_belongs_to_one_body_and_one_aggregate(bank: Bank) -> None:
    ada, bob = await bank.account("ada", "bob")
    await bank.send(ada, "Deposit", amount=5, key="k")
    other = await bank.send(ada, "Deposit", amount=6, key="k", at=1)
    assert (other.status, other.body["title"]) == (422, "Idempotency-Key Reused")
    assert (await bank.send(bob, "Deposit", amount=6, key="k")).status == 200
    assert [await bank.balance(ada), await bank.balance(bob)] == [5, 6]


async def test_a_refusal_under_a_key_stays_refused(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    first = await bank.send(id, "Withdraw", amount=5, key="k")
    await bank.send(id, "Deposit", amount=500)
    second = await bank.send(id, "Withdraw", amount=5, key="k", at=1)
    assert first[:2] == second[:2]
    assert first.status == 422
    assert await bank.balance(id) == 500


async def test_if_match_names_the_version(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    assert (await bank.send(id, "Deposit", amount=1, if_match='"1"')).version == 2
    answer = await bank.send(id, "Deposit", amount=1, if_match='"1"', at=1)
    assert (answer.status, answer.body["version"]) == (412, 2)
    assert await bank.balance(id) == 1


async def test_a_command_may_ask_for_one_of_several_versions_or_for_none(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    path, open = f"/accounts/{id}", json.dumps({"type": "Open", "payload": {"owner": "bo"}})
    created = await bank.ask("POST", path, content=open, headers=JSON | {"if-none-match": "*"})
    assert (created.status, created.body["version"]) == (412, 1), "create only if it is not there"
    new = await bank.ask("POST", path + "-2", content=open, headers=JSON | {"if-none-match": "*"})
    assert (new.status, new.version) == (200, 1)
    missing = await bank.ask("POST", path + "-3", content=open, headers=JSON | {"if-match": "*"})
    assert missing.status == 412
    for if_match, status in [('"7", "1"', 200), ('W/"2"', 412), ('"x"', 412), ("*", 200), ("2", 400)]:
        assert (await bank.send(id, "Deposit", amount=1, if_match=if_match)).status == status, if_match
    assert await bank.balance(id) == 2


async def test_of_several_that_create_one_does(bank: Bank) -> None:
    """The condition holds at the verdict, on whichever instance it was asked."""
    (id,) = await bank.account("ada")
    body = json.dumps({"type": "Open", "payload": {"owner": "bo"}})
    headers = JSON | {"if-none-match": "*"}
    calls = [bank.ask("POST", f"/accounts/{id}-x", at=n, content=body, headers=headers) for n in range(8)]
    assert sorted(answer.status for answer in await asyncio.gather(*calls)) == [200] + [412] * 7


async def test_a_state_that_its_client_has_is_not_sent_again(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    for none_match, status in [('"1"', 304), ('W/"1"', 304), ('"0", "1"', 304), ("*", 304), ('"2"', 200)]:
        found = await bank.get(id, none_match)
        assert (found.status_code, found.headers["etag"]) == (status, '"1"'), none_match
        assert (status == 304) == (found.content == b"")
    assert (await bank.get(id + "-none", "*")).status_code == 404


async def test_a_write_is_read_at_once_on_any_instance(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    for n in range(1, 20):
        assert (await bank.send(id, "Deposit", amount=1, at=n)).status == 200
        assert await bank.balance(id, at=n + 1) == n


async def test_the_outcome_of_a_transaction(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    deposited = await bank.send(id, "Deposit", amount=5, key="good")
    await bank.send(id, "Withdraw", amount=9, key="bad")
    good = (await bank.ask("GET", f"/transactions/{transaction(id, 'good')}", at=1)).body
    assert (good["outcome"], good["version"], good["value"]) == ("accepted", 2, event("Deposited", amount=5))
    assert good["position"] == deposited.headers["hive-position"]
    bad = (await bank.ask("GET", f"/transactions/{transaction(id, 'bad')}")).body
    assert (bad["outcome"], bad["problem"]["detail"]) == ("refused", "overdrawn")
    assert (await bank.ask("GET", "/transactions/nonsense")).status == 404


async def test_asking_closes_what_was_not_executed(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    for at in (0, 1):
        assert (await bank.ask("GET", f"/transactions/{transaction(id, 'k')}", at=at)).body["outcome"] == "closed"
    for at in (0, 1):
        assert (await bank.send(id, "Deposit", amount=5, key="k", at=at)).status == 409
    assert await bank.balance(id) == 0
    assert (await bank.send(id, "Deposit", amount=5)).status == 200
    assert await bank.chain(id) == ["Opened", "Deposited"]


async def test_of_deposits_at_once_none_is_lost(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    answers = await gathered(*(bank.send(id, "Deposit", amount=n, at=n) for n in range(1, 101)))
    assert {answer.status for answer in answers} == {200}
    assert sorted(answer.version for answer in answers) == list(range(2, 102))
    assert await bank.balance(id) == sum(range(1, 101))
    assert await bank.chain(id) == ["Opened", *["Deposited"] * 100]


async def test_a_lost_cache_is_folded_anew(bank: Bank) -> None:
    (id,) = await bank.account("ada")
    await bank.send(id, "Deposit", amount=5, key="k")
    for at in (0, 1):
        bank.lose_cache()
        assert await bank.balance(id, at) == 5
        bank.lose_cache()
        assert (await bank.send(id, "Deposit", amount=5, key="k", at=at)).status == 200
    assert await bank.balance(id) == 5
    assert (await bank.send(id, "Deposit", amount=1)).version == 3


async def test_a_transaction_over_two_scopes_is_refused_with_what_can_be_done(
    kind: str, request: pytest.FixtureRequest
) -> None:
    ada, bob = "ada", next(id for id in map(str, range(100)) if scope_of(id, 4) != scope_of("ada", 4))
    with ExitStack() as stack:
        if kind == "memory":
            opened = in_memory(partitions=4, instances=1, actor=actors.AccountActor)
        else:
            folder = ROOT / "tests" / "faults"
            opened = stack.enter_context(served(kind, request, 4, 1, "actors:AccountActor", folder)).bank()
        async with opened as bank:
            for id, amount in ((ada, 5), (bob, 1)):
                await bank.send(id, "Deposit", amount=amount, marker="m")
            answer = await bank.send(ada, "Transfer", to=bob, amount=1, marker="m")
            assert (answer.status, answer.body["title"]) == (422, "Several Scopes")
            assert answer.body["aggregates"] == [f"Account/{ada}", f"Account/{bob}"]
            assert answer.body["scopes"] == [scope_of(ada, 4), scope_of(bob, 4)]
            for part in (f"Account/{ada}", f"Account/{bob}", "are fixed", "command of its own", "with new names"):
                assert part in answer.body["detail"]
            assert [await bank.balance(ada), await bank.balance(bob)] == [5, 1]
