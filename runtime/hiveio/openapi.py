"""OpenAPI 3.1, from the annotations of the actors."""

from collections.abc import Iterable
from typing import Any, get_args, get_origin

import msgspec
from msgspec import Struct

from hiveio.actor import Event, Query
from hiveio.envelope import ID_LIMIT, Codec
from hiveio.routes import Route

_REF = "#/components/schemas/{name}"
_PROBLEMS = {
    400: "The request is malformed",
    401: "The request names nobody, or its credentials are not good; WWW-Authenticate says what is asked for",
    403: "Whoever asks may not do that",
    404: "There is no such thing",
    408: "The request did not arrive in time",
    409: "Conflict; nothing happened",
    412: "Another version than If-Match names",
    413: "The body is too large",
    415: "The body is not JSON",
    422: "The message does not fit its schema, or the domain refuses it",
    500: "A fault of the service",
    503: "Nothing happened; try later",
    504: "The outcome is unknown",
}
_PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "pointer": {"type": "string", "description": "RFC 6901: the field that does not fit"},
    },
    "required": ["type", "title", "status"],
}

_ID_SCHEMA = {"type": "string", "minLength": 1, "maxLength": ID_LIMIT}
_KEY_SCHEMA = {"type": "string", "maxLength": 255, "pattern": "^[!#-~]([ -~]*[!-~])?$"}


def document(routes: Iterable[Route], title: str = "hiveio", version: str = "1") -> dict[str, Any]:
    """The description of these routes. A type that has no JSON schema stands as "anything"."""
    listed = list(routes)
    envelopes: dict[type, type] = {}
    for route in listed:
        if route.contract:
            for codec in (route.contract.command_codec, route.contract.event_codec):
                for name, kind in codec.types.items():
                    envelopes.setdefault(kind, codec.envelopes[name])
    schemas = Schemas([kind for route in listed for kind in (*route.takes, *route.gives)], envelopes)
    paths: dict[str, Any] = {}
    for route in listed:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": {**schemas.components, "Problem": _PROBLEM_SCHEMA}},
    }


class Schemas:
    """The schema of each type, and the components that they refer to.

    ``envelopes`` are those in which messages of the routes stand; others are made here.
    """

    def __init__(self, kinds: Iterable[Any], envelopes: dict[type, type]) -> None:
        self._envelopes = envelopes
        known = [each for kind in kinds for each in (kind, self.sent(kind)) if _has_schema(each)]
        # All at once: only then types of one name in two modules are told apart.
        found, self.components = msgspec.json.schema_components(known, ref_template=_REF)
        self._found: dict[Any, dict[str, Any]] = dict(zip(known, found, strict=True))
        for kind, envelope in self._envelopes.items():
            if described := self.fields(envelope):
                described["properties"]["meta"] = {"type": "object"}
                if self.fields(kind).get("required"):  # without one, a missing payload is an empty one
                    described["required"] = [*described["required"], "payload"]

    def sent(self, kind: Any) -> Any:
        """What stands on the wire for this type: a message in its envelope, a list of messages a list of those."""
        if get_origin(kind) is list and (inner := get_args(kind)):
            return list[self.sent(inner[0])]  # type: ignore[misc]
        if isinstance(kind, type) and issubclass(kind, Struct):
            if kind not in self._envelopes:
                self._envelopes[kind] = Codec([kind], strict=False).envelopes[kind.__name__]
            return self._envelopes[kind]
        return kind

    def of(self, kind: Any) -> dict[str, Any]:
        try:
            return self._found.get(kind, {})
        except TypeError:  # an annotation that has no hash
            return {}

    def of_sent(self, kind: Any) -> dict[str, Any]:
        return self.of(self.sent(kind))

    def fields(self, kind: Any) -> dict[str, Any]:
        """The properties of a Struct, with ``required``."""
        reference = self.of(kind).get("$ref", "")
        found: dict[str, Any] = self.components.get(reference.rpartition("/")[2], {})
        return found


def _has_schema(kind: Any) -> bool:
    try:
        hash(kind)
        msgspec.json.schema_components([kind], ref_template=_REF)
    except Exception:  # it raises what it likes for a type that it cannot describe
        return False
    return True


def _operation(route: Route, schemas: Schemas) -> dict[str, Any]:
    names = "Or".join(kind.__name__ for kind in route.takes) or route.method.title()
    operation: dict[str, Any] = {
        "operationId": f"{route.contract.name if route.contract else 'service'}_{names}",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": _path_parameter(name, route, schemas)}
            for name in route.names
        ],
    }
    if route.summary:
        operation["summary"] = route.summary
    if route.contract:
        operation["tags"] = [route.contract.name]
    if route.reads_body:
        operation["parameters"] += [
            {"name": "Idempotency-Key", "in": "header", "schema": _KEY_SCHEMA},
        ]
        taken = _one_of(map(schemas.of_sent, route.takes))
        operation["requestBody"] = {"required": True, "content": _taken(taken, batches=route.intake is not None)}
    elif route.takes:
        operation["parameters"] += _query_parameters(route, schemas)
    gives = [schemas.of_sent(kind) for kind in route.gives]
    if any(isinstance(kind, type) and issubclass(kind, Event) for kind in route.gives):
        gives.append({"type": "array", "items": _one_of(gives)})
    operation["responses"] = {
        str(route.success): {"description": "Success", "content": _json(_one_of(gives))},
        **(
            {"207": {"description": "A batch of which some records are not stored"}} if route.intake is not None else {}
        ),
        **{
            str(status): {
                "description": text,
                "content": {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}},
            }
            for status, text in _PROBLEMS.items()
        },
    }
    return operation


def _path_parameter(name: str, route: Route, schemas: Schemas) -> dict[str, Any]:
    """As a query declares it; else any text that may be an id."""
    declared = [schemas.fields(kind).get("properties", {}).get(name) for kind in route.takes if issubclass(kind, Query)]
    return declared[0] if len(declared) == 1 and declared[0] else _ID_SCHEMA


def _query_parameters(route: Route, schemas: Schemas) -> list[dict[str, Any]]:
    parameters: dict[str, dict[str, Any]] = {}
    if len(route.takes) > 1:
        schema = {"type": "string", "enum": [kind.__name__ for kind in route.takes]}
        parameters["type"] = {"name": "type", "in": "query", "required": True, "schema": schema}
    for kind in route.takes:
        described = schemas.fields(kind)
        for name, schema in described.get("properties", {}).items():
            if name not in route.names:
                required = len(route.takes) == 1 and name in described.get("required", ())
                parameters.setdefault(name, {"name": name, "in": "query", "required": required, "schema": schema})
    return list(parameters.values())


def _taken(message: dict[str, Any], *, batches: bool) -> dict[str, Any]:
    if not batches:
        return _json(message)
    event = {"type": "object", "description": "a CloudEvent 1.0; its data is the payload of a message"}
    return {
        **_json({"anyOf": [message, {"type": "array", "items": message, "description": "a batch"}]}),
        "application/x-ndjson": {"schema": {"type": "string", "description": "a batch: a message on each line"}},
        "application/cloudevents+json": {"schema": event},
        "application/cloudevents-batch+json": {"schema": {"type": "array", "items": event}},
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _one_of(schemas: Iterable[dict[str, Any]]) -> dict[str, Any]:
    listed = list(schemas)
    return listed[0] if len(listed) == 1 else {"anyOf": listed} if listed else {}
