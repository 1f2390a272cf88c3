"""hiveio.testing finds what is wrong with an actor, and says it clearly."""

import asyncio
import base64
import itertools
import json
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from hiveio import (
    Actor,
    Command,
    Context,
    Event,
    Forbidden,
    Model,
    NotFound,
    Query,
    Rejected,
    Transaction,
    Unauthorized,
)
from hiveio.config import Settings
from hiveio.errors import Conflict, SeveralScopes
from hiveio.testing import Service, given
from hiveio.transaction.record import Commit, Format
from hiveio.transaction.rule import scope_of
from tests.unit.transaction.test_engine import patiently


class Add(Command):
    amount: Annotated[int, Meta(gt=0)]


class Both(Command):
    other: str


class Nothing(Command):
    pass


class Fault(Command):
    pass


class Added(Event):
    amount: int


class Sum(Model):
    total: int = 0
    parts: list[int] = []  # noqa: RUF012 - msgspec copies it


class Counter(Actor):
    path = "/counters/{id}"

    async def perform(
        self, state: Sum | None, command: Add | Both | Nothing | Fault, context: Context, tx: Transaction
    ) -> Added | list[Added] | None:
        match command:
            case Add(amount):
                if (state.total if state else 0) + amount > 100:
                    raise Rejected("too much", limit=100)
                return Added(amount)
            case Both(other):
                await tx.get(Counter, other)
                tx.emit(Counter, other, Added(2))
                return [Added(1), Added(1)]
            case Fault():
                raise KeyError("a fault")
        return None

    def replay(self, state: Sum | None, event: Added) -> Sum:
        state = state or Sum()
        return Sum(state.total + event.amount, [*state.parts, event.amount])


class Sloppy(Counter):
    def replay(self, state: Sum | None, event: Added) -> Sum:
        state = state or Sum()
        state.parts.append(event.amount)
        return Sum(state.total + event.amount, state.parts)


class Fickle(Counter):
    calls = itertools.count()

    def replay(self, state: Sum | None, event: Added) -> Sum:
        return Sum(next(self.calls))


class Wrong(Counter):
    def replay(self, state: Sum | None, event: Added) -> Sum:
        return Sum("five")  # type: ignore[arg-type]


class Raising(Counter):
    def replay(self, state: Sum | None, event: Added) -> Sum:
        raise ValueError("cannot")


class Total(Query):
    path = "/totals/{name}"
    name: str
    least: int = 0
    tags: list[str] = []  # noqa: RUF012 - msgspec copies it


class Projection(Actor):
    def __init__(self) -> None:
        self.totals: dict[str, int] = {}

    async def start(self) -> None:
        assert not self.totals
        await asyncio.sleep(0)

    def perform(self, message: Added | Total, context: Context) -> dict[str, Any] | None:
        match message:
            case Added(amount):
                assert context.id is not None
                self.totals[context.id] = self.totals.get(context.id, 0) + amount
                return None
            case Total(name, least, tags):
                if name not in self.totals:
                    raise Rejected("never heard of it")
                return {"total": max(self.totals[name], least), "tags": tags}


class Door(Actor):
    path = "/door"

    def perform(self, message: Add) -> Added:
        return Added(message.amount)


# -- given, when, then


def test_what_was_given_is_folded_and_decided_on() -> None:
    given(Counter, Added(1), Added(2)).when(Add(3)).then(Added(3)).then_state(Sum(6, [1, 2, 3]))
    given(Counter).when(Add(3)).then(Added(3)).then_state(Sum(3, [3]))


def test_one_when_follows_another() -> None:
    scenario = given(Counter).when(Add(60)).when(Add(30)).then(Added(30)).then_state(Sum(90, [60, 30]))
    scenario.when(Add(20)).then_rejected("too much", limit=100).then_state(Sum(90, [60, 30]))


def test_nothing_may_be_written() -> None:
    given(Counter, Added(1)).when(Nothing()).then().then_state(Sum(1, [1]))


def test_other_aggregates() -> None:
    both = given(Counter, Added(1)).and_given(Counter, "2", Added(5)).when(Both("2"))
    both.then(Added(1), Added(1)).then_emitted(Counter, "2", Added(2)).then_emitted(Counter, "3")
    both.then_state(Sum(3, [1, 1, 1])).then_state(Sum(7, [5, 2]), Counter, "2").then_state(None, Counter, "3")


