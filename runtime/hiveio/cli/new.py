"""``hiveio new NAME --role …``: writes a small project to begin with: an actor, its test, and its image."""

import argparse
import keyword
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from hiveio.errors import ConfigError
from hiveio.http.routes import RESERVED_BELOW
from hiveio.roles import ROLES

# The settings that each role needs, for the README of the project.
SETTINGS = {
    "base": "",
    "producer": " -e EVENT_STORE_BROKERS=kafka:9092 -e EVENT_STORE_TOPIC={name}",
    "consumer": " -e EVENT_STORE_BROKERS=kafka:9092 -e EVENT_STORE_TOPIC={name} -e EVENT_STORE_GROUP_ID={name}",
    "stream-processor": " -e EVENT_STORE_BROKERS=kafka:9092 -e EVENT_STORE_TOPIC={name} -e CACHE_URL=redis://redis",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the project and its folder: a-z, 0-9 and -, as in order-lines")
    parser.add_argument(
        "--role", choices=ROLES, required=True, help="; ".join(f"{name} {role.does}" for name, role in ROLES.items())
    )
    parser.add_argument(
        "--into",
        metavar="FOLDER",
        type=Path,
        default=Path(),
        help="the folder in which it is created (default: the current one)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError, before anything is written."""
    name, role = arguments.name, arguments.role
    module = name.replace("-", "_")
    _check(name, module)
    folder: Path = arguments.into / name
    values = {
        "name": name,
        "module": module,
        "Class": "".join(part.capitalize() for part in name.split("-")),
        "role": role,
        "about": ROLES[role].does,
        "settings": SETTINGS[role].format(name=name),
    }
    templates = files("hiveio.cli") / "template"
    try:
        folder.mkdir(parents=True)
        for source, written in (
            (f"{role}/actor.py.in", f"{module}.py"),
            (f"{role}/test.py.in", f"test_{module}.py"),
            ("Dockerfile", "Dockerfile"),
            ("docker-bake.hcl", "docker-bake.hcl"),
            ("README.md", "README.md"),
        ):
            text = (templates / source).read_text("utf-8")
            text = re.sub(r"@(\w+)@", lambda found: values[found[1]], text)
            # The imported names are sorted, and the name of the class decides where it comes.
            text = re.sub(rf"(?<=^from {module} import ).*", lambda found: _sorted(found[0]), text, flags=re.MULTILINE)
            (folder / written).write_text(text, "utf-8")
            print(folder / written)
    except FileExistsError:
        raise ConfigError(f"{folder} is there already; choose another name, or another folder with --into") from None
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
    return 0


def _check(name: str, module: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(
            f"NAME={name!r} is wrong: it takes a-z, 0-9 and single - between them, and begins with a letter"
        )
    if keyword.iskeyword(module) or find_spec(module) or f"/{name}" == RESERVED_BELOW:
        raise ConfigError(
            f"NAME={name!r} is the name of a word of Python, a package or a path of the service; choose another one"
        )


def _sorted(names: str) -> str:
    return ", ".join(sorted(names.split(", ")))
