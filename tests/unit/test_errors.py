"""What an actor may say with a refusal. What could not be answered is a TypeError at once, and not a 500 later."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from hiveio import Forbidden, NotFound, Rejected, Unauthorized, errors
from hiveio.errors import OUR_MEMBERS, Problem, contained
from hiveio.http.problem import problem_document


def make(status: Any = 422, title: Any = "Gone", base: type[Rejected] = Rejected) -> type[Rejected]:
    return type("Gone", (base,), {"status": status, "title": title})


@pytest.mark.parametrize("name", sorted(OUR_MEMBERS - {"detail"}))
@pytest.mark.parametrize("kind", [Rejected, NotFound, Forbidden, Unauthorized])
def test_a_member_that_is_ours_is_a_type_error(kind: type[Any], name: str) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__}\({name}=…\): .* are set by the class"):
        kind("no", **{name: 404})


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: Rejected(ValueError("x")),  # type: ignore[arg-type]
            r"Rejected\(ValueError\('x'\)\): the detail must be a text",
        ),
        (lambda: Rejected("x", by=object()), "Rejected.by=<object .* cannot be written as JSON: Encoding objects of"),
        (lambda: Rejected("x", on={(1, 2): 3}), "Rejected.on=.* cannot be written as JSON"),
        (lambda: Rejected("x", headers={"A": "b\r\nSet-Cookie: c"}), "Rejected.headers=.* is not a valid HTTP header"),
        (lambda: Rejected("x", headers={"A b": "c"}), "Rejected.headers=.* is not a valid HTTP header"),
        (lambda: Unauthorized("x", challenge=""), "Unauthorized.headers=.* is not a valid HTTP header"),
        (lambda: make(status=200), "Gone.status is 200; a refusal is the client's fault: 400 to 499"),
        (lambda: make(status="410"), "Gone.status is '410'; a refusal is the client's fault: 400 to 499"),
        (lambda: make(title=None), "Gone.title is None; it must be a text"),
    ],
)
def test_what_cannot_be_answered_is_a_type_error(call: Any, line: str) -> None:
    with pytest.raises(TypeError, match=line):
        call()


def test_what_can_be_answered() -> None:
    assert problem_document(make(410)("sold", sku="a", left=[1, None])) == {
        "type": "urn:hiveio:problem:gone",
        "title": "Gone",
        "status": 410,
        "detail": "sold",
        "sku": "a",
        "left": [1, None],
    }
    assert Rejected("\ud800", text="\ud800").members == {"text": "\ud800"}
    found = Unauthorized("who?", challenge='Basic realm="bank"', headers={"X-A": "b"})
    assert (found.status, found.headers) == (401, {"X-A": "b", "WWW-Authenticate": 'Basic realm="bank"'})
    assert Unauthorized().headers == {"WWW-Authenticate": "Bearer"}
    assert (NotFound("x").status, Forbidden("x").status) == (404, 403)


def test_a_class_of_ones_own_need_not_call_the_init_of_its_base() -> None:
    class Closed(Rejected):
        def __init__(self) -> None:
            self.members = {"until": 5}

    assert problem_document(Closed())["until"] == 5


@pytest.mark.parametrize(
    ("attribute", "value", "line"),
    [
        ("headers", {"Retry-After": 60}, r"Rejected.headers=.*60.* is not a valid HTTP header"),
        ("headers", {"A": "b\r\nSet-Cookie: c"}, "Rejected.headers=.* is not a valid HTTP header"),
        ("headers", None, "Rejected.headers is None; it must be a dict"),
        ("members", {"by": object()}, "Rejected.by=<object .* cannot be written as JSON"),
        ("members", {"status": 200}, "Rejected.status=…"),
        ("members", [], r"Rejected.members is \[\]; it must be a dict"),
        ("detail", 5, "Rejected.detail is 5; it must be a str"),
        ("title", None, "Rejected.title is None; it must be a str"),
        ("status", 200, "Rejected.status is 200; it must be from 400 to 499"),
        ("status", "422", "Rejected.status is '422'; it must be from 400 to 499"),
    ],
)
def test_what_was_made_of_a_refusal_afterwards_is_a_fault(attribute: str, value: Any, line: str) -> None:
    refusal = Rejected("no")
    assert contained(refusal) is refusal
    setattr(refusal, attribute, value)
    fault = contained(refusal)
    assert isinstance(fault, TypeError)
    assert re.match(line, str(fault))
    assert fault.__cause__ is refusal


def test_an_error_without_a_text_is_logged_all_the_same() -> None:
    class Mute(Problem):
        def __str__(self) -> str:
            raise ValueError

    assert str(contained(Mute())) == "the actor raised Mute: its text cannot be shown (ValueError)"


PACKAGE = Path(errors.__file__).parent
PROBLEMS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Problem)}


FOR_CLIENTS = [
    "*",
    "http/*",
    "server/*",
    "producer/*",
    "consumer/freshness",
    "kafka/sender",
    "kafka/delivery",
    "kafka/rules",
]


@pytest.mark.parametrize("path", [path for names in FOR_CLIENTS for path in PACKAGE.glob(f"{names}.py")])
def test_a_detail_that_a_client_reads_is_a_sentence(path: Path) -> None:
    details = []
    for call in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            texts = call.args[:1] if call.func.id in PROBLEMS else call.args[1:2] if call.func.id == "NotHttp" else []
            details += [ast.unparse(text) for text in texts if isinstance(text, ast.Constant | ast.JoinedStr)]
    wrong = [text for text in details if not re.fullmatch(r"""f?(['"])[A-Z{].*\.\1""", text, re.DOTALL)]
    assert wrong == []
