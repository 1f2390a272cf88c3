"""OpenAPI 3.1, from the annotations of the actors."""

from collections.abc import Iterable, Mapping
from typing import Any

from hiveio.envelope import ID_LIMIT
from hiveio.http.routes import Route
from hiveio.http.schemas import REF, Schemas, any_of, union
from hiveio.messages import Query

# status → name of the component, description
_PROBLEMS = {
    400: ("Malformed", "The request is malformed"),
    401: (
        "Unauthorized",
        "The request has no credentials, or they are not valid; WWW-Authenticate says which are needed",
    ),
    403: ("Forbidden", "The client is not allowed to do that"),
    404: ("NotFound", "What the request names does not exist"),
    405: ("MethodNotAllowed", "The path does not take this method; Allow names those that it takes"),
    408: ("RequestTimeout", "The request did not arrive in full in time; nothing happened"),
    409: ("Conflict", "Nothing happened, and nothing will happen under this command"),
    412: ("PreconditionFailed", "The aggregate is at another version than the request asks for; nothing happened"),
    413: ("ContentTooLarge", "The body, a record of it, or its meta is too large"),
    414: ("UriTooLong", "The request line is too long"),
    415: ("UnsupportedMediaType", "The body is not JSON"),
    422: (
        "Unprocessable",
        "The message does not fit its schema, the actor refuses it, or its key was used with another message",
    ),
    431: ("HeadersTooLarge", "The headers are too many or too large"),
    500: ("Fault", "The service has a fault; its log describes it under the X-Request-Id"),
    503: ("Unavailable", "Nothing happened; try again after Retry-After"),
    504: ("OutcomeUnknown", "The outcome is unknown: the request may have been carried out, or may still be"),
}
_DEFAULT = ("Refused", "Any other refusal: by an actor with a status of its own, or of a request that is not HTTP")
_EVERY_ROUTE = (400, 405, 408, 414, 422, 431, 500, 503, 504)
_WITH_BODY = (413, 415)
_OF_ACTORS = (401, 403, 404)
_PROBLEM_HEADERS = {401: ("WWW-Authenticate",), 405: ("Allow",), 503: ("Retry-After",)}

_KEY = {"type": "string", "maxLength": 255, "pattern": "^[!#-~]([ -~]*[!-~])?$"}
_TAG = '"[!#-~]*"'
_TAGS = {"type": "string", "pattern": f"^(\\*|{_TAG}(, ?{_TAG})*)$", "examples": ['"5"', '"5", "6"', "*"]}
_WEAK_TAGS = _TAGS | {"pattern": f"^(\\*|(W/)?{_TAG}(, ?(W/)?{_TAG})*)$"}
_RECORD = "[a-zA-Z0-9._-]+/[0-9]{1,9}/[0-9]{1,18}"
_POSITION = {"type": "string", "pattern": f"^{_RECORD}$"}
_POSITIONS = {"type": "string", "pattern": f"^{_RECORD}(, ?{_RECORD})*$"}
_REQUEST_HEADERS: dict[str, tuple[Mapping[str, Any], str]] = {
    "Hive-Position": (
        _POSITIONS,
        "The answer waits until this record has been handled: <topic>/<partition>/<offset>, or several of them",
    ),
    "Idempotency-Key": (
        _KEY,
        "A request that is sent again with the same key has its effect once, and gets the same answer",
    ),
    "If-Match": (_TAGS, "The versions of which the aggregate must have one; * if it must exist"),
    "If-None-Match": (_WEAK_TAGS, "The versions of which the aggregate must have none; * if it must not exist"),
    "Prefer": (
        {"type": "string"},
        "wait=<seconds> is the longest wait for Hive-Position; other preferences are ignored",
    ),
}
_RESPONSE_HEADERS: dict[str, tuple[Mapping[str, Any], str]] = {
    "Age": (
        {"type": "integer", "minimum": 1},
        "The seconds by which the projection is behind; not present if it is not",
    ),
    "Hive-Parked": ({"type": "integer", "enum": [1]}, "Present if events of this key wait as dead letters"),
    "Allow": ({"type": "string"}, "The methods that the path takes"),
    "ETag": ({"type": "string", "pattern": '^"[0-9]+"$'}, "The version of the aggregate"),
    "Hive-Consistency": ({"type": "string", "enum": ["cached"]}, "The answer may be older than the last write"),
    "Hive-Position": (_POSITION, "The position of the record in Kafka: <topic>/<partition>/<offset>"),
    "Retry-After": ({"type": "integer", "minimum": 0}, "The seconds after which to try again"),
    "WWW-Authenticate": ({"type": "string"}, "The credentials that are needed"),
    "X-Request-Id": (
        {"type": "string", "maxLength": 128},
        "The id in the log lines of the request; not present if the request could not be read",
    ),
}
_ALWAYS = ("Allow", "Retry-After", "WWW-Authenticate")  # in each answer whose description names them

