"""Process managers are checked when a service starts, and events find their process."""

from collections.abc import Callable
from typing import Any

import pytest

from hiveio import KEY, Actor, Command, CommandRefused, Deadline, Event, Model, ProcessManager, Query, Tombstone
from hiveio.actor import Contract, performing
from hiveio.errors import BadAnnotation, Invalid


class Placed(Event):
    order: str
    number: int
    price: float


class Left(Event):
    pass


class Overdue(Deadline):
    pass


class Stop(Command):
    pass


class Done(Event):
    pass


class State(Model):
    pass


def manager(taken: Any, correlates: Any, base: type[Actor] = ProcessManager, *, replays: bool = True) -> type[Actor]:
    def perform(self: Any, state: Any, message: Any) -> Any: ...

    def replay(self: Any, state: Any, event: Any) -> Any: ...

    perform.__annotations__ = {"message": taken, "return": Done}
    replay.__annotations__ = {"event": Done, "return": State}
    members = {"perform": perform, "correlates": correlates, "path": "/processes/{id}"}
    return type("Manager", (base,), members | ({"replay": replay} if replays else {}))


def test_the_commands_that_it_sends_are_named_by_service() -> None:
    kind = manager(Placed, {Placed: "order"})
    kind.sends = {"stock": [Stop]}  # type: ignore[attr-defined]
    assert Contract(kind).sends == {"stock": (Stop,)}
    kind.sends = {"stock": [Placed]}  # type: ignore[attr-defined]
    with pytest.raises(BadAnnotation, match=r"Manager.sends names .*Placed.* for stock, which is not a Command"):
        Contract(kind)


def test_what_drives_a_process() -> None:
    taken = Placed | Left | Overdue | CommandRefused | Stop
    contract = Contract(manager(taken, {Placed: "order", Left: KEY}))
    assert contract.process
    assert contract.subscribes.keys() == {"Placed", "Left"}  # what comes from topics
    assert contract.inputs.keys() == {"Placed", "Left", "Overdue", "CommandRefused"}
    assert contract.commands.keys() == {"Stop"}  # no event comes over HTTP
    assert not Contract(manager(Stop, {}, Actor)).process


@pytest.mark.parametrize(
    ("field", "key", "id"),
    [("order", None, "o1"), ("number", "k", "7"), (KEY, "k", "k"), (KEY, "x" * 255, "x" * 255)],
)
def test_an_event_belongs_to_the_process_of_its_field_or_of_its_key(field: str, key: str | None, id: str) -> None:
    correlate = Contract(manager(Placed, {Placed: field})).correlates["Placed"]
    assert correlate(Placed("o1", 7, 0.5), key) == id


@pytest.mark.parametrize(
    ("field", "order", "key", "text"),
    [
        ("order", "", "k", "its field order has 0 bytes"),
        ("order", "ü" * 128, "k", "its field order has 256 bytes; an id has 1 to 255"),
        (KEY, "o1", None, "the key of its record has 0 bytes"),
        (KEY, "o1", "\udcff", "the key of its record is not UTF-8"),
    ],
)
def test_an_event_may_belong_to_no_process(field: str, order: str, key: str | None, text: str) -> None:
    correlate = Contract(manager(Placed, {Placed: field})).correlates["Placed"]
    with pytest.raises(Invalid, match=f"Placed belongs to no process: {text}"):
        correlate(Placed(order, 7, 0.5), key)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: manager(Placed | Left, {Placed: "order"}), "takes Left, and .*correlates does not say"),
        (lambda: manager(Placed, {Placed: "order", Left: KEY}), "names Left, which .*perform does not take"),
        (lambda: manager(Placed | Overdue, {Placed: "order", Overdue: KEY}), "names Overdue, which comes to its own"),
        (
            lambda: manager(Placed, {Placed: "id"}),
            "the field 'id' of Placed, which has the fields order, number, price",
        ),
        (lambda: manager(Left, {Left: "id"}), "the field 'id' of Left, which has the fields none"),
        (lambda: manager(Placed, {Placed: "price"}), r"Placed\.price must be a str or an int"),
        (lambda: manager(Placed, {"Placed": "order"}), "names 'Placed', which is not an Event"),
        (lambda: manager(Placed, ["order"]), r"is \['order'\]; it names for each event the field"),
        (lambda: manager(list[Placed], {Placed: "order"}), "takes a list of events, and a ProcessManager takes one"),
        (lambda: manager(Placed | Tombstone, {Placed: "order"}), "takes Tombstone, and a ProcessManager takes one"),
        (lambda: manager(Placed, {Placed: "order"}, replays=False), "has no replay"),
        (lambda: manager(Overdue, {}, Actor), "takes Overdue, which only a ProcessManager takes"),
        (lambda: manager(CommandRefused, {}, Actor), "takes CommandRefused, which only a ProcessManager takes"),
    ],
)
def test_a_wrong_process_manager_stops_the_start(make: Callable[[], type[Actor]], text: str) -> None:
    with pytest.raises(BadAnnotation, match=text):
        Contract(make())


def test_a_process_manager_may_take_queries_of_its_own() -> None:
    class Find(Query):
        pass

    assert Contract(manager(Placed | Find, {Placed: "order"})).queries.keys() == {"Find"}


def test_only_a_stream_processor_runs_a_process_manager() -> None:
    with pytest.raises(BadAnnotation, match="is a ProcessManager: use the image of the stream processor"):
        performing(Contract(manager(Placed, {Placed: "order"})))
