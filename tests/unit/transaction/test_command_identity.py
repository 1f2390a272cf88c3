"""Commands of callers who are known: whose they are stands in the record, and nobody answers for another."""

import base64

import msgspec
import pytest

from hiveio import Identity, testing
from hiveio.config import Settings
from hiveio.errors import Forbidden, HeadersTooLarge, KeyReused, NotFound, TooLarge, Unauthorized
from hiveio.headers import PASSED_LIMIT
from hiveio.kafka.tail import LogRecord
from hiveio.transaction.command import Token
from hiveio.transaction.publisher import Origin, outgoing
from hiveio.transaction.record import CommandId, Commit, decode, encode
from tests.faults.actors import Account, AccountActor, Deposit, Deposited, Withdraw

ADA, BOB = Identity.of("ada", "accounts:write"), Identity.of("bob", "accounts:write")


def token(id: str, key: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(Token("Account", id, key, 0, 0, True))).rstrip(b"=").decode()


def last(service: testing.Service) -> Commit:
    record = service.records()[-1].record
    assert isinstance(record, Commit)
    return record


def headers_of(record: Commit) -> list[tuple[str, str | bytes | None]]:
    """Of the first event as it would be published."""
    return outgoing(Origin("t", "log", 0), LogRecord(1, "w-1", encode(record), 0), record)[0].headers


async def test_the_subject_stands_in_the_headers_of_the_event_whatever_the_client_sends() -> None:
    async with testing.Service(AccountActor, settings=Settings(event_headers=("x-hive-subject",))) as service:
        await service.submit(
            AccountActor,
            "1",
            Deposit(5, "a"),
            identity=ADA,
            meta={"hive-subject": "root", "subject": "root"},
            headers={"hive-subject": "root", "Hive-Subject": "root", "x-hive-subject": "root"},
        )
        found = headers_of(last(service))
        assert [value for name, value in found if name == "hive-subject"] == ["ada"]
        await service.submit(AccountActor, "1", Deposit(5, "b"), headers={"hive-subject": "root"})
        assert not [value for name, value in headers_of(last(service)) if name == "hive-subject"]


async def test_each_caller_has_keys_of_its_own() -> None:
    async with testing.Service(AccountActor) as service:
        first = await service.submit(AccountActor, "1", Deposit(5, "a"), key="k", identity=ADA)
        again = await service.submit(AccountActor, "1", Deposit(5, "a"), key="k", identity=ADA)
        assert (again.body, again.position) == (first.body, first.position)
        with pytest.raises(KeyReused, match="Idempotency-Key 'k' was used"):
            await service.submit(AccountActor, "1", Deposit(6, "a"), key="k", identity=ADA)
        # The same key and the same body of another caller: a command of its own, and not the answer to the first one.
        other = await service.submit(AccountActor, "1", Deposit(5, "a"), key="k", identity=BOB)
        assert (other.version, other.position != first.position) == (2, True)
        # So the other one cannot use up a key either.
        unknown = await service.submit(AccountActor, "1", Deposit(7, "c"), key="k")
        assert unknown.version == 3


async def test_only_its_caller_learns_the_outcome_of_a_command_and_closes_it() -> None:
    async with testing.Service(AccountActor) as service:
        await service.submit(AccountActor, "1", Deposit(5, "a"), key="k", identity=ADA)
        mine = token("1", "ada\nk")
        assert (await service.outcome(mine, ADA))["outcome"] == "accepted"
        for forged, asking in ((mine, BOB), (token("1", "k"), ADA), (token("1", "ada\nk\nk"), ADA)):
            with pytest.raises(NotFound):
                await service.outcome(forged, asking)
        await service.submit(AccountActor, "1", Deposit(6, "b"), identity=ADA)
        unkeyed = last(service).command.key  # the next ones can be guessed from one's own
        before = len(service.records())
        with pytest.raises(NotFound):
            await service.outcome(token("1", unkeyed), BOB)
        with pytest.raises(NotFound):
            await service.outcome(token("1", unkeyed.partition("\n")[2]), BOB)
        assert len(service.records()) == before  # and nothing was closed