def test_keys_and_versions() -> None:
    scenario = given(Counter, Added(1)).when(Add(1), key="k", if_match=1).then(Added(1))
    scenario.when(Add(1), key="k").then(Added(1)).then_state(Sum(2, [1, 1]))
    scenario.when(Add(2), key="k").then_problem(422, "another body")
    scenario.when(Add(1), if_match=7).then_problem(412)
    scenario.when(Add(1), if_none_match=2).then_problem(412, version=2)
    scenario.when(Add(1), if_match="*", if_none_match=7).then(Added(1)).then_header("ETag", '"3"')


def test_an_aggregate_that_must_not_exist() -> None:
    scenario = given(Counter).when(Add(1), if_match="*").then_problem(412)
    scenario.when(Add(1), if_none_match="*").then(Added(1))
    scenario.when(Add(1), if_none_match="*").then_problem(412).then_state(Sum(1, [1]))


def test_what_has_no_version_meets_no_condition() -> None:
    door = given(Door)
    door.when(Add(1), if_match=1).then_problem(412).when(Add(1), if_none_match="*").then_problem(412)
    door.when(Add(1)).then(Added(1))
    total = given(Projection, Added(4), id="a")
    total.when(Total(name="a"), if_match="*").then_problem(412)
    total.when(Total(name="a"), if_none_match=1).then_reply({"total": 4, "tags": []})


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (
            lambda s: s.then(Added(4)),
            r"(?s)Counter/1 when Add.*expected events \[Added\(amount=4\)\].*found .*amount=3",
        ),
        (lambda s: s.then(), "expected events"),
        (lambda s: s.then_state(Sum(9)), "expected state of Counter/1"),
        (lambda s: s.then_rejected("no"), "expected Rejected"),
        (lambda s: s.then_emitted(Counter, "2", Added(1)), "events of Counter/2"),
    ],
)
def test_a_check_that_fails_says_what_was_found(check: Any, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        check(given(Counter).when(Add(3)))


def test_a_refusal_that_was_not_expected_is_told() -> None:
    refused = given(Counter).when(Add(101))
    with pytest.raises(AssertionError, match="found    Rejected \\(422\\): too much"):
        refused.then(Added(101))
    with pytest.raises(AssertionError, match="expected rejected with 'other'"):
        refused.then_rejected("other")
    with pytest.raises(AssertionError, match="limit"):
        refused.then_rejected("too much", limit=5)


def test_a_message_that_does_not_fit_is_refused_as_over_http() -> None:
    given(Counter).when(Add(0)).then_invalid("/payload/amount").then_problem(422, ">= 1").then_state(None)


def test_a_fault_of_the_actor_leaves_when() -> None:
    with pytest.raises(KeyError, match="a fault"):
        given(Counter).when(Fault())


# -- what is wrong with replay


@pytest.mark.parametrize(
    ("actor", "text"),
    [
        (Sloppy, "Sloppy.replay changed the state that it was given: it was {.*} and is now {"),
        (Fickle, "Fickle.replay is not deterministic"),
    ],
)
@pytest.mark.parametrize("events", [(), (Added(1), Added(2))])
def test_a_replay_that_is_no_pure_function_is_found(actor: type[Actor], text: str, events: tuple[Event, ...]) -> None:
    with pytest.raises(AssertionError, match=text):
        given(actor, *events).when(Add(1)).when(Add(1))


class Pile(Model):
    things: list[int] = msgspec.field(default_factory=list)


class Drop(Command):
    how: str
    on: list[int] = msgspec.field(default_factory=list)


class Dropped(Event):
    pass


class Piles(Actor):
    path = "/piles/{id}"

    async def perform(self, pile: Pile | None, command: Drop, tx: Transaction) -> Dropped:
        match command.how:
            case "state":
                assert pile is not None
                pile.things.append(1)
                raise Rejected("no")
            case "unspeakable":
                assert pile is not None
                pile.things.append(self)  # type: ignore[arg-type]
            case "message":
                command.on.append(1)
            case "other":
                (await tx.get(Piles, "2")).things.append(1)
        return Dropped()

    def replay(self, pile: Pile | None, event: Dropped) -> Pile:
        return Pile([*pile.things] if pile else [])


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("state", r'changed the state that it was given: it was {"things":\[\]} and is now {"things":\[1\]}'),
        ("unspeakable", "changed the state that it was given: it was .* and is now Pile"),
        ("message", r"changed the message that it was given: .*\[1\]"),
        ("other", r"changed the state that it was given: .*\[1\]"),
    ],
)
def test_a_perform_that_changes_what_it_is_given_is_found(how: str, text: str) -> None:
    scenario = given(Piles, Dropped()).and_given(Piles, "2", Dropped())
    scenario.when(Drop("nothing")).then(Dropped())
    with pytest.raises(AssertionError, match="Piles.perform " + text):
        scenario.when(Drop(how))


