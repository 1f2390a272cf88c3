"""Checks of schemathesis besides its own, which do not know what a problem document says (SCHEMATHESIS_HOOKS)."""

import re
from typing import Any

import schemathesis
from schemathesis import CheckContext, GenerationMode, Response

# What no schema can say: which topics there are, and how many bytes a text has.
BEYOND_SCHEMAS = ("is not consumed here", "An id must have 1 to 255 bytes")
REFUSED_BY_THE_STATE = ("rejected", "version-mismatch", "key-reused", "not-found", "conflict")


def of_the_operation(case: Any) -> bool:
    """Schemathesis tries other methods too."""
    return bool(case.method == case.operation.method.upper())


def fits_its_patterns(case: Any) -> bool:
    """Schemathesis sends a header that is a number for one that is a text, whatever the pattern of the text."""
    for parameter in case.operation.definition.raw["parameters"]:
        sent = (case.headers or {}).get(parameter["name"]) if parameter["in"] == "header" else None
        if sent is not None and not re.search(parameter["schema"].get("pattern", ""), str(sent)):
            return False
    return True


@schemathesis.check
def takes_what_fits(context: CheckContext, response: Response, case: Any) -> None:
    """What fits the schema is refused by the domain only."""
    if (
        not of_the_operation(case)
        or case.meta is None
        or case.meta.generation.mode != GenerationMode.POSITIVE
        or response.status_code < 400
        or not fits_its_patterns(case)
    ):
        return
    problem = response.json()
    if problem["type"].removeprefix("urn:hiveio:problem:") in REFUSED_BY_THE_STATE:
        return
    if any(text in problem.get("detail", "") for text in BEYOND_SCHEMAS):
        return
    if "type" in (case.query or {}):  # which fields each of several queries has
        return
    raise AssertionError(f"valid data is refused: {problem}")


@schemathesis.check
def tells_its_statuses_one_by_one(context: CheckContext, response: Response, case: Any) -> None:
    """``default`` is for what actors and proxies add."""
    if not of_the_operation(case):
        return
    stated = {str(status) for status in case.operation.definition.raw["responses"]}
    assert str(response.status_code) in stated, f"{response.status_code} is not described"
