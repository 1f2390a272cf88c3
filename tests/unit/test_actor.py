# ruff: noqa: RUF012
# mypy: disable-error-code="misc, empty-body"
from typing import Any

import pytest

from hiveio import Actor, Command, Event, Model, Query, Rejected
from hiveio.actor import Contract, contracts, performing, query_decoder
from hiveio.envelope import Context, Envelope
from hiveio.errors import BadAnnotation, Invalid, NameTaken


class Add(Command):
    amount: int


class Added(Event):
    amount: int


class Other(Event):
    pass


class Sum(Model):
    total: int = 0


class Find(Query):
    text: str
    limit: int = 10
    tags: list[str] = []
    years: list[int] | None = None


class Adder(Actor):
    path = "/sums/{id}"

    def perform(self, state: Sum | None, command: Add) -> Added | list[Added] | None:
        if command.amount < 0:
            raise Rejected("negative")
        return Added(command.amount) if command.amount else None

    def replay(self, state: Sum | None, event: Added) -> Sum:
        return Sum((state.total if state else 0) + event.amount)


def test_the_annotations_are_the_contract() -> None:
    contract = Contract(Adder)
    assert (contract.commands, contract.queries, contract.events) == ({"Add": Add}, {}, {"Added": Added})
    assert contract.model is Sum
    assert contract.stateful


async def test_performing_answers_what_perform_returns() -> None:
    handle = performing(Contract(Adder))
    assert (await handle(Envelope(message=Add(5)))).value == Added(5)
    assert (await handle(Envelope(message=Add(0)))).value is None
    with pytest.raises(Rejected):
        await handle(Envelope(message=Add(-1)))


async def test_context_is_known_by_its_name_and_perform_may_be_async() -> None:
    class Asker(Actor):
        async def perform(self, query: Find, context: Context) -> Any:
            return context.id

    assert (await performing(Contract(Asker))(Envelope(message=Find("a"), id="x"))).value == "x"


async def test_an_event_that_is_not_its_own_is_a_fault_of_the_actor() -> None:
    class Liar(Actor):
        def perform(self, command: Add) -> Added:
            return Other()  # type: ignore[return-value]

    with pytest.raises(TypeError, match="not one of its events: Added"):
        await performing(Contract(Liar))(Envelope(message=Add(1)))


def wrong_return_of_replay() -> type[Actor]:
    class A(Actor):
        def perform(self, c: Add) -> Added: ...
        def replay(self, state: Any, event: Added) -> int: ...

    return A


def no_annotation() -> type[Actor]:
    class A(Actor):
        def perform(self, state, command): ...  # type: ignore[no-untyped-def]

    return A


def no_message() -> type[Actor]:
    class A(Actor):
        def perform(self, state: None, command: Add | int) -> None: ...

    return A


def base_class() -> type[Actor]:
    class A(Actor):
        def perform(self, command: Command) -> None: ...

    return A


def too_many() -> type[Actor]:
    class A(Actor):
        def perform(self, state: None, command: Add, more: int) -> None: ...

    return A


def stars() -> type[Actor]:
    class A(Actor):
        def perform(self, *commands: Add) -> None: ...

    return A


