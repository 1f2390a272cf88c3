"""Routes: which path serves what, and the matching of request paths.

Roles make routes with ``messages`` and ``queries``; anything else is a ``Route`` of its own.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from msgspec import Raw

from hiveio.actor import Contract, query_decoder
from hiveio.envelope import ID_LIMIT, Handler
from hiveio.errors import BadAnnotation, Invalid, PathReserved, PathTaken, Refused
from hiveio.http.intake import Intake
from hiveio.messages import Query
from hiveio.service import Service

# (body, id, other path parameters, query string) → (message, the client's meta). Raises Refused.
Decode = Callable[[bytes, str, Mapping[str, str], bytes], tuple[Any, Raw | None]]
# What a role is: the routes of a service. It is called in each worker, on its loop.
Build = Callable[[Service], list["Route"]]

RESERVED = ("/livez", "/readyz", "/metrics", "/openapi.json", "/asyncapi.json")
RESERVED_BELOW = "/transactions"
MAX_PARAMETERS = 1_000  # in a query string

logger = logging.getLogger("hiveio")

_SEGMENT = re.compile(r"\{([a-zA-Z_]\w*)\}|[^{}/?#]+")
_BAD_ESCAPE = re.compile(rb"%(?![0-9a-fA-F]{2})")


@dataclass(frozen=True, kw_only=True)
class About:
    """What the handler of a route does besides answering a message, for /openapi.json.

    ``accepts``: the request headers that it reads; ``query``: schemas of query parameters that are no field of a
    message; ``answers_with``: headers of a successful answer; ``problems``: statuses beyond those of every route.
    """

    accepts: tuple[str, ...] = ()
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    answers_with: tuple[str, ...] = ()
    problems: tuple[int, ...] = ()


NOTHING_MORE = About()
KEYED = About(accepts=("Idempotency-Key",))


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method on one path template, such as ``/accounts/{id}``.

    ``decode`` makes the message of a request, ``handler`` answers it; ``success`` is the status of an answer whose
    outcome does not name another; ``intake`` takes messages that are not one JSON envelope. ``ours`` marks a path of
    the runtime. The rest describes it in /openapi.json: ``takes`` the message types, ``gives`` the annotation of the
    answer, or ``answer`` its schema, ``about``, ``summary``.
    """

    method: str
    path: str
    decode: Decode
    handler: Handler
    success: int = 200
    contract: Contract | None = None
    takes: tuple[type, ...] = ()
    gives: Any = Any
    answer: Mapping[str, Any] | None = None
    about: About = NOTHING_MORE
    summary: str = ""
    intake: Intake | None = None  # the other forms of a message that the route takes
    ours: bool = False
    segments: tuple[str, ...] = field(init=False)  # literals, and "" for a parameter
    names: tuple[str, ...] = field(init=False)  # of the parameters
    by_id: bool = field(init=False)  # the one parameter is {id}
    reads_body: bool = field(init=False)
    requires: frozenset[str] = field(init=False)  # the scopes that a token must have

    def __post_init__(self) -> None:
        parts = self.path.removeprefix("/").split("/") if self.path != "/" else []
        found = [_SEGMENT.fullmatch(part) for part in parts]
        if not self.path.startswith("/") or not all(found):
            raise BadAnnotation(f"{self.owner}: the path {self.path!r} is wrong; it looks like /accounts/{{id}}")
        names = tuple(match[1] for match in found if match and match[1])
        if len(set(names)) < len(names):
            raise BadAnnotation(f"{self.owner}: the path {self.path!r} names a parameter twice")
        set_once = object.__setattr__
        set_once(self, "segments", tuple("" if match and match[1] else match[0] for match in found if match))
        set_once(self, "names", names)
        set_once(self, "by_id", names == ("id",))
        set_once(self, "reads_body", self.method in ("POST", "PUT", "PATCH"))
        set_once(self, "requires", self.contract.requires if self.contract else frozenset())

    @property
    def owner(self) -> str:
        return self.contract.kind.__name__ if self.contract else "the service"