_PROBLEM = {
    "title": "Problem",
    "description": "A problem document of RFC 9457. It may have further members, such as those of an actor's refusal.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "description": "a URN, or about:blank if the status says it all"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "pointer": {"type": "string", "description": "the field that does not fit (RFC 6901)"},
    },
    "required": ["type", "title", "status"],
    "additionalProperties": True,
}
_STORED = {
    "title": "Stored",
    "description": "A record of a batch that was accepted",
    "type": "object",
    "properties": {"status": {"type": "integer", "enum": [200, 202]}, "position": _POSITION},
    "required": ["status"],
    "additionalProperties": False,
}
_BATCH = {
    "title": "BatchAnswer",
    "description": "The answers to the records of a batch, in the order of the records",
    "type": "array",
    "items": {"anyOf": [{"$ref": REF.format(name="Stored")}, {"$ref": REF.format(name="Problem")}]},
}
# Only in words: generators that find several forms of JSON here make clients that can send none of them.
_CLOUD_EVENTS = (
    "CloudEvents 1.0 are taken too: in binary mode, in structured mode (application/cloudevents+json) and in batches "
    "(application/cloudevents-batch+json). The last part of their type names the message, their data is its payload."
)
_ID = {"type": "string", "minLength": 1, "maxLength": ID_LIMIT}


def document(
    routes: Iterable[Route],
    title: str = "hiveio",
    version: str = "0.0.0",
    description: str = "",
    *,
    secured: bool = False,
) -> dict[str, Any]:
    """The description of these routes. A type that has no JSON schema is described as "anything". ``secured`` says that
    each request of them needs a token."""
    listed = list(routes)
    envelopes: dict[type, type] = {}
    contracts = [route.contract for route in listed if route.contract]
    # What comes from outside first: its envelopes refuse unknown members.
    for codec in (*(each.command_codec for each in contracts), *(each.event_codec for each in contracts)):
        for name, kind in codec.types.items():
            envelopes.setdefault(kind, codec.envelopes[name])
    messages = [kind for route in listed if route.reads_body for kind in (*route.takes, union(route.takes))]
    queries = [kind for route in listed if not route.reads_body for kind in route.takes]
    schemas = Schemas([*messages, *(route.gives for route in listed)], envelopes, queries)
    own: dict[str, Any] = {"Problem": _PROBLEM}
    if any(route.intake is not None for route in listed):
        own |= {"Stored": _STORED, "BatchAnswer": _BATCH}
    paths: dict[str, Any] = {}
    for route in listed:
        operation = paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
        if secured:
            _secure(operation, route)
    problems = [(name, text, _PROBLEM_HEADERS.get(status, ())) for status, (name, text) in _PROBLEMS.items()]
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, **({"description": description} if description else {})},
        "paths": paths,
        "components": {
            "schemas": {**schemas.components, **own},
            "headers": {name: _header(name) for name in _RESPONSE_HEADERS},
            "responses": {
                name: {"description": text, "headers": _headers(headers), "content": _content(_PROBLEM_TYPE, "Problem")}
                for name, text, headers in [*problems, (*_DEFAULT, ())]
            },
            **({"securitySchemes": {"token": _TOKEN}} if secured else {}),
        },
    }


_PROBLEM_TYPE = "application/problem+json"
_TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "An access token for this service, in the header Authorization (RFC 6750)",
}


def _secure(operation: dict[str, Any], route: Route) -> None:
    operation["security"] = [{"token": sorted(route.requires)}]
    for status in (401, 403) if route.requires or route.ours else (401,):
        reference = {"$ref": f"#/components/responses/{_PROBLEMS[status][0]}"}
        operation["responses"].setdefault(str(status), reference)


def _operation(route: Route, schemas: Schemas) -> dict[str, Any]:
    names = "Or".join(kind.__name__ for kind in route.takes) or route.method.title()
    owner = route.contract.name if route.contract else route.segments[0].title()
    operation: dict[str, Any] = {"operationId": f"{owner}_{names}", "tags": [owner]}
    if route.summary:
        operation["summary"] = route.summary
    operation["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": _path_parameter(name, route, schemas)}
        for name in route.names
    ]
    if not route.reads_body:
        operation["parameters"] += _query_parameters(route, schemas)
    for name in route.about.accepts:
        schema, text = _REQUEST_HEADERS[name]
        operation["parameters"].append({"name": name, "in": "header", "description": text, "schema": schema})
    if route.reads_body:
        more = {} if route.intake is None else {"description": _CLOUD_EVENTS}
        operation["requestBody"] = {**more, "required": True, "content": _taken(route, schemas)}
    operation["responses"] = _responses(route, schemas)
    return operation