class Heap(Actor):
    path = "/heaps"

    def perform(self, message: Drop) -> int:
        message.on.append(1)
        return 1


def test_a_plain_perform_that_changes_its_message_is_found() -> None:
    with pytest.raises(AssertionError, match=r"Heap.perform changed the message"):
        given(Heap).when(Drop("", [0]))


def test_a_state_of_the_wrong_type_is_found() -> None:
    with pytest.raises(Exception, match="Expected `int`, got `str`"):
        given(Wrong).when(Add(1))


def test_a_replay_that_raises_is_told() -> None:
    with pytest.raises(AssertionError, match="Raising/1 cannot be folded: ValueError: cannot"):
        given(Raising, Added(1)).when(Add(1))


def test_an_event_that_is_not_the_actors_cannot_be_given() -> None:
    class Other(Event):
        pass

    with pytest.raises(TypeError, match="not one of its events"):
        given(Counter, Other())


def test_an_event_that_would_not_be_read_from_the_log_cannot_be_given() -> None:
    with pytest.raises(AssertionError, match="could not be read from the log again"):
        given(Counter, Added("five"))  # type: ignore[arg-type]


# -- actors without a state


def test_a_projection_hears_events_and_answers_queries() -> None:
    projection = given(Projection, Added(1), Added(2), id="a").and_given(Projection, "b", Added(5))
    projection.when(Total("a")).then_reply({"total": 3, "tags": []})
    projection.when(Total("b", least=9, tags=["x", "y z"])).then_reply({"total": 9, "tags": ["x", "y z"]})
    projection.when(Added(4), id="a").then_reply(None).when(Total("a")).then_reply({"total": 7, "tags": []})
    projection.when(Total("c")).then_rejected("never heard")


def test_an_actor_at_the_door() -> None:
    given(Door).when(Add(5)).then(Added(5)).then_reply(Added(5))
    given(Door).when(Add(-5)).then_invalid("/payload/amount")


# -- the service


async def test_a_service_answers_reads_and_shows_its_log() -> None:
    async with Service(Counter) as service:
        answer = await service.submit(Counter, "a", Add(3), key="k", meta={"from": "here"})
        assert (answer.events, answer.version, answer.position) == ([Added(3)], 1, "memory.transactions/0/1")
        assert await service.read(Counter, "a") == (Sum(3, [3]), 1)
        assert await service.read(Counter, "b") == (None, 0)
        with pytest.raises(Rejected, match="too much"):
            await service.submit(Counter, "a", Add(99))
        form, record = service.records()
        assert isinstance(form.record, Format)
        assert isinstance(record.record, Commit)
        assert (record.offset, record.verdict, record.record.keyed) == (1, True, True)
        assert b'"from":"here"' in bytes(record.record.writes[0].events[0])


async def test_commands_at_once_lose_nothing() -> None:
    async with Service(Counter) as service:
        answers = await asyncio.gather(*(service.submit(Counter, "a", Add(1)) for _ in range(100)))
        assert sorted(answer.version or 0 for answer in answers) == list(range(1, 101))
        assert (await service.read(Counter, "a"))[0].total == 100


async def test_instances_share_log_and_cache() -> None:
    async with Service(Counter) as one, Service(Counter, log=one.log, cache=one.cache) as two:
        services = (one, two)
        answers = await asyncio.gather(*(services[n % 2].submit(Counter, "a", Add(1)) for n in range(40)))
        assert sorted(answer.version or 0 for answer in answers) == list(range(1, 41))
        for service in services:
            assert (await service.read(Counter, "a"))[1] == 40
        verdicts = [logged.verdict for logged in one.records()]
        assert verdicts.count(True) == 41
        assert len(verdicts) <= 41 + 20, "what one of them had tried before it knew of the other, and no more"


