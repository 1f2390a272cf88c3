"""The arrows of docs/architecture.md: who may import whom, and who alone may import a library."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "runtime" / "hiveio"
FILES = sorted(PACKAGE.rglob("*.py"))

# One way: a module imports only from lower ranks, or from its own room.
RANKS = [
    {"errors"},
    {"config", "headers", "conditions"},
    {"envelope", "annotations", "immutable"},
    {"actor"},
    {
        "address",
        "body",
        "fault",
        "loader",
        "peers",
        "service",
        "outages",
        "logs",
        "metrics",
        "problem",
        "routes",
        "schemas",
        "openapi",
        "asyncapi",
        "probes",
        "http",
        "kafka",
        "redis",
    },
    {"producer", "consumer", "transaction", "telemetry"},
    {
        "tls",
        "http1",
        "http2",
        "http2_state",
        "greeting",
        "watchdog",
        "worker",
        "process",
        "testing",
        "cli",
        "projection",
    },
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# Inside the room of the HTTP edge.
ORDER = [
    "body", "outages", "logs", "metrics", "fault", "loader", "problem", "routes", "peers", "service", "schemas",
    "openapi", "asyncapi", "probes", "http",
]  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Absolute names of all imports, also those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_is_imported_in_one_place(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imported(path)}
    allowed = {
        "confluent_kafka": {"kafka"},
        "redis": {"redis"},
        "starlette": {"probes"},
        "prometheus_client": {"metrics"},
        "h2": {"http2", "http2_state"},
        "gunicorn": {"http1", "worker", "process"},
    }
    for library, rooms in allowed.items():
        assert library not in libraries or room(path) in rooms, f"{path} imports {library}"


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
        assert RANK[other] <= RANK[own], f"{own} imports {other}"
        if own in ORDER and other in ORDER:
            assert ORDER.index(other) < ORDER.index(own), f"{own} imports {other}"


def test_every_kafka_client_takes_the_settings_of_all() -> None:
    """Made by ``make`` of a ``client_config``: TLS and SASL hold for each, and what librdkafka refuses is one line."""
    made = [
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if call.func.id in ("Producer", "AdminClient") or (call.func.id == "Consumer" and "kafka" in path.parts)
    ]
    assert made == ["kafka/client.py"]  # which asks librdkafka about one property at a time


def test_the_headers_of_a_message_are_read_in_one_place() -> None:
    """``message.headers()`` gives null pointers for names that are not UTF-8: hiveio.kafka.headers knows what to do."""
    called = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in FILES
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if call.func.attr == "headers" and not call.args
    ]
    assert called == []