def unresolved() -> type[Actor]:
    class A(Actor):
        def perform(self, command: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    return A


def no_perform() -> type[Actor]:
    class A(Actor):
        pass

    return A


def async_replay() -> type[Actor]:
    class A(Actor):
        def perform(self, c: Add) -> Added: ...
        async def replay(self, state: Sum | None, event: Added) -> Sum: ...

    return A


def topic_is_none() -> type[Actor]:
    class A(Actor):
        topic = "a topic"

        def perform(self, c: Add) -> Added: ...

    return A


def key_is_no_field() -> type[Actor]:
    class A(Actor):
        key = "amount"

        def perform(self, c: Add) -> Added | Other: ...

    return A


def replay_of_no_event() -> type[Actor]:
    class A(Actor):
        def perform(self, c: Add) -> Added: ...
        def replay(self, state: Sum | None, event: Add) -> Sum: ...

    return A


def replay_without_return() -> type[Actor]:
    class A(Actor):
        def perform(self, c: Add) -> Added: ...
        def replay(self, state: Sum | None, event: Added): ...  # type: ignore[no-untyped-def]

    return A


def replay_short() -> type[Actor]:
    class A(Actor):
        def perform(self, c: Add) -> Added: ...
        def replay(self, event: Added) -> Sum: ...

    return A


def event_not_folded() -> type[Actor]:
    class A(Actor):
        def perform(self, c: Add) -> Added | Other: ...
        def replay(self, state: Sum | None, event: Added) -> Sum: ...

    return A


def wrong_reads() -> type[Actor]:
    class A(Actor):
        reads = "cached"  # type: ignore[assignment]

        def perform(self, c: Add) -> Added: ...

    return A


def wrong_isolation() -> type[Actor]:
    class A(Actor):
        isolation = "none"  # type: ignore[assignment]

        def perform(self, c: Add) -> Added: ...

    return A


def upcast_short() -> type[Actor]:
    class A(Actor):
        def perform(self, c: Add) -> Added: ...

        def upcast(self, payload: dict[str, Any]) -> dict[str, Any]: ...

    return A


UNRESOLVED = "import or define the name when the module is loaded, not only under `if TYPE_CHECKING:`"


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (no_perform, "A has no method perform(self, state, message)"),
        (no_annotation, "A.perform: the parameter command has no annotation; name the messages that it takes"),
        (no_message, "A.perform: command takes int, which is not a Command, an Event or a Query"),
        (base_class, "A.perform: command takes any Command; name the classes that it takes"),
        (too_many, "A.perform takes 3 parameters; it takes (self, state, message) or (self, message)"),
        (stars, "A.perform takes *commands; it takes state, message and, by name, context and tx"),
        (unresolved, "A.perform: an annotation cannot be resolved: name 'Nowhere' is not defined; " + UNRESOLVED),
        (wrong_reads, "A.reads is 'cached'; it must be 'current' or 'linearizable'"),
        (wrong_isolation, "A.isolation is 'none'; it must be 'snapshot' or 'serializable'"),
        (topic_is_none, "A.topic is 'a topic'; a topic has 1 to 220 of a-z A-Z 0-9 . _ -"),
        (key_is_no_field, "A.key is 'amount', and Other has no such field"),
        (upcast_short, "A.upcast is a plain function (self, type, payload) of a stored event"),
        (async_replay, "A.replay is async; it must be a plain function of state and event"),
        (replay_short, "A.replay takes 1 parameters; it takes (self, state, event)"),
        (replay_of_no_event, "A.replay: event takes Add, which is not an Event"),
        (replay_without_return, "A.replay has no return annotation; name the Model that it folds"),
        (wrong_return_of_replay, "A.replay returns int, which is not a Model"),
        (event_not_folded, "A.perform returns Other, which A.replay does not take"),
    ],
)
def test_a_wrong_annotation_has_its_line(make: Any, line: str) -> None:
    with pytest.raises(BadAnnotation) as caught:
        Contract(make())
    assert str(caught.value) == line


def test_two_messages_or_two_actors_of_one_name() -> None:
    def another() -> type[Actor]:
        class Add(Command):
            pass

        class B(Actor):
            def perform(self, command: Add) -> None: ...

        return B

    with pytest.raises(NameTaken, match="Two messages are named Add: "):
        contracts([Adder, another()])
    with pytest.raises(NameTaken, match="Two actors are named Adder; give one of them another `name`"):
        contracts([Adder, Adder])


def test_a_query_is_decoded_from_text() -> None:
    decode = query_decoder(Find)
    assert decode({"text": ["a"], "limit": ["5"], "tags": ["x"]}) == Find("a", 5, ["x"])
    assert decode({"text": "a", "years": ["1", "2"]}) == Find("a", years=[1, 2])
    assert decode({"text": "a", "years": ["1"]}) == Find("a", years=[1])
    for parameters, pointer in (
        ({}, "/text"),
        ({"text": "a", "limit": ["x"]}, "/limit"),
        ({"text": "a", "z": ["1"]}, "/z"),
    ):
        with pytest.raises(Invalid) as caught:
            decode(dict(parameters))
        assert caught.value.members["pointer"] == pointer
    with pytest.raises(Invalid):
        decode({"text": ["a", "b"]})
