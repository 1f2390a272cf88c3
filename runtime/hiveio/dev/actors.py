"""Which actors a folder has, and in which role each of its modules runs.

The modules are imported in a process of their own, so that what they do at their import happens to nobody else, and
each look sees the files of that moment: `python -m hiveio.dev.actors FOLDER WORD…` prints what it found in its last
line.
"""

import ast
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.dev.process import kill_group, spawn
from hiveio.errors import ConfigError, LoadError, NoActor
from hiveio.loader import load
from hiveio.roles import ROLES

LOOKED_S = 60.0  # for the import of everything
DEEPEST = 3  # packages within packages
_NO_SERVICES = ("test_", "conftest", "setup")
_NO_FOLDERS = {"tests", "test", "node_modules", "venv", "build", "dist"}


class Found(msgspec.Struct, frozen=True):
    """A module of a folder, `name` as in ACTOR_MODULE. With a `fault` nothing else is known of it.

    `gives` are the events that it writes, each with the topic that its actor names, and `takes` those that it reads.
    `sends` are the services to which it sends commands, where it is a `process` manager.
    """

    name: str
    role: str = ""
    gives: dict[str, str] = {}
    takes: list[str] = []
    sends: list[str] = []
    process: bool = False
    fault: str = ""
    label: str = ""

    @property
    def short(self) -> str:
        """What it is called in the terminal, and what its topics and files are named after."""
        return self.label or self.name.partition(":")[0].rpartition(".")[2]


def distinct(found: Sequence[Found]) -> list[Found]:
    """Those that would be called the same are called by the whole of their names."""
    count = Counter(each.short for each in found)
    return [
        msgspec.structs.replace(each, label=each.name.replace(":", ".")) if count[each.short] > 1 else each
        for each in found
    ]


class Look:
    """A look at a folder that goes on while others start: at what the words name, `MODULE[:CLASS][:ROLE]`, or at all.

    Raises ConfigError for a word that names nothing.
    """

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        for word in words:
            _word(word)
        self._folder = folder
        environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # a folder that is watched is not written to
        self._process = spawn([sys.executable, "-P", "-m", __name__, str(folder), *words], None, environ)

    def result(self) -> list[Found]:
        """A module that cannot be loaded is found with its fault. Raises ConfigError if nothing can be said at all."""
        try:
            output, _ = self._process.communicate(timeout=LOOKED_S)
        except subprocess.TimeoutExpired:
            self.cancel()
            raise ConfigError(f"the modules of {self._folder} could not be imported within {LOOKED_S:.0f} s") from None
        printed, _, last = output.rstrip(b"\n").rpartition(b"\n")
        if self._process.returncode:
            text = output.decode("utf-8", "backslashreplace")
            raise ConfigError(f"the modules of {self._folder} could not be imported: {text}")
        sys.stderr.write(printed.decode("utf-8", "backslashreplace") + "\n" if printed else "")
        return msgspec.json.decode(last, type=list[Found])

    def cancel(self) -> None:
        """It is not needed any more."""
        kill_group(self._process)


def _word(word: str) -> tuple[str, str]:
    """The module, perhaps with a class, and the role or nothing. Raises ConfigError."""
    name, _, last = word.rpartition(":")
    if name and last in ROLES:
        return name, last
    if "-" in last or word.count(":") > 1:
        raise ConfigError(f"{word} is wrong: it takes MODULE or MODULE:ROLE, with a role of {', '.join(ROLES)}")
    return word, ""


# -- in the process of its own


def candidates(folder: Path, depth: int = DEEPEST) -> Iterator[str]:
    """The modules that define a class, by their names from `folder` on; packages are looked into, tests are not."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_", *_NO_SERVICES)):
            continue
        if path.suffix == ".py" and path.stem.isidentifier() and _has_class(path):
            yield path.stem
        elif depth and path.name not in _NO_FOLDERS and (path / "__init__.py").exists():
            yield from (f"{path.name}.{name}" for name in candidates(path, depth - 1))


def _has_class(path: Path) -> bool:
    try:
        return any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError, OSError):
        return True  # its fault is said where it is loaded


def found(folder: Path, word: str, *, named: bool) -> Found | None:
    """None for a module without an actor, unless it is `named`."""
    name, role = _word(word)
    try:
        contracts = load(Settings(actor_module=name, actor_path=str(folder)))
    except NoActor as error:
        return Found(name, fault=str(error)) if named else None
    except LoadError as error:
        return Found(name, fault=str(error))
    roles = {contract.name: role_of(contract) for contract in contracts}
    if not role and len(set(roles.values())) > 1:
        listed = ", ".join(f"{actor} ({its})" for actor, its in roles.items())
        return Found(
            name,
            fault=f"{name} has actors of several roles: {listed}; a service has one, so put them into modules of their "
            f"own, or name one: hiveio dev {name}:CLASS",
        )
    role = role or next(iter(roles.values()))
    writes = role in ("producer", "stream-processor")
    gives = {
        event: each.topic if role == "producer" else ""  # a stream processor has one topic for all of its actors
        for each in contracts
        for event in each.events
        if writes
    }
    return Found(
        name,
        role,
        gives,
        takes=[event for each in contracts for event in each.subscribes],
        sends=sorted({service for each in contracts for service in each.sends}),
        process=any(each.process for each in contracts),
    )


def role_of(contract: Contract) -> str:
    """The role that an actor is written for, by what it has and takes."""
    if contract.model is not None:
        return "stream-processor"  # it folds its events
    if contract.subscribes or contract.tombstones:
        return "consumer"
    return "producer" if contract.events else "base"


def main(folder: Path, words: Sequence[str]) -> None:
    looked_at = words or [*candidates(folder)]
    all_found = [each for word in looked_at if (each := found(folder, word, named=bool(words)))]
    sys.stdout.flush()
    os.write(1, b"\n" + msgspec.json.encode(all_found) + b"\n")
    os._exit(0)  # threads that a module has started keep nobody waiting


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
