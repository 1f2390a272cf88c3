"""The HTTP edge: request → Envelope → Handler → response.

Paths of actors are matched in front of Starlette, which serves the probes and what matches nothing: an endpoint inside
it costs two thirds more a request. For the same reason a request is counted, timed and bounded right here.
"""

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from time import monotonic
from typing import Any

from hiveio import metrics
from hiveio.conditions import conditions
from hiveio.envelope import Envelope, encode_value
from hiveio.errors import (
    MethodNotAllowed,
    Problem,
    RequestTimeout,
    TooLarge,
    Unavailable,
    Unknown,
    VersionMismatch,
    contained,
)
from hiveio.fault import log_fault
from hiveio.headers import HeaderView, encoded
from hiveio.http.probes import probes
from hiveio.http.problem import CONTENT_TYPE, FAULT, encode_problem
from hiveio.http.request_headers import (
    HeadCheck,
    check_content_coding,
    check_media_type,
    check_repeated,
    idempotency_key,
    sane_request_id,
)
from hiveio.http.routes import Resource, Route, Router, path_text
from hiveio.logs import request_id
from hiveio.service import Service

MOST_CONCURRENT = 1024  # requests in one worker; beyond it 503
AGAIN_S = 1.0  # after which a request that caught its cancellation is cancelled again

