"""How tests are laid out: those of a module are found by its name, and none looks inside of what it tests."""

import ast
from collections.abc import Iterator

import pytest

from tests.process import ROOT

UNIT = ROOT / "tests" / "unit"
PACKAGE = ROOT / "runtime" / "hiveio"
OF_THE_REPOSITORY = {
    "ahead", "deploy", "deploy_alerts", "documents", "garbage", "imports", "layout", "locks", "readme", "release",
}  # fmt: skip
FILES = sorted(path.relative_to(UNIT).as_posix() for path in UNIT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_unit_tests_is_named_after_a_module_or_package(file: str) -> None:
    """``test_<module>.py``, or ``test_<module>_<aspect>.py``, in the folder of its package."""
    folder, name = (UNIT / file).parent.relative_to(UNIT), (UNIT / file).stem.removeprefix("test_")
    if folder.name == "" and name in OF_THE_REPOSITORY:
        return
    package = PACKAGE / folder
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    words = name.split("_")
    beginnings = {"_".join(words[:count]) for count in range(1, len(words) + 1)}
    assert beginnings & (modules | {folder.name}), f"tests/unit/{file}: hiveio has no module of that name there"


# -- private state

# Named tuples have public methods that begin with an underscore, and so have errors of librdkafka their names.
PUBLIC = {"_replace", "_asdict", "_fields", "_make"}
LIBRARIES = {"KafkaError", "httpx"}
# Files that look inside objects of ours all the same, and why.
LOOK_INSIDE = {"faults/entrypoint.py": "it builds the engine and the cache wrong on purpose"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC


def rooted(node: ast.AST) -> str:
    """The name with which an expression like ``a.b(c).d`` begins."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def looked_at(source: str) -> Iterator[str]:
    """The private names of others that a test uses: neither its own object's, nor of a class in its own file."""
    nodes = [*ast.walk(ast.parse(source))]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            own.add(node.attr)
    for node in nodes:
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
            if rooted(node) not in LIBRARIES | {"super"}:
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("hiveio", "tests"):
            yield from (alias.name for alias in node.names if private(alias.name))
        elif isinstance(node, ast.Call) and rooted(node).endswith(("setattr", "monkeypatch")):
            texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            yield from (text for text in texts if private(text.rpartition(".")[2]) and text not in own)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("engine._scopes[0]", ["engine._scopes"]),
        ("from hiveio.environment import _LINKED", ["_LINKED"]),
        ("monkeypatch.setattr('hiveio.kafka.client._begin', {})", ["hiveio.kafka.client._begin"]),
        ("setattr(tail, '_woken', False)", ["_woken"]),
        ("place._replace(offset=1); KafkaError._TIMED_OUT; row.__class__; __version__", []),
        ("class A:\n def f(self):\n  return self.engine._keys", ["self.engine._keys"]),
        ("class A:\n def __init__(self):\n  self._mine = 1\ndef f(a: A):\n return a._mine", []),
    ],
)
def test_what_counts_as_looking_inside(source: str, found: list[str]) -> None:
    assert [*looked_at(source)] == found


def test_tests_use_what_an_object_promises_and_not_what_it_keeps_for_itself() -> None:
    inside: dict[str, list[str]] = {}
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        name = path.relative_to(ROOT / "tests" if path.is_relative_to(ROOT / "tests") else ROOT).as_posix()
        if name not in LOOK_INSIDE and (found := [*looked_at(path.read_text("utf-8"))]):
            inside[name] = found
    assert not inside, "give the object a public, documented property, or look at what it does"