def messages(
    contract: Contract,
    handler: Handler,
    success: int = 200,
    intake: Intake | None = None,
    about: About = KEYED,
    gives: Any = None,
) -> list[Route]:
    """POST on the actor's path for its messages; none if it takes none. Raises BadAnnotation.

    ``gives`` is the annotation of the answer, where that is not what ``perform`` returns.
    """
    if not contract.commands:
        return []
    decode = contract.command_codec.decode
    route = Route(
        method="POST",
        path=_path(contract, contract.path, contract.commands),
        decode=lambda body, id, parameters, query: decode(body),
        handler=handler,
        success=success,
        intake=intake,
        contract=contract,
        about=about,
        takes=tuple(contract.commands.values()),
        gives=contract.returned if gives is None else gives,
    )
    for name in route.names:
        if name != "id":
            raise BadAnnotation(
                f"{route.owner}: the path {route.path} has the parameter {name}; that of a message may only have {{id}}"
            )
    return [route]


def queries(contract: Contract, handler: Handler, about: About = NOTHING_MORE) -> list[Route]:
    """GET for the actor's queries, one route a path; none if it takes none. Raises BadAnnotation."""
    by_path: dict[str, list[type[Query]]] = {}
    for kind in contract.queries.values():
        by_path.setdefault(_path(contract, kind.path or contract.path, contract.queries), []).append(kind)
    routes = []
    for path, kinds in by_path.items():
        route = Route(
            method="GET",
            path=path,
            decode=_query(path, kinds),
            handler=handler,
            contract=contract,
            about=about,
            takes=tuple(kinds),
            gives=contract.returned,
        )
        for kind in kinds:
            missing = set(route.names) - {"id"} - {f.name for f in msgspec.structs.fields(kind)}
            if missing and kind.__struct_config__.forbid_unknown_fields:
                fields = ", ".join(sorted(missing))
                raise BadAnnotation(f"{kind.__name__} is a query of {path} and has no field {fields}")
        routes.append(route)
    return routes


def check_reached(service: Service, routes: Iterable[Route]) -> None:
    """Check that what actors take comes to them in this role, and log a warning for what does not.

    Raises BadAnnotation for an actor to which nothing comes.
    """
    reached = {(route.contract.name, kind) for route in routes if route.contract for kind in route.takes}
    reached |= {(c.actor, kind) for c in service.channels if c.action == "receive" for kind in c.messages}
    for contract in service.contracts:
        taken = {*contract.commands.values(), *contract.queries.values(), *contract.subscribes.values()}
        idle = sorted(kind.__name__ for kind in taken if (contract.name, kind) not in reached)
        text = f"{contract.kind.__name__}.perform takes {', '.join(idle)}, which this image passes to no actor"
        if idle and len(idle) == len(taken):
            raise BadAnnotation(f"{text}: use the image of another role, or take other messages")
        if idle:
            logger.warning("%s", text)


def _path(contract: Contract, path: str, taken: Iterable[str]) -> str:
    if not path:
        name = contract.kind.__name__
        raise BadAnnotation(f'{name} takes {", ".join(taken)} over HTTP and has no path; write path = "/…" in it')
    return path


def _query(path: str, kinds: list[type[Query]]) -> Decode:
    """Decodes the query types of one path; ``?type=`` chooses among several."""
    decoders = {kind.__name__: query_decoder(kind) for kind in kinds}
    fields = {kind.__name__: {f.name for f in msgspec.structs.fields(kind)} for kind in kinds}
    only = kinds[0].__name__ if len(kinds) == 1 else None

    def decode(body: bytes, id: str, parameters: Mapping[str, str], query: bytes) -> tuple[Any, Raw | None]:
        values: dict[str, Any] = query_parameters(query) if query else {}
        name = only
        # With one type on the path, `type` may be a field of its own.
        if not (only and "type" in fields[only]) and (given := values.pop("type", None)) is not None:
            name = given[-1]
        if name not in decoders:
            known = ", ".join(sorted(decoders))
            text = (
                f"The type {name!r} is unknown."
                if name is not None
                else "This path has several queries. Choose one with ?type=."
            )
            raise Invalid(f"{text} This path takes: {known}.", pointer="/type")
        known_fields = fields[name]
        path_values = {"id": id, **parameters} if id and "id" in known_fields else parameters
        for parameter in path_values:
            if parameter in values:
                raise Invalid(
                    f"The path gives {parameter} already. Leave it out of the query string.",
                    pointer=f"/{parameter}",
                )
        return decoders[name]({**values, **path_values}), None

    return decode


