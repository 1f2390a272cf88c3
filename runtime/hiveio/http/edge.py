"""The HTTP edge: request → Envelope → Handler → response.

Paths of actors are matched in front of Starlette, which serves the probes and what matches nothing: an endpoint inside
it costs two thirds more a request. For the same reason a request is counted, timed and bounded right here.
"""

import asyncio
import itertools
import logging
import os
from collections.abc import Iterable, Mapping
from functools import partial
from time import monotonic

from hiveio import metrics
from hiveio.conditions import conditions
from hiveio.envelope import Envelope, Outcome, encode_value
from hiveio.errors import (
    Problem,
    RequestTimeout,
    TooLarge,
    Unavailable,
    Unknown,
    VersionMismatch,
    contained,
    detached,
)
from hiveio.fault import log_fault
from hiveio.headers import HeaderView, encoded
from hiveio.http.in_flight import AlreadyAnswered, InFlight, Request
from hiveio.http.intake import ClientDisconnected, read_body
from hiveio.http.probes import method_not_allowed, probes
from hiveio.http.request_headers import (
    HeadCheck,
    check_content_coding,
    check_media_type,
    check_repeated,
    idempotency_key,
    sane_request_id,
)
from hiveio.http.response import JSON, Response
from hiveio.http.routes import Resource, Route, Router, path_text
from hiveio.identity import Identity, check_scopes
from hiveio.logs import request_id
from hiveio.service import Service
from hiveio.types import App, Message, Receive, Scope, Send

_JSON = (b"content-type", JSON)
_CLOSE = (b"connection", b"close")
_NONE: Mapping[str, str] = {}
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

logger = logging.getLogger("hiveio.http")