async def test_a_lost_cache_and_a_new_instance_fold_the_log() -> None:
    async with Service(Counter) as service:
        await service.submit(Counter, "a", Add(3), key="k")
        service.lose_cache()
        assert await patiently(lambda: service.read(Counter, "a")) == (Sum(3, [3]), 1)
    async with Service(Counter, log=service.log) as fresh:
        assert await fresh.read(Counter, "a") == (Sum(3, [3]), 1)
        again = await fresh.submit(Counter, "a", Add(3), key="k")
        assert (again.version, len(fresh.records())) == (1, 2)


async def test_an_outcome_is_told_and_closes_what_was_not_executed() -> None:
    async with Service(Counter) as service:
        await service.submit(Counter, "a", Add(3), key="k")
        assert (await service.outcome(_token("a", "k")))["outcome"] == "accepted"
        assert (await service.outcome(_token("a", "other")))["outcome"] == "closed"
        with pytest.raises(Conflict):
            await service.submit(Counter, "a", Add(3), key="other")
        with pytest.raises(NotFound):
            await service.outcome("nonsense")


async def test_a_transaction_over_two_scopes_is_refused() -> None:
    async with Service(Counter, settings=Settings(partitions=4)) as service:
        other = next(id for id in map(str, range(100)) if scope_of(id, 4) != scope_of("a", 4))
        with pytest.raises(SeveralScopes, match="scope"):
            await service.submit(Counter, "a", Both(other))


def _token(id: str, key: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(["Counter", id, key, 0, 0, True]).encode()).rstrip(b"=").decode()


class Who(Query):
    path = "/who"


class Guarded(Actor):
    path = "/guarded/{id}"

    def perform(self, state: Sum | None, command: Add, context: Context) -> Added:
        user = context.headers.get("authorization")
        if user is None:
            raise Unauthorized("nobody is named", challenge='Bearer realm="sums"')
        if user != "Bearer ada":
            raise Forbidden("this is Ada's")
        if state is None and command.amount > 5:
            raise NotFound("there is no such sum", id=context.id)
        return Added(command.amount)

    def replay(self, state: Sum | None, event: Added) -> Sum:
        return Sum((state.total if state else 0) + event.amount)


class Asked(Actor):
    path = "/asked/{id}"

    def perform(self, message: Add | Added | Who, context: Context) -> Any:
        if isinstance(message, Who) and "AUTHORIZATION" not in context.headers:
            raise Unauthorized
        return dict(context.headers)


def test_headers_of_the_request_and_of_the_answer() -> None:
    guarded = given(Guarded)
    guarded.when(Add(1)).then_problem(401, "nobody").then_header("www-authenticate", 'Bearer realm="sums"')
    guarded.when(Add(1), headers={"Authorization": "Bearer eve"}).then_problem(403, "Ada's").then_header("ETag", None)
    ada = {"AUTHORIZATION": "Bearer ada"}
    guarded.when(Add(9), headers=ada).then_problem(404, "no such sum", id="1")
    guarded.when(Add(1), headers=ada).then(Added(1)).then_header("etag", '"1"')
    with pytest.raises(AssertionError, match=r"expected header ETag '\"2\"'\n  found    header ETag '\"1\"'"):
        guarded.then_header("ETag", '"2"')
    asked = given(Asked)
    asked.when(Add(1), headers={"X-Tenant": "a"}).then_reply({"x-tenant": "a"})
    asked.when(Added(1), headers={"X-Tenant": "b"}).then_reply({"x-tenant": "b"})
    asked.when(Who()).then_problem(401).then_header("WWW-Authenticate", "Bearer")
    asked.when(Who(), headers={"Authorization": "x"}).then_reply({"authorization": "x"})


def test_a_refusal_that_cannot_be_answered_is_a_fault_of_the_actor() -> None:
    class Odd(Counter):
        async def perform(self, state: Sum | None, command: Add, tx: Transaction) -> Added:  # type: ignore[override]
            raise Rejected("no", status=404)

    with pytest.raises(TypeError, match=r"Rejected.status=….: .* are set by the class and the text"):
        given(Odd).when(Add(1))
