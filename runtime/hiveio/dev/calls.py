"""Lines of curl that a service takes, from its /openapi.json."""

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from hiveio.http.routes import RESERVED_BELOW

DEEPEST = 6  # of what is shown of a value; a type may contain itself
_FORMATS = {
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "uuid": "01890a5d-ac96-774b-bcce-b302099a8057",
}
# One of these fits most patterns: those of durations, decimal numbers and base64 are ours.
_SAMPLES = ("text", "PT1S", "1", "dGV4dA==", "TEXT", "A1", "ABC", "123456", "ada@example.org", "https://example.org")

Schema = Mapping[str, Any]


def calls(document: Schema, address: str) -> list[str]:
    """A line for each message and query. `address` is where the service is, such as localhost:3001."""
    return [
        _line(method.upper(), address + _target(path, operation, document), body)
        for path, methods in document["paths"].items()
        if not path.startswith(RESERVED_BELOW)
        for method, operation in methods.items()
        for body in _bodies(operation, document)
    ]


def _line(method: str, address: str, body: Any) -> str:
    words = ["curl", "-s", address]
    if body is not None:
        words += ["-H", "content-type: application/json", "-d", json.dumps(body, ensure_ascii=False)]
    if method not in ("GET", "POST"):
        words += ["-X", method]
    return shlex.join(words)


def _target(path: str, operation: Schema, document: Schema) -> str:
    query = {}
    for parameter in operation.get("parameters", []):
        schema = _resolved(parameter["schema"], document)
        value = "7" if _takes_any_text(schema) else example(schema, document)
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(str(value), safe=""))
        elif parameter["in"] == "query" and parameter.get("required"):
            query[parameter["name"]] = value
    return path + (f"?{urlencode(query, True)}" if query else "")


def _takes_any_text(schema: Schema) -> bool:
    return (
        schema.get("type") == "string" and not schema.keys() & {"format", "pattern"} and schema.get("minLength", 0) < 2
    )


def _bodies(operation: Schema, document: Schema) -> Iterator[Any]:
    """One for each type of message; None where there is no body."""
    if "requestBody" not in operation:
        yield None
        return
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    for each in _variants(schema, document):
        # Neither a batch nor, where there is one message only, its payload without a type: each is shown once.
        if "type" in each.get("properties", {}):
            yield example(each, document)


def _variants(schema: Schema, document: Schema) -> Iterator[Schema]:
    schema = _resolved(schema, document)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            for each in schema[several]:
                yield from _variants(each, document)
            return
    yield schema


def _resolved(schema: Schema, document: Schema) -> Schema:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def example(schema: Schema, document: Schema, depth: int = DEEPEST) -> Any:
    """A value that fits the schema, unless it has a pattern that none of ours fits."""
    schema = _resolved(schema, document)
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    for given in ("enum", "examples"):
        if schema.get(given):
            return schema[given][0]
    for several in ("anyOf", "oneOf"):
        if several in schema:
            first = next((each for each in schema[several] if each.get("type") != "null"), schema[several][0])
            return example(first, document, depth)
    match schema.get("type"):
        case "object":
            fields = schema.get("properties", {})
            names = schema.get("required", []) if depth else []
            return {name: example(fields[name], document, depth - 1) for name in names}
        case "array":
            return _list(schema, document, depth)
        case "string":
            return _text(schema)
        case "integer" | "number" as kind:
            return _number(schema, kind)
        case "boolean":
            return True
        case "null":
            return None
    return {}


def _list(schema: Schema, document: Schema, depth: int) -> list[Any]:
    if "prefixItems" in schema:
        return [example(each, document, depth - 1) for each in schema["prefixItems"]]
    count = max(schema.get("minItems", 1), 1) if depth and "maxItems" not in schema else schema.get("minItems", 0)
    return [example(schema.get("items") or {}, document, depth - 1) for _ in range(count)]


def _text(schema: Schema) -> str:
    text = _FORMATS.get(schema.get("format", ""), "text")
    if "pattern" in schema:
        with contextlib.suppress(re.error):  # of JavaScript's
            return next((text for text in _SAMPLES if re.search(schema["pattern"], text)), "text")
    least, most = schema.get("minLength", 0), schema.get("maxLength", len(text))
    return text.ljust(least, "x")[: max(most, least)]


def _number(schema: Schema, kind: str) -> float:
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    least, most = schema.get("minimum", above), schema.get("maximum", below)
    step: float = schema.get("multipleOf", 1)
    value: float = max(1, least) if least is not None else 1
    value = min(value, most) if most is not None else value
    value = -(-value // step) * step
    if value == above:
        value += step
    if (most is not None and value > most) or value == below:  # a fraction between two bounds
        value = (least + most) / 2 if least is not None else value - step
    return int(value) if kind == "integer" else value