class Edge:
    """The ASGI application of one worker.

    Every request gets an answer within REQUEST_TIMEOUT, or 504; at most ``in_flight.MAX_REQUESTS`` are carried out at
    once. A client's fault is answered with a 4xx problem, and a 500 is a fault of the actor or of ours, logged with its
    traceback.
    """

    def __init__(self, service: Service, routes: Iterable[Route]) -> None:
        settings = service.settings
        self.service = service
        self.router = Router(routes, settings.ping_url)
        self.body_limit = settings.body_limit
        self.timeout = settings.request_timeout_ms / 1000
        self.requests = 0  # that have come in
        self._exact, self._trailing = self.router.exact, self.router.trailing
        self._in_flight = InFlight(self.timeout, self._give_up)
        self._metrics: dict[tuple[str, str], metrics.RequestMetrics] = {}
        self._route_metrics = {id(route): self._metrics_of(route.method, route.path) for route in self.router.routes}
        self._identify = service.authenticator.identify if service.authenticator is not None else None
        self._heads = HeadCheck()
        self._hosts = self._heads.hosts
        self._ids = map((os.urandom(6).hex() + "-{:x}").format, itertools.count(1))
        self._probes = probes(service, self.router)
        self._beside_actors = self._probes if settings.admin_port is None else probes(service, self.router, ping=True)
        self._timer: asyncio.TimerHandle | None = None

    # -- time

    def watch(self) -> None:
        """Bound the time of requests, and publish their counts, from now on; to be called on the loop."""
        self._timer = asyncio.get_running_loop().call_later(min(0.25, max(0.01, self.timeout / 20)), self.watch)
        metrics.flush()
        self._in_flight.check()

    async def _give_up(self, request: Request) -> None:
        """Answer a request whose actor catches its cancellation. It is cancelled again until it ends."""
        response = Response.of_problem(_outcome_unknown())
        if not self.service.draining:
            response.headers.append(_CLOSE)  # another request on this connection would wait for the end of this one
        self._route_metrics[id(request.route)].add(response.status, monotonic() - request.started)
        await self._send(response, request.method, request.reference, request.send)

    @property
    def in_flight(self) -> int:
        """Requests of actors that are carried out now."""
        return len(self._in_flight)

    def unwatch(self) -> None:
        if self._timer:
            self._timer.cancel()
        metrics.flush()

    # -- one request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
            return
        started = monotonic()
        self.requests += 1
        raw_path: bytes = scope["raw_path"]
        # Our own servers have made it already; others, as in tests, do not know of it.
        headers: dict[bytes, bytes] = scope["fields"] if "fields" in scope else dict(scope["headers"])
        given = headers.get(b"x-request-id")
        reference = (sane_request_id(given) if given else None) or next(self._ids)
        request_id.set(reference)

        if headers.get(b"host") not in self._hosts or b"expect" in headers:
            try:
                self._heads.check(headers, scope["headers"], older=scope["http_version"] == "1.0")
            except Problem as problem:
                self._metrics_of(scope["method"], "(none)").add(problem.status, monotonic() - started)
                await self._send(Response.of_problem(problem), scope["method"], reference, send)
                return
        resource = self._exact.get(raw_path)
        raw: bytes | list[bytes] = b""
        if resource is None:
            head, _, raw = raw_path.rpartition(b"/")
            resource = self._trailing.get(head)
            if resource is None and (found := self.router.find(raw_path)) is not None:
                resource, raw = found
        if resource is None or not resource.routes:
            await self._serve_ours(self._beside_actors, scope, receive, send, reference, started)
            return

        method: str = scope["method"]
        route = resource.routes.get(method)
        try:
            if route is None and (method != "HEAD" or (route := resource.routes.get("GET")) is None):
                response = _without_route(resource, method)
            else:
                request = Request(started, route, method, reference, send)
                response = await self._respond(request, raw, scope, headers, receive)
        except Problem as problem:
            response = Response.of_problem(detached(problem))
        except ClientDisconnected:
            return
        except AlreadyAnswered as late:
            await asyncio.shield(late.answering)
            return
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            logger.exception("%s %s: the actor awaited a task that was cancelled", method, resource.path)
            response = Response.of_fault()
        except Exception as error:
            log_fault(logger, error, None, what=f"{method} {resource.path}")
            response = Response.of_fault()
        counted = self._route_metrics.get(id(route)) or self._metrics_of(method, resource.path)
        counted.add(response.status, monotonic() - started)
        await self._send(response, method, reference, send)

    async def _send(self, response: Response, method: str, reference: str, send: Send) -> None:
        status, headers, body = response.status, response.headers, response.body
        if status != 204 and status != 304:
            headers.append((b"content-length", b"%d" % len(body)))
        headers.append((b"x-request-id", reference.encode()))
        if self.service.draining:
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})

    async def _respond(
        self,
        request: Request,
        raw: bytes | list[bytes],
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
    ) -> Response:
        """Carry out one request of an actor. Raises Problem, AlreadyAnswered, ClientDisconnected."""
        if self.service.draining:
            raise Unavailable("This instance is shutting down. Try again.")
        self._in_flight.begin(request)
        route = request.route
        arrived = False
        envelope: Envelope | None = None
        try:
            if len(headers) < len(scope["headers"]):
                check_repeated(scope["headers"])
            identity: Identity | None = None
            if self._identify is not None:  # before the body is read, so that it is refused without
                identity = await self._identify(headers.get(b"authorization"))
                if route.requires:
                    check_scopes(route.requires, identity)
            body = b""
            make_envelope = None
            if route.reads_body:
                if b"content-encoding" in headers:
                    check_content_coding(b",".join(v for name, v in scope["headers"] if name == b"content-encoding"))
                if route.intake is None:
                    if (media_type := headers.get(b"content-type")) and media_type != JSON:
                        check_media_type(media_type)
                    self._check_length(headers)
                if b"expect" in headers and scope["http_version"] != "1.0":
                    await request.send({"type": "http.response.informational", "status": 100, "headers": []})
                message = await receive()
                body = message.get("body", b"")
                if route.intake is not None:
                    form = route.intake.form(headers, body)
                    if form is not None and form.take_batch is not None:
                        common = Envelope(
                            message=None,
                            id=path_text(raw if isinstance(raw, bytes) else raw[0]) if route.by_id else "",
                            key=idempotency_key(headers[b"idempotency-key"]) if b"idempotency-key" in headers else None,
                            headers=HeaderView(headers, scope["headers"]),
                            identity=identity,
                        )
                        # A batch has REQUEST_TIMEOUT for each step of its way, and not for all of it.
                        progressed = partial(self._in_flight.progressed, request)
                        return await form.take_batch(message, receive, headers, common, progressed)
                    self._check_length(headers)
                    make_envelope = form and form.envelope
                if message.get("more_body") or len(body) > self.body_limit or message["type"] == "http.disconnect":
                    body = await read_body(message, receive, self.body_limit)
            arrived = True
            identifier, parameters = "", _NONE
            if route.by_id:
                identifier = path_text(raw if isinstance(raw, bytes) else raw[0])
            elif route.names:
                parts = [raw] if isinstance(raw, bytes) else raw
                values = {name: path_text(part) for name, part in zip(route.names, parts, strict=True)}
                identifier, parameters = values.pop("id", ""), values
            if make_envelope is not None:
                body = make_envelope(body, headers)
            payload, meta = route.decode(body, identifier, parameters, scope["query_string"])
            key = headers.get(b"idempotency-key")
            asked = None
            if b"if-match" in headers or b"if-none-match" in headers:
                asked = conditions(scope["headers"])
                if route.reads_body and "If-Match" not in route.about.accepts:
                    raise VersionMismatch(
                        "This service keeps no versions. Send the request without If-Match and If-None-Match."
                    )
            envelope = Envelope(
                message=payload,
                id=identifier,
                meta=meta,
                key=None if key is None else idempotency_key(key),
                conditions=asked,
                body=body,
                headers=HeaderView(headers, scope["headers"]),
                identity=identity,
            )
            outcome = await route.handler(envelope)
        except asyncio.CancelledError:
            if not request.cancels:
                raise
            if not arrived:
                raise RequestTimeout("The request did not arrive in full in time.") from None
            logger.warning("%s %s took longer than REQUEST_TIMEOUT", route.method, route.path)
            raise _outcome_unknown() from None
        except BaseException as error:
            raise _fault(error, route, envelope) from None
        finally:
            self._in_flight.end(request)
        return _response(route, envelope, outcome)

    def _check_length(self, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > self.body_limit:
            raise TooLarge(f"The body has more than {self.body_limit} bytes.")

    def _metrics_of(self, method: str, path: str) -> metrics.RequestMetrics:
        # The client chooses the method: only known ones become labels.
        label = method if method in METHODS else "other"
        if (counted := self._metrics.get((label, path))) is None:
            counted = self._metrics[label, path] = metrics.RequestMetrics(label, path)
        return counted

    async def admin(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application of ADMIN_PORT: probes, metrics and documents, and nothing of actors."""
        if scope["type"] != "http":
            return
        started = monotonic()
        self.requests += 1
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        reference = (sane_request_id(given) if given else None) or next(self._ids)
        request_id.set(reference)
        try:
            self._heads.check(headers, scope["headers"], older=scope["http_version"] == "1.0")
        except Problem as problem:
            await self._send(Response.of_problem(problem), scope["method"], reference, send)
            return
        await self._serve_ours(self._probes, scope, receive, send, reference, started)

    async def _serve_ours(
        self, served: App, scope: Scope, receive: Receive, send: Send, reference: str, started: float
    ) -> None:
        """Probes, and 404 for what matches nothing."""
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", reference.encode())]
                if self.service.draining:
                    message["headers"].append(_CLOSE)
            elif scope["method"] == "HEAD":
                message["body"] = b""
            await send(message)

        await served(scope, receive, send_with_id)
        path = scope["path"] if scope["path"] in self._ours else "(none)"
        self._metrics_of(scope["method"], path).add(status, monotonic() - started)

    @property
    def _ours(self) -> set[str]:
        return {path.decode() for path, resource in self._exact.items() if not resource.routes}


def _without_route(resource: Resource, method: str) -> Response:
    """Answer a method that the path does not take. OPTIONS is answered for every path. Raises MethodNotAllowed."""
    if method != "OPTIONS":
        raise method_not_allowed(method, resource.allow)
    return Response(204, [(b"allow", resource.allow.encode())])


def _response(route: Route, envelope: Envelope, outcome: Outcome) -> Response:
    """The response for an outcome, under the conditions of a GET. Raises Problem."""
    asked = envelope.conditions
    if asked is not None and not route.reads_body:
        tag = outcome.headers.get("ETag")
        if not asked.met(tag, exists=True):
            raise VersionMismatch("The resource is not at a version that If-Match names.")
        if not asked.absent(tag, exists=True):
            return Response(304, encoded(outcome.headers))
    headers = [_JSON, *encoded(outcome.headers)] if outcome.headers else [_JSON]
    status = route.success if outcome.status == 200 else outcome.status
    if status == 204:
        return Response(status, headers)
    if outcome.encoded is not None:
        return Response(status, headers, outcome.encoded)
    try:
        return Response(status, headers, encode_value(outcome.value, envelope.meta))
    except Exception as error:  # the actor's reply cannot be written as JSON
        raise _fault(error, route, envelope) from None


def _outcome_unknown() -> Unknown:
    text = "There was no answer within REQUEST_TIMEOUT. The request may have been carried out, or may still be."
    return Unknown(text)


def _fault(error: BaseException, route: Route, envelope: Envelope | None) -> Exception:
    """The error, where it is an answer; else a 500 for a fault of the actor or of ours. A fault is written to the log,
    also where the answer is that another instance may have carried the request out."""
    fault = contained(error) if isinstance(error, Problem) else error
    answer: Exception = Problem()
    if fault is error and isinstance(error, Problem | ClientDisconnected):
        cause = error.__cause__ if isinstance(error, Unknown) else None
        if cause is None or isinstance(cause, Problem):
            return error
        answer, fault = error, cause
    log_fault(logger, fault, route.contract, envelope, method=route.method, path=route.path)
    detached(fault)
    return answer
