"""``hiveio new NAME --role …``: writes a project that works as it is, with actors, tests, images and compose.yaml."""

import argparse
import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from hiveio import __version__
from hiveio.errors import ConfigError
from hiveio.roles import ROLES

FIRST_PORT = 3001
JSON = "-H 'content-type: application/json'"


class Part(NamedTuple):
    """A service of the project: ``module`` is its name, too. ``writes`` is the part whose events it reads or writes."""

    module: str
    role: str
    does: str
    writes: str = ""
    calls: str = ""  # lines to try it; @port@ is its own, @writer@ that of the service whose events it reads


ITEMS = Part(
    "items",
    "stream-processor",
    "decides on commands for items, in transactions",
    "items",
    """\
$ curl -s localhost:@port@/items/7 @json@ -d '{"type": "Create", "payload": {"title": "Draft"}}'
{"type":"Created","payload":{"title":"Draft"}}
$ curl -s localhost:@port@/items/7
{"type":"Item","payload":{"title":"Draft"}}""",
)
REPORTS = Part(
    "reports",
    "producer",
    "takes reports and writes them to Kafka",
    "reports",
    """\
$ curl -s localhost:@port@/reports/7 @json@ -d '{"type": "Report", "payload": {"celsius": 20.5}}'
{"type":"Reported","payload":{"celsius":20.5,"sensor":"default"}}""",
)
BOARD = Part(
    "board",
    "consumer",
    "keeps a projection of the items' events and answers queries",
    "items",
    """\
$ position=$(curl -s -o /dev/null -w '%header{hive-position}' localhost:@writer@/items/7 @json@ -d '{"type": "Rename", "payload": {"title": "Book"}}')
$ curl -s localhost:@port@/board/7 -H "Hive-Position: $position"
{"type":"Titled","payload":{"title":"Book","changes":1}}""",  # noqa: E501
)
LATEST = Part(
    "latest",
    "consumer",
    "keeps the latest report of each id and answers queries",
    "reports",
    """\
$ position=$(curl -s -o /dev/null -w '%header{hive-position}' localhost:@writer@/reports/7 @json@ -d '{"type": "Report", "payload": {"celsius": 21.5}}')
$ curl -s localhost:@port@/latest/7 -H "Hive-Position: $position"
{"type":"Measured","payload":{"celsius":21.5,"sensor":"default","reports":2}}""",  # noqa: E501
)
SHOUTS = Part(
    "shouts",
    "base",
    "answers messages and queries",
    calls="""\
$ curl -s 'localhost:@port@/shouts/hello?times=2'
{"type":"Shouted","payload":{"texts":["HELLO","HELLO"]}}""",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the project and its folder: a-z, 0-9 and -, as in order-lines")
    parser.add_argument(
        "--role",
        choices=ROLES,
        required=True,
        action="append",
        dest="roles",
        help="once for each service; " + "; ".join(f"{name} {role.does}" for name, role in ROLES.items()),
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
    name = arguments.name
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(
            f"NAME={name!r} is wrong: it takes a-z, 0-9 and single - between them, and begins with a letter"
        )
    folder: Path = arguments.into / name
    try:
        folder.mkdir(parents=True)
        for file, text in written(name, parts_of(arguments.roles)).items():
            (folder / file).write_text(text, "utf-8")
            print(folder / file)
    except FileExistsError:
        raise ConfigError(f"{folder} is there already; choose another name, or another folder with --into") from None
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
    print(f"\ncd {folder} and read README.md; `hiveio dev` runs it.")
    return 0


def parts_of(roles: list[str]) -> list[Part]:
    """The services of these roles, those that write before those that read. A consumer reads what the others write."""
    reads = LATEST if "producer" in roles and "stream-processor" not in roles else BOARD
    return [part for part in (ITEMS, REPORTS, reads, SHOUTS) if part.role in roles]


def written(name: str, parts: list[Part]) -> dict[str, str]:
    """The files of the project by their names."""
    made = {
        "README.md": _readme(name, parts),
        "compose.yaml": _compose(name, parts),
        "pyproject.toml": _template("pyproject.toml"),
        "requirements.txt": _template("requirements.txt", version=__version__),
        ".dockerignore": _template("dockerignore"),
        ".gitignore": _template("gitignore"),
    }
    if events := sorted({part.writes for part in parts if part.writes}):
        made["events.py"] = _template("events.py.in") + "".join(_template(f"events_{kind}.py.in") for kind in events)
    for part in parts:
        module = part.module
        made[f"{module}.py"] = _template(f"{module}.py.in")
        made[f"test_{module}.py"] = _template(f"test_{module}.py.in")
        made[f"{module}.Dockerfile"] = _template(
            "Dockerfile",
            role=part.role,
            module=module,
            files=f"events.py {module}.py" if part.writes else f"{module}.py",
            environ=" DATABASE=/data/projection.sqlite" if part.role == "consumer" else "",
        )
    return made


def _template(file: str, **values: str) -> str:
    text = (files("hiveio.cli") / "template" / file).read_text("utf-8")
    return _filled(text, **values)


def _filled(text: str, **values: str) -> str:
    return re.sub(r"@(\w+)@", lambda found: values[found[1]], text)


_BACKENDS = ("EVENT_STORE_BROKERS", "CACHE_URL")


def _readme(name: str, parts: list[Part]) -> str:
    ports = {part.module: str(port) for port, part in enumerate(parts, FIRST_PORT)}
    kafka, valkey = (any(setting in ROLES[part.role].settings for part in parts) for setting in _BACKENDS)
    calls = [
        _filled(part.calls, port=ports[part.module], writer=ports.get(part.writes, ""), json=JSON)
        for part in parts
        if part.role != "consumer" or part.writes in ports
    ]
    if calls:
        trying = "Then try them:\n\n```console\n" + "\n".join(calls) + "\n```\n\n"
    else:  # nobody writes what the only service reads
        topic = f"{name}.{parts[0].writes}"
        trying = f"In containers it is ready once another service has made the topic `{topic}`, which it reads.\n\n"
    return _template(
        "README.md",
        **{"try": trying},
        name=name,
        services="\n".join(f"| `{part.module}` | hiveio/{part.role}: {part.does} |" for part in parts),
        on=" on a real Kafka and Valkey" if valkey else " on a real Kafka" if kafka else "",
        console=" It prints the URL of a console, whose pages show what is going on." if valkey else "",
        shared="`events.py` has the events, which the services share. " if kafka else "",
        dead=_dead(parts),
        again="The same lines as above try them, on the same ports. " if calls else "",
        browser="`docker compose logs console` has the URL of the console. " if ITEMS in parts else "",
    )


def _dead(parts: list[Part]) -> str:
    """What to do about an event that cannot be handled, where there is a consumer."""
    reader = next((part.module for part in parts if part.role == "consumer"), "")
    if not reader:
        return ""
    where = "The console" if ITEMS in parts else "`hiveio dead`"
    return (
        f"An event for which `{reader}` raises is tried again for some seconds. After that it is a dead letter: later "
        f"events of its id wait behind it, and all others go on. {where} shows it with the exception. Correct the "
        "code, and let it be tried again there.\n\n"
    )


def _compose(name: str, parts: list[Part]) -> str:
    """A service for each part, and Kafka and Valkey where they are needed."""
    settings = [_settings(name, part) for part in parts]
    kafka, valkey = (any(setting in each for each in settings) for setting in _BACKENDS)
    text = _template("compose.yaml", name=name)
    for port, (part, own) in enumerate(zip(parts, settings, strict=True), FIRST_PORT):
        needs = [backend for backend, setting in zip(("kafka", "valkey"), _BACKENDS, strict=True) if setting in own]
        if part.role == "consumer":  # a read that asks for a position is refused until it has found the topic
            needs += [writer.module for writer in parts if writer is not part and writer.writes == part.writes]
        service = _template(
            "compose_service.yaml",
            name=name,
            module=part.module,
            MODULE=part.module.upper(),
            port=str(port),
            needs=", ".join(f"{needed}: {{ condition: service_healthy }}" for needed in needs),
            settings=_lines(own),
        )
        # Only a consumer keeps something, and only the base role needs nobody.
        unused = [*([] if part.role == "consumer" else ["    volumes"]), *([] if needs else ["    depends_on"])]
        text += "".join(line for line in service.splitlines(True) if not line.startswith(tuple(unused)))
    if ITEMS in parts:
        text += _template(
            "compose_console.yaml",
            name=name,
            module=ITEMS.module,
            instances="".join(f", --instance, http://{part.module}:3000" for part in parts if part is not ITEMS),
            settings=_lines(_settings(name, ITEMS)),
        )
    pieces = [*(["kafka"] if kafka else []), *(["valkey"] if valkey else [])]
    text += "\n".join(_template(f"compose_{piece}.yaml") for piece in pieces)
    if kafka:
        text += "\n" + _template("compose_config.yaml")
    kept = [*pieces, *(part.module for part in parts if part.role == "consumer")]
    if kept:
        text += "\nvolumes:\n" + "".join(f"  {volume}:\n" for volume in kept)
    return text.rstrip("\n") + "\n"


def _lines(settings: dict[str, str]) -> str:
    return "\n".join(f"      {setting}: {value}" for setting, value in settings.items())


def _settings(name: str, part: Part) -> dict[str, str]:
    """Each service that writes has a topic of its own; a consumer reads that of the events that it takes."""
    every = {
        "EVENT_STORE_BROKERS": "kafka:19092",
        "EVENT_STORE_TOPIC": f"{name}.{part.writes}",
        "EVENT_STORE_GROUP_ID": f"{name}.{part.module}",
        "CACHE_URL": "redis://valkey:6379",
    }
    return {"CLUSTER_SIZE": '"1"', **{setting: every[setting] for setting in ROLES[part.role].settings}}