async def test_a_refusal_belongs_to_its_caller_too() -> None:
    async with testing.Service(AccountActor) as service:
        await service.submit(AccountActor, "1", Deposit(5, "a"), identity=ADA)
        for caller in (ADA, BOB):
            with pytest.raises(Exception, match=r"5|overdrawn|not"):
                await service.submit(AccountActor, "1", Withdraw(50, "w"), key="k", identity=caller)
        assert (await service.outcome(token("1", "bob\nk"), BOB))["outcome"] == "refused"


def test_a_command_id_says_whose_it_is() -> None:
    mine, nobodys = CommandId.of("Account/1", "k", ADA), CommandId.of("Account/1", "k", None)
    assert (mine.caller, mine.given, nobodys.caller, nobodys.given) == ("ada", "k", "", "k")
    assert mine.text != nobodys.text
    commit = Commit(mine, ())
    assert decode(encode(commit)) == commit
    assert b"passed" not in encode(commit)


# -- scopes, in tests of actors


class Guarded(AccountActor):
    name = "Account"
    requires = "accounts:write"


def test_given_when_then_knows_callers() -> None:
    scenario = testing.given(Guarded, id="1")
    scenario.when(Deposit(5, "a")).then_problem(401)
    scenario.when(Deposit(5, "a"), identity=Identity.of("eve", "accounts:read")).then_problem(403, "accounts:write")
    scenario.when(Deposit(5, "a"), identity=ADA).then(Deposited(5, "a"))


async def test_an_outcome_needs_the_scope_too() -> None:
    async with testing.Service(Guarded) as service:
        with pytest.raises(Unauthorized):
            await service.submit(Guarded, "1", Deposit(5, "a"), key="k")
        await service.submit(Guarded, "1", Deposit(5, "a"), key="k", identity=ADA)
        with pytest.raises(Forbidden):
            await service.outcome(token("1", "ada\nk"), Identity.of("ada"))


# -- EVENT_HEADERS


async def test_headers_of_the_request_go_on_to_the_events_as_they_came() -> None:
    async with testing.Service(AccountActor, settings=Settings(event_headers=("x-tenant", "x-b3-*"))) as service:
        sent = {"X-Tenant": "zürich", "x-b3-spanid": "1", "x-other": "no"}
        await service.submit(AccountActor, "1", Deposit(5, "a"), headers=sent)
        found = headers_of(last(service))
        assert ("x-tenant", "zürich".encode("latin-1")) in found
        assert ("x-b3-spanid", b"1") in found
        assert not [name for name, _ in found if name == "x-other"]
        stored = decode(encode(last(service)))
        assert isinstance(stored, Commit)
        assert headers_of(stored) == found


async def test_so_many_bytes_of_headers_go_on() -> None:
    async with testing.Service(AccountActor, settings=Settings(event_headers=("x-*",))) as service:
        with pytest.raises(HeadersTooLarge, match=str(PASSED_LIMIT)):
            await service.submit(AccountActor, "1", Deposit(5, "a"), headers={"x-a": "a" * PASSED_LIMIT})
        await service.submit(AccountActor, "1", Deposit(5, "a"), headers={"x-a": "a" * (PASSED_LIMIT - 3)})


class Many(AccountActor):
    name = "Account"

    def perform(self, account: Account | None, command: Deposit) -> list[Deposited]:  # type: ignore[override]
        return [Deposited(1, f"{command.marker}{number}") for number in range(300)]


async def test_many_events_do_not_multiply_the_headers_beyond_a_record() -> None:
    async with testing.Service(Many, settings=Settings(event_headers=("x-*",))) as service:
        with pytest.raises(TooLarge, match="300 events"):
            await service.submit(Many, "1", Deposit(1, "n"), headers={"x-a": "a" * 4_000})
        assert (await service.submit(Many, "1", Deposit(1, "n"), headers={"x-a": "a" * 1_000})).version == 300
