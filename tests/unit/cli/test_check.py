# ruff: noqa: E501
"""``hiveio check``: each change of an actor, and whom it breaks."""

import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hiveio.actor import contracts
from hiveio.cli.check import across, changes
from hiveio.cli.schemas import Description, describe
from hiveio.loader import actors_in

SOURCE = """
from datetime import datetime
from typing import Annotated, Any, Literal
from msgspec import Meta
from hiveio import Actor, Command, Event, Model, Query
class Line(Model):
    sku: str
    parent: "Line | None" = None
class Code(Model):
    code: str = ""
class Place(Command):
    amount: Annotated[int, Meta(ge=1, le=10)]
    kind: Literal["a", "b"] = "a"
    note: str | None = None
    lines: list[Line] = []
    prices: dict[str, int] = {}
    by_day: dict[int, list[dict[str, int]]] | None = None
    pair: tuple[int, str] = (1, "")
    code: Code = Code()
class Placed(Event):
    amount: int
    kind: Literal["a", "b"] = "a"
class Cancelled(Event):
    pass
class Find(Query):
    path = "/find/{text}"
    text: str
    at: Annotated[datetime, Meta(tz=True)] | None = None
    on: datetime | None = None
    by: str = ""
class Order(Model):
    amount: int = 0
class OrderActor(Actor):
    path = "/orders/{id}"
    def perform(self, order: Order | None, message: Place | Find) -> Placed: ...
    def replay(self, order: Order | None, event: Placed | Cancelled) -> Order:
        return Order(1)
"""
LISTENER = """
from hiveio import Actor, Event
class Placed(Event):
    amount: int
class Listener(Actor):
    def perform(self, event: Placed) -> None: ...
"""
UPCAST = "    def upcast(self, type, payload): return type, payload\n"
NUMBERS = itertools.count()


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(tmp_path)

    def described(source: str) -> dict[str, Description]:
        name = f"checked_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        found = {contract.name: describe(contract) for contract in contracts(actors_in(module, name, ""))}
        del sys.modules[name]
        return found

    return described


def changed(*pairs: tuple[str, str], source: str = SOURCE) -> str:
    for old, new in pairs:
        assert old in source, old
        source = source.replace(old, new)
    return source