def query_parameters(query: bytes) -> dict[str, list[str]]:
    """The values of each name, in order. Raises Refused (400) for a bad escape or what is not UTF-8."""
    if _BAD_ESCAPE.search(query):
        raise Refused("The query string has a % that begins no percent-encoded byte. Write it as %25.")
    try:
        pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except UnicodeDecodeError:
        raise Refused("The query string is not UTF-8.") from None
    except ValueError:
        raise Refused(f"The query string has more than {MAX_PARAMETERS} parameters.") from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def path_text(raw: bytes) -> str:
    """A segment of a path, percent-decoded: 1 to 255 bytes of UTF-8. Raises Refused (400)."""
    if b"%" in raw:
        if _BAD_ESCAPE.search(raw):
            raise Refused("The path has a % that begins no percent-encoded byte. Write it as %25.")
        raw = unquote_to_bytes(raw)
    if not 1 <= len(raw) <= ID_LIMIT:
        raise Refused(f"An id must have 1 to {ID_LIMIT} bytes; this one has {len(raw)}.")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Refused("The path is not UTF-8.") from None


class Resource:
    """What one path serves, by method. Without routes it is a path of the runtime."""

    __slots__ = ("allow", "path", "routes")

    def __init__(self, path: str) -> None:
        self.path = path
        self.routes: dict[str, Route] = {}
        self.allow = ""

    def add(self, route: Route) -> None:
        if (other := self.routes.get(route.method)) is not None:
            raise PathTaken(
                f"{route.owner} and {other.owner} both take {route.method} {route.path}; give one of them another path"
            )
        self.routes[route.method] = route
        methods = set(self.routes) | {"OPTIONS"} | ({"HEAD"} if "GET" in self.routes else set())
        self.allow = ", ".join(sorted(methods))


class Router:
    """Finds the resource of a request path. Literal segments go before parameters.

    Raises PathReserved for an actor on a path of the runtime, PathTaken for two on one path and method.
    """

    def __init__(self, routes: Iterable[Route], ping_url: str) -> None:
        self.routes = list(routes)
        self._resources: dict[tuple[str, ...], Resource] = {}
        for route in self.routes:
            self._refuse_reserved(route, ping_url)
            self._resources.setdefault(route.segments, Resource(route.path)).add(route)
        own = Resource("")
        # Templates without a parameter, and those whose only parameter is the last segment, are one look into a dict.
        self.exact: dict[bytes, Resource] = {path.encode(): own for path in (*RESERVED, ping_url)}
        self.trailing: dict[bytes, Resource] = {}
        for segments, resource in self._resources.items():
            if "" not in segments:
                self.exact[("/" + "/".join(segments)).encode()] = resource
            elif "" not in segments[:-1]:
                self.trailing["".join("/" + segment for segment in segments[:-1]).encode()] = resource
        # The most literal first, from the left.
        self._general = sorted(self._resources.items(), key=lambda item: [segment == "" for segment in item[0]])

    @staticmethod
    def _refuse_reserved(route: Route, ping_url: str) -> None:
        if route.ours:
            return
        below = route.path == RESERVED_BELOW or route.path.startswith(RESERVED_BELOW + "/")
        if route.path in RESERVED or route.path == ping_url or below:
            raise PathReserved(
                f"{route.owner}: the path {route.path} is reserved for the service itself; choose another path"
            )

    def find(self, raw_path: bytes) -> tuple[Resource, list[bytes]] | None:
        """The resource and its raw parameters. This is the slower way, for every template and for escaped literals."""
        parts = raw_path.removeprefix(b"/").split(b"/") if raw_path != b"/" else []
        texts = [unquote_to_bytes(part) for part in parts]
        for segments, resource in self._general:
            if len(segments) == len(parts) and all(
                segment.encode() == text if segment else text for segment, text in zip(segments, texts, strict=True)
            ):
                return resource, [part for segment, part in zip(segments, parts, strict=True) if not segment]
        return None

    def template(self, raw_path: bytes) -> str | None:
        """The path template of an actor's resource on this path; None for paths of the runtime, and unknown ones."""
        resource = self.exact.get(raw_path)
        if resource is None and (found := self.find(raw_path)) is not None:
            resource = found[0]
        return resource.path if resource is not None and resource.routes else None
