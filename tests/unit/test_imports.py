"""The arrows of docs/architecture.md: who may import whom, and who alone may import a library."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "runtime" / "hiveio"
FILES = sorted(PACKAGE.rglob("*.py"))

# One way: a module imports only from lower ranks, or from its own room.
RANKS = [
    {"errors", "types", "peers", "parsers", "messages"},
    {"environment"},
    {"config", "headers", "conditions", "outages", "metrics", "group_commit", "identity", "abortable"},
    {"envelope", "annotations", "immutable", "logs"},
    {"correlation"},
    {"actor", "cloudevents"},
    {"fault", "loader"},
    {"service"},
    {"auth"},
    {"http", "kafka", "redis"},
    {"producer", "consumer", "transaction", "telemetry"},
    {"saga"},
    {"server", "testing", "projection", "roles", "status"},
    {"console", "dev"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imported(path: Path) -> frozenset[str]:
    """Absolute names of all imports, also those inside functions."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_is_imported_in_one_place(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imported(path)}
    allowed = {
        "confluent_kafka": ["kafka/", "dev/kafka.py"],
        "redis": ["redis/"],
        "starlette": ["http/probes.py", "console/app.py"],
        "jwt": ["auth/"],
        "prometheus_client": ["metrics.py"],
        "h2": ["server/http2.py", "server/http2_state.py"],
        "gunicorn": ["server/worker.py", "server/process.py", "server/plain.py"],
        "gunicorn_h1c": ["server/http1.py"],
    }
    own = path.relative_to(PACKAGE).as_posix()
    for library, places in allowed.items():
        assert library not in libraries or own.startswith(tuple(places)), f"{own} imports {library}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no rank: give it one in this test"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "hiveio" or len(parts) < 2 or parts[1] == own or parts[1] not in RANK:
            continue
        other = parts[1]
        assert RANK[other] < RANK[own], f"{own} imports {other}"


# Circles that are still to be opened. This list only shrinks: the test says which of them is smaller or gone.
CIRCLES: list[set[str]] = []


def arrows(files: dict[str, Path]) -> dict[str, set[str]]:
    """For each module the modules that it names in its imports; those under TYPE_CHECKING and in functions count."""
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        names = imported(path) & files.keys()
        # `from hiveio import errors` names the module, and the package only because it is written like that.
        graph[module] = {name for name in names if not any(other.startswith(f"{name}.") for other in names)} - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The modules from which one comes back to them: the strongly connected components of more than one."""
    reached: dict[str, set[str]] = {}
    for module in graph:
        seen, left = set[str](), [module]
        while left:
            new = graph[left.pop()] - seen
            seen |= new
            left += new
        reached[module] = seen
    found = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}
    return sorted(map(set, found), key=sorted)


def test_files_do_not_import_each_other_in_a_circle() -> None:
    files = {path.relative_to(PACKAGE.parent).with_suffix("").as_posix(): path for path in FILES}
    graph = arrows({name.removesuffix("/__init__").replace("/", "."): path for name, path in files.items()})
    found = [{f"{name.removeprefix('hiveio.').replace('.', '/')}.py" for name in circle} for circle in circles(graph)]
    new = [sorted(circle) for circle in found if not any(circle <= known for known in CIRCLES)]
    assert new == [], "these files import each other in a circle"
    smaller = [sorted(known) for known in CIRCLES if known not in found]
    assert smaller == [], "these circles are smaller now, or gone: take out of CIRCLES what is no longer in one"


def test_a_circle_is_found_wherever_it_hides() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set[str](), "e": {"f"}, "f": {"e", "a"}}
    assert circles(graph) == [{"b", "c"}, {"e", "f"}]


def test_every_kafka_client_takes_the_settings_of_all() -> None:
    """Made by ``make`` of a ``client_config``: TLS and SASL hold for each, and what librdkafka refuses is one line.
    Those of ``hiveio.dev`` speak to a broker that it has just started itself."""
    made = [
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if room(path) != "dev"
        for call in nodes(path)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if call.func.id in ("Producer", "AdminClient")
        or (call.func.id == "Consumer" and "kafka" in path.relative_to(PACKAGE).parts)
    ]
    assert made == ["kafka/client.py"]  # which asks librdkafka about one property at a time


def test_the_headers_of_a_message_are_read_in_one_place() -> None:
    """``message.headers()`` gives null pointers for names that are not UTF-8: hiveio.kafka.headers knows what to do."""
    called = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in FILES
        for call in nodes(path)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if call.func.attr == "headers" and not call.args
    ]
    assert called == []
