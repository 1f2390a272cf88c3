"""An actor that cannot be loaded ends its process at once, with one clear line that says what to do. All roles are
started at once, and then looked at."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from hiveio import errors
from tests.process import ROOT

HEAD = """
from typing import Any, TYPE_CHECKING
from hiveio import Actor, Command, Event, Model, Query
if TYPE_CHECKING:
    from decimal import Decimal
class Add(Command):
    amount: int
class Added(Event):
    amount: int
class Find(Query):
    text: str
class Sum(Model):
    total: int = 0
"""
GOOD = """
class Adder(Actor):
    path = "/sums/{id}"
    def perform(self, state: Sum | None, command: Add) -> Added: return Added(command.amount)
    def replay(self, state: Sum | None, event: Added) -> Sum: return Sum()
"""
PERFORM = "def perform(self, state: Sum | None, command: Add) -> Added: return Added(command.amount)"
AFTER = HEAD + GOOD


class Case(NamedTuple):
    line: str  # what it says; $ is the folder
    files: Mapping[str, str]
    fault: type[errors.Stop] = errors.BadAnnotation
    module: str = "m"
    role: str = "base"
    hidden: str = ""  # a file or folder that nobody may read
    lines: int = 1


def one(line: str, source: str, fault: type[errors.Stop] = errors.BadAnnotation, role: str = "base") -> Case:
    return Case(line, {"m.py": source}, fault, role=role)


def changed(old: str, new: str) -> str:
    assert old in AFTER
    return AFTER.replace(old, new)


UNRESOLVED = "import or define the name when the module is loaded, not only under `if TYPE_CHECKING:`"
NO_RETURN = "has no return annotation; name the events that it gives (-> Opened | Deposited), or else what it answers with; -> None where that is nothing"  # noqa: E501
NO_JSON = "use a type that msgspec knows (str, int, Decimal, datetime, list, dict with texts as keys, a Struct, …)"
CASES = {
    # the class
    "init": one(
        "Adder.__init__ takes db, url, and an actor is made without arguments: read what is configured from "
        "os.environ, and open what it needs in start(self)",
        AFTER + "    def __init__(self, db, url, pool=1): ...",
    ),
    "init-raises": Case(
        "ACTOR_MODULE=m: the module raised KeyError: 'DATABASE'",
        {"m.py": AFTER + "    def __init__(self):\n        raise KeyError('DATABASE')"},
        errors.ModuleRaises,
        lines=5,
    ),
    "abstract": one(
        "Adder is abstract, load is missing; write it, or begin its name with _ if it is there for others to "
        "derive from",
        "import abc\n" + changed("(Actor)", "(Actor, abc.ABC)") + "    @abc.abstractmethod\n    def load(self): ...",
    ),
    "path": one("Adder.path is None; it must be of type str", changed('"/sums/{id}"', "None")),
    "version": one("Adder.schema_version is '2'; it must be of type int", AFTER + "    schema_version = '2'"),
    "start-takes": one(
        "Adder.start takes other parameters; it is called as start(self)", AFTER + "    def start(self, loop): ..."
    ),
    "ready": one("Adder.ready is True; it must be a method ready(self)", AFTER + "    ready = True"),
    "scope": one(
        "Adder.scope is async; it must be a plain method scope(self, id)", AFTER + "    async def scope(self, id): ..."
    ),
    "static": one(
        "Adder.perform is static; it must be a method whose first parameter is self",
        changed("    " + PERFORM, "    @staticmethod\n    def perform(state: Sum | None, command: Add) -> Added: ..."),
    ),
    "yields": one(
        "Adder.perform yields; it must return its result, several events as a list",
        changed("return Added(command.amount)", "yield Added(1)"),
    ),
    "start-raises": Case(
        "Adder.start raised ConnectionRefusedError: the store",
        {"m.py": AFTER + "    async def start(self):\n        raise ConnectionRefusedError('the store')"},
        errors.StartRaises,
    ),
    # annotations
    "no-return": one(f"Adder.perform {NO_RETURN}", changed("command: Add) -> Added", "command: Add)")),
    "no-return-producer": one(f"Adder.perform {NO_RETURN}", changed("command: Add) -> Added", "command: Add)")),
    "type-checking": one(
        f"Adder.perform: an annotation cannot be resolved: name 'Decimal' is not defined; {UNRESOLVED}",
        "from __future__ import annotations\n"
        + changed("command: Add) -> Added", "command: Add, tx: Decimal) -> Added"),
    ),
    "type-checking-field": one(
        f"Sum: the annotation of a field cannot be resolved: name 'Decimal' is not defined; {UNRESOLVED}",
        "from __future__ import annotations\n" + changed("total: int", "total: Decimal"),
    ),
    "other-state": one(
        "Adder.perform: state takes Other, and Adder.replay folds Sum",
        HEAD + "class Other(Model): ...\n" + GOOD.replace("state: Sum | None, command", "state: Other | None, command"),
    ),
    "any-command": one(
        "Adder.perform: command takes any Command; name the classes that it takes",
        changed("command: Add)", "command: Command)"),
    ),
    "model": one(
        f"Sum.total is of type complex, which cannot be written as JSON "
        f"(type <class 'complex'> is not supported): {NO_JSON}",
        changed("total: int = 0", "total: complex"),
    ),
    "keys": one(
        f"Sum.total is of type dict[tuple[int, int], str], which cannot be written as JSON (the keys of a JSON object are texts): {NO_JSON}",  # noqa: E501
        changed("total: int = 0", "total: dict[tuple[int, int], str]"),
    ),
    "command": one(
        f"Add.amount is of type object, which cannot be written as JSON "
        f"(type <class 'object'> is not supported): {NO_JSON}",
        changed("Command):\n    amount: int", "Command):\n    amount: object"),
    ),
    "event": one(
        "Added.amount is of type int | complex | object, which cannot be written as JSON (Type unions may not contain "
        f"more than one custom type - type `int | complex | object` is not supported): {NO_JSON}",
        changed("Event):\n    amount: int", "Event):\n    amount: int | complex | object"),
    ),
    # the role
    "no-id": one(
        "Adder: the path '/sums' has no {id}, which names a command's aggregate; write path = \"/sums/{id}\"",
        changed("/sums/{id}", "/sums"),
        role="stream-processor",
    ),
    "reserved": one(
        "Adder: the path /livez is reserved for the service itself; choose another path",
        changed("/sums/{id}", "/livez"),
        errors.PathReserved,
        role="stream-processor",
    ),
    "tx": one(
        "Adder.perform takes tx, and only a stream processor has transactions",
        changed("command: Add) -> Added", "command: Add, tx) -> Added"),
    ),
    "nothing-comes": one(
        "Adder.perform takes Find, which this image passes to no actor: use the image of another role, or "
        "take other messages",
        HEAD + 'class Adder(Actor):\n    path = "/sums/{id}"\n    def perform(self, query: Find) -> Any: ...',
        role="producer",
    ),
    # the module
    "standard": Case(
        "ACTOR_MODULE=calendar: the standard library of Python has a module calendar, and one of the two would "
        "hide the other; rename $/calendar.py",
        {"calendar.py": AFTER},
        errors.ModuleMissing,
        "calendar",
    ),
    "standard-helper": Case(
        "ACTOR_MODULE=m: the module raised ImportError: cannot import name 'Money' from 'types' "
        f"({os.path.realpath(os.__file__).replace('os.py', 'types.py')}) (in $, types has a name of the standard "
        "library's: rename it)",
        {"m.py": "from types import Money", "types.py": "Money = int"},
        errors.ModuleRaises,
        lines=5,
    ),
    "installed": Case(
        "ACTOR_MODULE=msgspec: Python has another module msgspec already, {msgspec}; rename $/msgspec.py",
        {"msgspec.py": AFTER},
        errors.ModuleMissing,
        "msgspec",
    ),
    "file": Case(
        "ACTOR_MODULE=bank/m.py: it names a module and not a file; write ACTOR_MODULE=bank.m",
        {"bank/m.py": AFTER},
        errors.ModuleMissing,
        "bank/m.py",
    ),
    "dash": Case(
        "ACTOR_MODULE=my-actor: a module's name has letters, digits and _ only; rename the file",
        {"my-actor.py": AFTER},
        errors.ModuleMissing,
        "my-actor",
    ),
    "missing": Case(
        "ACTOR_MODULE=nowhere: there is no module 'nowhere' in $; modules there: a, m",
        {"m.py": AFTER, "a.py": ""},
        errors.ModuleMissing,
        "nowhere",
    ),
    "dot": Case(
        "ACTOR_MODULE=m.Adder: Adder is no module; a class is named behind a colon, as in ACTOR_MODULE=m:Adder",
        {"m.py": AFTER},
        errors.ModuleMissing,
        "m.Adder",
    ),
    "no-folder": Case(
        "ACTOR_MODULE=m: there is no module 'm' in $/none, and $/none is no folder: mount the actor's folder there, or "
        "set ACTOR_PATH",
        {},
        errors.ModuleMissing,
    ),
    "hidden-folder": Case(
        "ACTOR_MODULE=m: there is no module 'm' in $: the user {uid} of this process cannot read $; chmod -R a+rX $",
        {"m.py": AFTER},
        errors.ModuleMissing,
        hidden=".",
    ),
    "hidden-package": Case(
        "ACTOR_MODULE=bank.m: there is no module 'bank.m' in $: the user {uid} of this process cannot read $/bank; "
        "chmod -R a+rX $/bank",
        {"bank/m.py": AFTER},
        errors.ModuleMissing,
        "bank.m",
        hidden="bank",
    ),
    "hidden-file": Case(
        "ACTOR_MODULE=m: $/m.py cannot be read by the user {uid} of this process; chmod a+r $/m.py",
        {"m.py": AFTER},
        errors.ModuleMissing,
        hidden="m.py",
    ),
    "relative": Case(
        "ACTOR_MODULE=m: $/m.py:1: from .events import Added is relative, and works inside a package only; write it "
        "without the dots, or load the folder as a package: ACTOR_PATH={parent}, ACTOR_MODULE={name}.m",
        {"m.py": "from .events import Added", "events.py": "Added = 1"},
        errors.ModuleRaises,
    ),
    "package": Case(
        "ACTOR_MODULE=bank: no class derived from hiveio.Actor is defined in that module; it imports Adder: name the "
        "module that defines it, ACTOR_MODULE=bank.sums, or the class, ACTOR_MODULE=bank:Adder",
        {"bank/__init__.py": "from .sums import Adder", "bank/sums.py": AFTER},
        errors.NoActor,
        "bank",
    ),
    "empty-package": Case(
        "ACTOR_MODULE=bank: no class derived from hiveio.Actor is defined in that module; it is a package: name a "
        "module in it (modules there: sums)",
        {"bank/__init__.py": "", "bank/sums.py": AFTER},
        errors.NoActor,
        "bank",
    ),
    "underscore": one(
        "ACTOR_MODULE=m: no class derived from hiveio.Actor is defined in that module; _Adder begins with _, which "
        "leaves it to other classes to derive from it",
        changed("class Adder", "class _Adder"),
        errors.NoActor,
    ),
}
AT_ONCE = 4
PRCTL = ctypes.CDLL(None).prctl
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def start(name: str, case: Case, folder: Path) -> subprocess.Popen[str]:
    for file, source in case.files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    if case.hidden:
        (folder / case.hidden).chmod(0)
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "ACTOR_PATH": str(folder / "none" if name == "no-folder" else folder),
        "ACTOR_MODULE": case.module,
        "CLUSTER_SIZE": "1",
        "PORT": "0",
        "EVENT_STORE_BROKERS": "127.0.0.1:1",
        "EVENT_STORE_TOPIC": "none",
        "CACHE_URL": "redis://127.0.0.1:1",
    }
    role = "producer" if name.endswith("-producer") else case.role
    command = [sys.executable, str(ROOT / "images" / role / "entrypoint.py")]
    return subprocess.Popen(
        command,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=obey_permissions if case.hidden else None,
    )


def obey_permissions() -> None:
    """Where the tests run as root: it may read everything, unless these capabilities (capabilities(7)) are dropped."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        PRCTL(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str, str, Path]]]:
    """Exit code, output, errors and folder of each."""
    found: dict[str, tuple[int, str, str, Path]] = {}
    top = tmp_path_factory.mktemp("actors")
    names = list(CASES)
    for at in range(0, len(names), AT_ONCE):
        running = {}
        for name in names[at : at + AT_ONCE]:
            folder = top / name
            folder.mkdir()
            running[name] = start(name, CASES[name], folder), folder
        for name, (process, folder) in running.items():
            try:
                output, errors = process.communicate(timeout=60)
            finally:
                process.kill()
            found[name] = process.returncode, output, errors, folder
    yield found
    for name, case in CASES.items():
        if case.hidden:
            (top / name / case.hidden).chmod(0o755)


@pytest.mark.parametrize("name", CASES)
def test_an_actor_that_cannot_be_loaded_has_its_line(endings: dict[str, tuple[int, str, str, Path]], name: str) -> None:
    case = CASES[name]
    code, output, errors, folder = endings[name]
    line = (
        case.line.replace("$", str(folder)).replace("{uid}", str(os.geteuid())).replace("{msgspec}", msgspec.__file__)
    )
    line = line.replace("{parent}", str(folder.parent)).replace("{name}", folder.name)
    assert errors.splitlines()[:1] == [line], errors + output
    assert len(errors.splitlines()) == case.lines, errors
    assert code == case.fault.exit_code
    assert "/runtime/hiveio/" not in errors
