"""The response of the edge to one request, before it is sent."""

from typing import Self

from hiveio.errors import Problem
from hiveio.headers import encoded
from hiveio.http.problem import CONTENT_TYPE, FAULT, encode_problem
from hiveio.types import Fields

JSON = b"application/json"
_PROBLEM = (b"content-type", CONTENT_TYPE.encode())


class Response:
    """Status, headers and body. ``headers`` are this response's own, and more may be added to them."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Fields, body: bytes = b"") -> None:
        self.status, self.headers, self.body = status, headers, body

    @classmethod
    def of_problem(cls, problem: Problem) -> Self:
        return cls(problem.status, [_PROBLEM, *encoded(problem.headers)], encode_problem(problem))

    @classmethod
    def of_fault(cls) -> Self:
        """A 500, for a fault of the actor or of ours: it says nothing about what is inside."""
        return cls(500, [_PROBLEM], FAULT)