FINE = {
    "nothing": [],
    "keys that are any text": [("dict[int, list", "dict[str, list")],
    "comments": [("        return Order(1)", '        """It folds."""\n        # and says so\n        return Order( 1 )')],
    "a field with a default": [("    amount: int\n", "    amount: int\n    by: str = ''\n")],
    "a command takes more": [("ge=1, le=10", "ge=0"), ('kind: Literal["a", "b"] = "a"\n    note', "kind: str = 'a'\n    note")],
    "int to float": [("note: str | None = None", "note: str | int | None = None")],
    "an event that is read and not given": [
        ("class Cancelled", "class Moved(Event):\n    pass\nclass Cancelled"),
        ("Placed | Cancelled) -> Order:\n        return Order(1)", "Placed | Cancelled | Moved) -> Order:\n        return Order(2)"),
    ],
    "the model": [("    amount: int = 0\n", "    amount: float = 0\n    more: int = 0\n"), ("Order(1)", "Order(2)")],
    "a date whose time zone is left open": [("at: Annotated[datetime, Meta(tz=True)]", "at: datetime")],
    "replay, and it says so": [("Order(1)", "Order(2)"), ('    path = "/orders', '    schema_version = 2\n    path = "/orders')],
    "an actor more": [("class OrderActor", "class Two(Model): ...\nclass OrderActor")],
    "a class renamed with name": [("class OrderActor(Actor):", 'class Orders(Actor):\n    name = "OrderActor"')],
}  # fmt: skip
BREAKS = {
    "a field of a command is gone": (
        [("    note: str | None = None\n", "")],
        ["breaks clients: OrderActor Place.note: it is not known; "],
    ),
    "a field of a command is required": (
        [("    note: str | None = None\n    lines", "    by: str\n    note: str | None = None\n    lines"), ('= "a"\n    by', "\n    by")],
        ["breaks clients: OrderActor Place.kind: it is required, and may be left out; ", "breaks clients: OrderActor Place.by: it is required, and is not written; "],
    ),
    "a command takes less": (
        [("ge=1, le=10", "ge=5, le=10, multiple_of=5"), ('kind: Literal["a", "b"] = "a"\n    note', 'kind: Literal["a"] = "a"\n    note'), ("str | None = None", "str = ''")],
        [
            "breaks clients: OrderActor Place.amount: minimum is 5, and was 1; ",
            "breaks clients: OrderActor Place.amount: multipleOf is 5, and was not there; ",
            "breaks clients: OrderActor Place.kind: 'b' is not taken; ",
            "breaks clients: OrderActor Place.note: string is taken, and not null; ",
        ],
    ),
    "inside of a list": (
        [("    sku: str\n", "    sku: int\n")],
        ["breaks clients: OrderActor Place.lines[…].sku: integer is taken, and not string; "],
    ),
    "the keys of a dict": (
        [("prices: dict[str, int]", "prices: dict[int, int]"), ("list[dict[str, int]]", 'list[dict[Literal["a"], int]]')],
        [
            "breaks clients: OrderActor Place.prices: of its keys: integer is taken, and not string; ",
            "breaks clients: OrderActor Place.by_day[…][…]: of its keys: one of ['a'] is taken, and not any string; ",
        ],
    ),
    "a dict that becomes a Struct": (
        [("prices: dict[str, int] = {}", "prices: Code = Code()")],
        ["breaks clients: OrderActor Place.prices.code: string is taken, and not integer; "],
    ),
    "a Struct that becomes a dict": (
        [("code: Code = Code()", "code: dict[str, int] = {}")],
        ["breaks clients: OrderActor Place.code.code: integer is taken, and not string; "],
    ),
    "a tuple that becomes a list": (
        [('pair: tuple[int, str] = (1, "")', "pair: list[int] = []")],
        ["breaks clients: OrderActor Place.pair[1]: integer is taken, and not string; "],
    ),
    "a command renamed": (
        [("class Place(", "class Put("), ("message: Place", "message: Put")],
        ["breaks clients: the command OrderActor Place is gone; "],
    ),
    "a date with a time zone": (
        [("on: datetime", "on: Annotated[datetime, Meta(tz=True)]")],
        ["breaks clients: OrderActor Find.on: format is date-time, and was date-time or local; "],
    ),
    "a text that becomes a date": (
        [('by: str = ""', "by: datetime = datetime(2026, 1, 1)")],
        ["breaks clients: OrderActor Find.by: format is date-time or local, and was not there; "],
    ),
    "its scope": (
        [("    def replay", "    def scope(self, id): return 'all'\n    def replay")],
        ["breaks old records in the log: scope of OrderActor changed, and names the partition of what is in the log; "],
    ),
    "a scope of tokens": (
        [('    path = "/orders', '    requires = "orders:write all"\n    path = "/orders')],
        ["breaks clients: OrderActor requires a scope more of a token: all, orders:write; let the issuer"],
    ),
    "a query and paths": (
        [("message: Place | Find", "message: Place"), ("/orders/{id}", "/o/{id}")],
        ["breaks clients: the query OrderActor Find is gone; ", "breaks clients: OrderActor was on /orders/{id}, and is on /o/{id}; "],
    ),
    "a field of an event is required": (
        [('    kind: Literal["a", "b"] = "a"\nclass Cancelled', '    kind: Literal["a", "b"]\n    by: str\nclass Cancelled')],
        ["breaks old records in the log: OrderActor Placed.kind: it is required, and may be left out; ", "breaks old records in the log: OrderActor Placed.by: it is required, and is not written; "],
    ),
    "a field of an event is gone": (
        [('    kind: Literal["a", "b"] = "a"\nclass Cancelled', "class Cancelled")],
        ["breaks readers of the event topic, and older instances, while both run: OrderActor Placed.kind: it is gone, and they find its default; "],
    ),
    "an event takes more": (
        [("class Placed(Event):\n    amount: int\n", "class Placed(Event):\n    amount: float\n")],
        ["breaks readers of the event topic, and older instances, while both run: OrderActor Placed.amount: integer is taken, and not number; "],
    ),
    "an event takes less": (
        [("class Placed(Event):\n    amount: int\n", "class Placed(Event):\n    amount: Annotated[int, Meta(le=5)]\n")],
        ["breaks old records in the log: OrderActor Placed.amount: maximum is 5, and was not there; "],
    ),
    "an event renamed": (
        [("Placed", "Ordered")],
        [
            "breaks old records in the log: no OrderActor reads the event Placed any more; let upcast",
            "breaks readers of the event topic: OrderActor writes no Placed any more, but Ordered; ",
            "breaks older instances, while both run: OrderActor writes Ordered, which they cannot fold; first roll out",
        ],
    ),
    "an event renamed with upcast": (
        [("Placed", "Ordered"), ("        return Order(1)\n", "        return Order(1)\n" + UPCAST)],
        ["breaks readers of the event topic: OrderActor writes no Placed", "breaks older instances, while both run: OrderActor"],
    ),
    "a new event": (
        [("class Cancelled", "class Moved(Event):\n    pass\nclass Cancelled"), ("-> Placed", "-> Placed | Moved"), ("Placed | Cancelled", "Placed | Cancelled | Moved")],
        ["breaks older instances, while both run: OrderActor writes Moved, which they cannot fold; "],
    ),
    "an actor renamed": (
        [("OrderActor", "Orders")],
        ['breaks old records in the log: the log has aggregates of OrderActor, and there is no actor of that name; write name = "OrderActor" in Orders'],
    ),
    "replay": (
        [("Order(1)", "Order(2)")],
        ["breaks snapshots in the cache: replay or upcast of OrderActor changed, and the model did not; raise schema_version"],
    ),
    "another topic": (
        [('    path = "/orders', '    topic = "orders"\n    path = "/orders')],
        ["breaks readers of the event topic: OrderActor writes to orders, and wrote to EVENT_STORE_TOPIC; "],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_what_breaks_nobody(read: object, name: str) -> None:
    assert callable(read)
    assert [*map(str, changes(read(SOURCE), read(changed(*FINE[name]))))] == []


@pytest.mark.parametrize("name", BREAKS)
def test_who_is_broken_by_a_change(read: object, name: str) -> None:
    assert callable(read)
    pairs, lines = BREAKS[name]
    found = [*map(str, changes(read(SOURCE), read(changed(*pairs))))]
    assert len(found) == len(lines), found
    for text, line in zip(found, lines, strict=True):
        assert text.startswith(line)


def test_what_one_service_writes_and_another_reads(read: object) -> None:
    assert callable(read)
    orders, listener = read(SOURCE), read(LISTENER)
    assert [*map(str, across(orders, listener))] == [
        "breaks Listener: OrderActor writes Cancelled, which nobody takes: a dead letter each; take it in perform, or "
        'write unknown = "skip"'
    ]
    assert [*across(listener, orders)] == []
    skips = changed(("(Actor):\n", '(Actor):\n    unknown = "skip"\n'), source=LISTENER)
    assert [*across(orders, read(skips))] == []
    strict = changed(
        ("amount: int", "amount: int\n    by: str"), ("(Actor):\n", '(Actor):\n    unknown = "skip"\n'), source=LISTENER
    )
    assert [str(found) for found in across(orders, read(strict))] == [
        "breaks Listener: OrderActor writes Placed.by: it is required, and is not written; let it read what is written"
    ]
    stranger = changed(("Placed", "Else"), source=LISTENER)
    assert [*across(orders, read(stranger))] == []


@pytest.mark.timeout(300)  # some fifteen processes, one after the other
def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "orders.py").write_text(SOURCE)
    (tmp_path / "listener.py").write_text(LISTENER)

    def call(*words: str, module: str = "orders") -> tuple[int, str, str]:
        tool = [str(Path(sys.executable).parent / "hiveio"), "check", *words]
        environ = {"PATH": os.environ["PATH"], "ACTOR_PATH": str(tmp_path), "ACTOR_MODULE": module}
        done = subprocess.run(tool, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    assert call() == (2, "", "hiveio check: Name a file that --write has written, or --log, or both\n")
    assert call("schemas.json") == (
        2,
        "",
        "hiveio check: schemas.json cannot be read: No such file or directory; write it with hiveio check --write\n",
    )
    assert call("--write", "schemas.json") == (0, "1 actor: no breaking changes\n", "")
    assert call("schemas.json") == (0, "1 actor: no breaking changes\n", "")
    assert call("--write", "listener.json", module="listener")[0] == 0
    code, text, _ = call("schemas.json", "listener.json")
    assert (code, text.splitlines()[-1]) == (1, "1 actor: 1 breaking change")
    assert "OrderActor writes Cancelled, which nobody takes" in text
    assert call("listener.json", "schemas.json", module="listener")[:2] == (code, text)
    (tmp_path / "orders.py").write_text(changed(("    note: str | None = None\n", "")))
    code, text, errors = call("schemas.json")
    assert (code, text.splitlines()[-1], errors) == (1, "1 actor: 1 breaking change", "")
    assert text.startswith("breaks clients: OrderActor Place.note: it is not known; ")
    assert call("schemas.json", "--write", "schemas.json")[0] == 1  # it says so, and it is accepted
    assert call("schemas.json")[0] == 0
    cut = '{"format": 1, "actors": {"OrderActor": {"commands": {"Place": {"$ref": "#/$defs/X"}}}}}'
    for content in ("no", '{"format": 1}', '{"format": 2, "actors": {}}', cut):
        (tmp_path / "odd.json").write_text(content)
        code, _, errors = call("odd.json")
        assert (code, errors.count("\n")) == (2, 1)
    (tmp_path / "orders.py").write_text("1/0")
    code, _, errors = call("schemas.json")
    assert (code, errors.splitlines()[0]) == (
        2,
        "hiveio check: ACTOR_MODULE=orders: the module raised ZeroDivisionError: division by zero",
    )