def _path_parameter(name: str, route: Route, schemas: Schemas) -> dict[str, Any]:
    """The schema that a query declares for it; otherwise that of an id."""
    declared = [schemas.fields(kind).get("properties", {}).get(name) for kind in route.takes if issubclass(kind, Query)]
    if len(declared) == 1 and declared[0] and declared[0] != {"type": "string"}:
        return {key: value for key, value in declared[0].items() if key != "default"}
    return _ID


def _query_parameters(route: Route, schemas: Schemas) -> list[dict[str, Any]]:
    """The parameters of the queries of the path. One that several of them have may be what any of them says."""
    found: list[dict[str, Any]] = [
        {"name": name, "in": "query", "schema": schema} for name, schema in route.about.query.items()
    ]
    several = len(route.takes) > 1
    if several:
        schema = {"type": "string", "enum": [kind.__name__ for kind in route.takes]}
        found.append({"name": "type", "in": "query", "required": True, "schema": schema})
    owners: dict[str, list[str]] = {}
    meanings: dict[str, list[Any]] = {}
    required = set()
    for kind in route.takes:
        fields = schemas.fields(kind)
        for name, schema in fields.get("properties", {}).items():
            if name in route.names:
                continue
            owners.setdefault(name, []).append(kind.__name__)
            if schema not in meanings.setdefault(name, []):
                meanings[name].append(schema)
            if name in fields.get("required", ()) and not several:
                required.add(name)
    for name, schemas_of_it in meanings.items():
        parameter: dict[str, Any] = {"name": name, "in": "query", "required": name in required}
        if several:
            parameter["description"] = f"of {', '.join(owners[name])}"
        found.append(parameter | {"schema": any_of(schemas_of_it)})
    return found


def _taken(route: Route, schemas: Schemas) -> dict[str, Any]:
    message = schemas.of_sent(union(route.takes))
    if len(route.takes) == 1:
        (kind,) = route.takes
        fields = schemas.fields(kind)
        if "type" not in fields.get("required", ()):
            # Alone on its path, a message may come without its envelope; a type would make it one.
            message = any_of([message, {**schemas.of(kind), "not": {"required": ["type"]}}])
    if route.intake is None:
        return _content("application/json", message)
    batch = {"type": "array", "items": message, "description": "A batch; the answers come in the order of the records"}
    lines = {"type": "string", "description": "A batch, with a message on each line"}
    return {
        **_content("application/json", any_of([message, batch])),
        **_content("application/x-ndjson", lines),
    }


def _responses(route: Route, schemas: Schemas) -> dict[str, Any]:
    answer = schemas.of_sent(route.gives) if route.answer is None else dict(route.answer)
    success = {"description": "Success", "headers": _headers(route.about.answers_with)}
    responses: dict[str, Any] = {str(route.success): {**success, "content": _content("application/json", answer)}}
    if route.intake is not None:
        batch = _content("application/x-ndjson", {"type": "string", "description": "The answers, one on each line"})
        if route.success == 200:
            answer = any_of([answer, {"$ref": REF.format(name="BatchAnswer")}])
            responses["200"]["content"] = _content("application/json", answer) | batch
        else:
            responses["200"] = _batch_answer("All records of the batch are accepted", batch)
        responses["207"] = _batch_answer("Some records of the batch are not stored", batch)
    statuses = {*_EVERY_ROUTE, *route.about.problems}
    if route.reads_body:
        statuses |= set(_WITH_BODY)
    if route.contract:
        statuses |= set(_OF_ACTORS)
    for status in sorted(statuses):
        responses[str(status)] = {"$ref": f"#/components/responses/{_PROBLEMS[status][0]}"}
    if not route.reads_body and "If-None-Match" in route.about.accepts:
        seen = "The aggregate is at one of the versions in If-None-Match, so the copy of the client is valid"
        responses["304"] = {"description": seen, "headers": _headers(route.about.answers_with)}
    responses["default"] = {"$ref": f"#/components/responses/{_DEFAULT[0]}"}
    return responses


def _batch_answer(text: str, lines: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": text,
        "headers": _headers(()),
        "content": _content("application/json", "BatchAnswer") | lines,
    }


def _header(name: str) -> dict[str, Any]:
    schema, text = _RESPONSE_HEADERS[name]
    return {"description": text, "required": name in _ALWAYS, "schema": schema}


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*names, "X-Request-Id")}


def _content(media_type: str, schema: dict[str, Any] | str) -> dict[str, Any]:
    """``schema``, or the name of a component."""
    return {media_type: {"schema": {"$ref": REF.format(name=schema)} if isinstance(schema, str) else schema}}