Headers = list[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", CONTENT_TYPE.encode())
_CLOSE = (b"connection", b"close")
_NONE: Mapping[str, str] = {}
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

log = logging.getLogger("hiveio.http")


class Edge:
    """The ASGI application of one worker.

    Every request gets an answer within REQUEST_TIMEOUT, or 504; at most ``MOST_CONCURRENT`` are in flight. A client's
    fault is answered with a 4xx problem, and a 500 is a fault of the actor or of ours, logged with its traceback.
    """

    def __init__(self, service: Service, routes: Iterable[Route]) -> None:
        settings = service.settings
        self.service = service
        self.router = Router(routes, settings.ping_url)
        self.body_limit = settings.body_limit
        self.timeout = settings.request_timeout_ms / 1000
        self.requests = 0  # that came in, ever
        self._exact, self._trailing = self.router.exact, self.router.trailing
        # In the order in which they came; all have the same bound, so the first is the first to be overdue.
        self._running: dict[asyncio.Task[Any], float] = {}
        self._overdue: dict[asyncio.Task[Any], tuple[float, int]] = {}  # last cancelled, and how often
        self._tallies: dict[tuple[str, str], metrics.Tally] = {}
        self._route_tallies = {id(route): self._tally(route.method, route.path) for route in self.router.routes}
        self._heads = HeadCheck()
        self._hosts = self._heads.hosts
        self._ids = map((os.urandom(6).hex() + "-{:x}").format, itertools.count(1))
        self._probes = probes(service, self.router)
        self._timer: asyncio.TimerHandle | None = None

    # -- time

    def watch(self) -> None:
        """Bound the time of requests, and publish their counts, from now on; to be called on the loop."""
        self._timer = asyncio.get_running_loop().call_later(min(0.25, max(0.01, self.timeout / 20)), self.watch)
        metrics.flush()
        now = monotonic()
        for task, (at, count) in self._overdue.items():
            if now - at > AGAIN_S:
                log.error("a request goes on after its cancellation, and is cancelled again")
                self._overdue[task] = now, count + 1
                task.cancel()
        latest = now - self.timeout
        while self._running:
            task, started = next(iter(self._running.items()))
            if started > latest:
                break
            # One watchdog for all: asyncio.timeout would cost a timer a request.
            del self._running[task]
            self._overdue[task] = now, 1
            task.cancel()

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
                await self._refuse(problem, scope, send, reference, started)
                return
        resource = self._exact.get(raw_path)
        raw: bytes | list[bytes] = b""
        if resource is None:
            head, _, raw = raw_path.rpartition(b"/")
            resource = self._trailing.get(head)
            if resource is None and (found := self.router.find(raw_path)) is not None:
                resource, raw = found
        if resource is None or not resource.routes:
            await self._serve_ours(scope, receive, send, reference, started)
            return

        method: str = scope["method"]
        route = resource.routes.get(method)
        status = 500
        answer: Headers = [_JSON]
        body = b""
        try:
            if route is None and (method != "HEAD" or (route := resource.routes.get("GET")) is None):
                status = self._without_route(resource, method, answer)
            if route is not None:
                status, body = await self._answer(route, raw, scope, headers, receive, send, answer)
        except Problem as problem:
            status, body = problem.status, encode_problem(problem)
            answer = [_PROBLEM, *encoded(problem.headers)]
        except Gone:
            return
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            log.exception("%s %s: the actor awaited what was cancelled", method, resource.path)
            answer, body = [_PROBLEM], FAULT
        except Exception as error:
            log_fault(log, error, None, what=f"{method} {resource.path}")
            answer, body = [_PROBLEM], FAULT

        length = len(body)
        if status != 204 and status != 304:
            answer.append((b"content-length", b"%d" % length))
        answer.append((b"x-request-id", reference.encode()))
        if self.service.draining:
            answer.append(_CLOSE)
        if method == "HEAD":
            body = b""
        tally = self._route_tallies.get(id(route)) or self._tally(method, resource.path)
        tally.add(status, monotonic() - started)
        await send({"type": "http.response.start", "status": status, "headers": answer})
        await send({"type": "http.response.body", "body": body})

    async def _refuse(self, problem: Problem, scope: Scope, send: Send, reference: str, started: float) -> None:
        body = encode_problem(problem)
        answer = [_PROBLEM, (b"content-length", b"%d" % len(body)), (b"x-request-id", reference.encode())]
        if self.service.draining:
            answer.append(_CLOSE)
        self._tally(scope["method"], "(none)").add(problem.status, monotonic() - started)
        await send({"type": "http.response.start", "status": problem.status, "headers": answer})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(
        self,
        route: Route,
        raw: bytes | list[bytes],
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
        send: Send,
        answer: Headers,
    ) -> tuple[int, bytes]:
        """Status and body of an answer; further headers go to ``answer``. Raises Problem, and what actors raise."""
        if self.service.draining:
            raise Unavailable("this instance is shutting down")
        if len(self._running) >= MOST_CONCURRENT:
            raise Unavailable("too many requests at once")
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = monotonic()
        arrived = False
        envelope: Envelope | None = None
        try:
            if len(headers) < len(scope["headers"]):
                check_repeated(scope["headers"])
            body = b""
            action: Any = None
            if route.reads_body:
                if b"content-encoding" in headers:
                    check_content_coding(b",".join(v for name, v in scope["headers"] if name == b"content-encoding"))
                if route.intake is None:
                    self._check_headers(headers)
                if b"expect" in headers and scope["http_version"] != "1.0":
                    await send({"type": "http.response.informational", "status": 100, "headers": []})
                message = await receive()
                body = message.get("body", b"")
                if route.intake is not None:
                    form = route.intake.form(headers, body)
                    if form is not None and form.split is not None:
                        view = HeaderView(headers, scope["headers"])
                        return await self._take_batch(task, route, form, raw, message, receive, headers, view, answer)
                    self._check_length(headers)
                    action = form and form.action
                if message.get("more_body") or len(body) > self.body_limit or message["type"] == "http.disconnect":
                    body = await self._long_body(message, receive)
            arrived = True
            identifier, parameters = "", _NONE
            if route.by_id:
                identifier = path_text(raw if isinstance(raw, bytes) else raw[0])
            elif route.names:
                parts = [raw] if isinstance(raw, bytes) else raw
                values = {name: path_text(part) for name, part in zip(route.names, parts, strict=True)}
                identifier, parameters = values.pop("id", ""), values
            if action is not None:
                body = action(body, headers)
            payload, meta = route.decode(body, identifier, parameters, scope["query_string"])
            key = headers.get(b"idempotency-key")
            asked = None
            if b"if-match" in headers or b"if-none-match" in headers:
                asked = conditions(scope["headers"])
                if route.reads_body and "If-Match" not in route.about.accepts:
                    raise VersionMismatch(
                        "this service keeps no versions: send the request without If-Match and If-None-Match"
                    )
            envelope = Envelope(
                message=payload,
                id=identifier,
                meta=meta,
                key=None if key is None else idempotency_key(key),
                conditions=asked,
                body=body,
                headers=HeaderView(headers, scope["headers"]),
            )
            outcome = await route.handler(envelope)
        except asyncio.CancelledError:
            if task not in self._overdue:
                raise
            if not arrived:
                raise RequestTimeout("the request did not arrive in full in time") from None
            log.warning("%s %s took longer than REQUEST_TIMEOUT", route.method, route.path)
            raise Unknown("no answer within REQUEST_TIMEOUT; it may have happened, or may happen still") from None
        except BaseException as error:
            raise _fault(error, route, envelope) from None
        finally:
            if self._running.pop(task, None) is None:
                for _ in range(self._overdue.pop(task)[1]):
                    task.uncancel()  # the cancellation was the watchdog's and ends here
        if asked is not None and not route.reads_body:
            if not asked.met(outcome.headers.get("ETag")):
                raise VersionMismatch("what stands here is not at the version that If-Match names")
            if not asked.absent(outcome.headers.get("ETag")):
                answer[:] = encoded(outcome.headers)
                return 304, b""
        if outcome.headers:
            answer.extend(encoded(outcome.headers))
        status = route.success if outcome.status == 200 else outcome.status
        if status == 204:
            return status, b""
        if outcome.encoded is not None:
            return status, outcome.encoded
        try:
            return status, encode_value(outcome.value, meta)
        except Exception as error:  # the actor's reply is nothing that JSON has
            raise _fault(error, route, envelope) from None

    def _check_headers(self, headers: dict[bytes, bytes]) -> None:
        media_type = headers.get(b"content-type")
        if media_type and media_type != b"application/json":
            check_media_type(media_type)
        self._check_length(headers)

    def _check_length(self, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > self.body_limit:
            raise TooLarge(f"the body has more than {self.body_limit} bytes")

    async def _take_batch(
        self,
        task: asyncio.Task[Any],
        route: Route,
        form: Any,
        raw: bytes | list[bytes],
        message: MutableMapping[str, Any],
        receive: Receive,
        headers: dict[bytes, bytes],
        view: HeaderView,
        answer: Headers,
    ) -> tuple[int, bytes]:
        """A batch has REQUEST_TIMEOUT for each step of its way, and not for all of it."""

        def touch() -> None:
            if self._running.pop(task, None) is not None:
                self._running[task] = monotonic()

        common = Envelope(
            message=None,
            id=path_text(raw if isinstance(raw, bytes) else raw[0]) if route.by_id else "",
            key=idempotency_key(headers[b"idempotency-key"]) if b"idempotency-key" in headers else None,
            headers=view,
        )
        answer[:] = [(b"content-type", form.media_type)]
        status, body = await route.intake.take(form, message, receive, headers, common, touch)
        return status, body

    async def _long_body(self, message: MutableMapping[str, Any], receive: Receive) -> bytes:
        """A body that comes in several parts, of which this is the first. Raises TooLarge."""
        chunks: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise Gone
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.body_limit:
                raise TooLarge(f"the body has more than {self.body_limit} bytes")
            if not message.get("more_body"):
                return b"".join(chunks)
            message = await receive()

    def _without_route(self, resource: Resource, method: str, answer: Headers) -> int:
        """A method that the path does not take. OPTIONS is answered for every path."""
        if method != "OPTIONS":
            raise MethodNotAllowed(f"{method} is not taken here", headers={"Allow": resource.allow})
        answer[:] = [(b"allow", resource.allow.encode())]
        return 204

    def _tally(self, method: str, path: str) -> metrics.Tally:
        # The client chooses the method: only known ones become labels.
        label = method if method in METHODS else "other"
        if (tally := self._tallies.get((label, path))) is None:
            tally = self._tallies[label, path] = metrics.Tally(label, path)
        return tally

    async def _serve_ours(self, scope: Scope, receive: Receive, send: Send, reference: str, started: float) -> None:
        """Probes, and 404 for what matches nothing."""
        status = 500

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", reference.encode())]
                if self.service.draining:
                    message["headers"].append(_CLOSE)
            elif scope["method"] == "HEAD":
                message["body"] = b""
            await send(message)

        await self._probes(scope, receive, send_with_id)
        path = scope["path"] if scope["path"] in self._ours else "(none)"
        self._tally(scope["method"], path).add(status, monotonic() - started)

    @property
    def _ours(self) -> set[str]:
        return {path.decode() for path, resource in self._exact.items() if not resource.routes}


def _fault(error: BaseException, route: Route, envelope: Envelope | None) -> Exception:
    """The error, where it is an answer; else the 500 of a fault of the actor, or of ours, which is in the log now."""
    fault = contained(error) if isinstance(error, Problem) else error
    if fault is error and isinstance(error, Problem | Gone):
        return error
    log_fault(log, fault, route.contract, envelope, method=route.method, path=route.path)
    return Problem()


class Gone(Exception):
    """The client hung up before its request had arrived; nobody waits for an answer."""
