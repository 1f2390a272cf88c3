# ruff: noqa: E501
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hiveio import errors
from hiveio.config import Settings
from hiveio.loader import load

GOOD = """
from hiveio import Actor, Command
class Ping{n}(Command): pass
class Ping{n}Actor(Actor):
    path = "/ping{n}"
    def perform(self, command: Ping{n}) -> None: ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def read(folder: Path, module: str) -> list[str]:
    settings = Settings.read({"ACTOR_MODULE": module, "ACTOR_PATH": str(folder)})
    return [contract.kind.__name__ for contract in load(settings)]


def test_the_actors_defined_in_the_module_and_not_imported_ones(folder: Path) -> None:
    (folder / "one.py").write_text(GOOD.format(n=1))
    (folder / "two.py").write_text("from one import Ping1Actor\n" + GOOD.format(n=2))
    assert read(folder, "two") == ["Ping2Actor"]
    assert read(folder, "two:Ping1Actor") == ["Ping1Actor"]


@pytest.mark.parametrize(
    ("module", "source", "fault", "line"),
    [
        ("", "", errors.ModuleUnset, "ACTOR_MODULE is not set: name the module of your actor"),
        ("nowhere", "", errors.ModuleMissing, "ACTOR_MODULE=nowhere: there is no module 'nowhere' in "),
        ("m", "import nowhere", errors.ModuleRaises, "ACTOR_MODULE=m: the module raised ModuleNotFoundError: No module"),
        ("m", "1/0", errors.ModuleRaises, "ACTOR_MODULE=m: the module raised ZeroDivisionError: division by zero"),
        ("m", "def", errors.ModuleRaises, "ACTOR_MODULE=m: the module raised SyntaxError: invalid syntax"),
        ("m", "raise SystemExit(3)", errors.ModuleRaises, "ACTOR_MODULE=m: the module raised SystemExit: 3"),
        ("m", "x = 1", errors.NoActor, "ACTOR_MODULE=m: no class derived from hiveio.Actor is defined in that module"),
        ("m:X", "x = 1", errors.NoActor, "ACTOR_MODULE=m:X: the module m has no X"),
        ("m:x", "x = 1", errors.NoActor, "ACTOR_MODULE=m:x: x is not a class derived from hiveio.Actor"),
        ("m", GOOD.format(n=1).replace(": Ping1)", ")"), errors.BadAnnotation, "Ping1Actor.perform: the parameter command has no"),
        ("m", GOOD.format(n=1) + "    def __init__(self): 1/0", errors.ModuleRaises, "ACTOR_MODULE=m: the module raised Zero"),
        ("m", GOOD.format(n=1) + "class B(Ping1Actor): name = 'Ping1Actor'", errors.NameTaken, "Two actors are named Ping1Actor"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)  # fmt: skip
def test_each_way_to_fail_has_its_error(
    folder: Path, module: str, source: str, fault: type[errors.LoadError], line: str
) -> None:
    (folder / "m.py").write_text(source)
    with pytest.raises(errors.LoadError) as caught:
        read(folder, module)
    assert type(caught.value) is fault
    assert str(caught.value).startswith(line)


def test_the_traceback_of_a_module_that_raises_is_its_own(folder: Path) -> None:
    (folder / "m.py").write_text("def inner():\n    raise KeyError('x')\ninner()\n")
    with pytest.raises(errors.ModuleRaises) as caught:
        read(folder, "m")
    assert "in inner" in str(caught.value)
    assert "importlib" not in str(caught.value)
    assert "loader.py" not in str(caught.value)


def test_the_exit_codes_differ() -> None:
    codes = [kind.exit_code for kind in errors.LoadError.__subclasses__()]
    assert len(codes) == len(set(codes)) >= 8
