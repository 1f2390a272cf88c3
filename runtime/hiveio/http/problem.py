"""Problem documents (RFC 9457): every answer other than success."""

import re
from http import HTTPStatus
from typing import Any

from hiveio.envelope import encode_json
from hiveio.errors import Problem, Refused

CONTENT_TYPE = "application/problem+json"

_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def problem_document(problem: Problem) -> dict[str, Any]:
    """The document. ``type`` is a URN made of the class, so an actor's own subclass of Rejected has one of its own."""
    urn = problem.urn or urn_of(type(problem))
    document: dict[str, Any] = {"type": urn, "title": problem.title, "status": problem.status}
    if problem.detail:
        document["detail"] = problem.detail
    return document | {name: value for name, value in problem.members.items() if name not in document}


def urn_of(kind: type[Problem]) -> str:
    if kind in (Problem, Refused):
        return "about:blank"
    return kind.urn or f"urn:hiveio:problem:{_CAPITAL.sub('-', kind.__name__).lower()}"


def encode_problem(problem: Problem) -> bytes:
    """The document as JSON."""
    document = problem_document(problem)
    try:
        return encode_json(document)
    except UnicodeEncodeError:
        # A lone surrogate in a text that came from the client.
        return encode_json({name: _shown(value) for name, value in document.items()})


def status_problem(status: int, detail: str) -> bytes:
    """The document of an answer that only has a status (a request that the server could not parse)."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    return encode_json({"type": "about:blank", "title": title, "status": status, "detail": detail})


def _shown(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


FAULT = encode_problem(Problem())  # of the actor or of ours: it says nothing about what is inside
