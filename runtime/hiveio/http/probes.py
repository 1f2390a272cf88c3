"""The paths of the runtime itself (probes, metrics, descriptions), and 404 for what matches nothing, in Starlette."""

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as StarletteRoute

from hiveio import metrics
from hiveio.errors import MethodNotAllowed, NotFound, Problem
from hiveio.http import asyncapi
from hiveio.http.openapi import document
from hiveio.http.problem import CONTENT_TYPE, FAULT, encode_problem
from hiveio.http.routes import Router
from hiveio.service import Service


def probes(service: Service, router: Router, *, ping: bool = False) -> Starlette:
    """All paths of the runtime; with ``ping`` the others are elsewhere, on ADMIN_PORT."""
    described: dict[str, Any] = {}

    async def livez(request: Request) -> Response:
        if dead := service.dead():
            return JSONResponse({"alive": False, "stuck": dead}, 503)
        return PlainTextResponse("alive")

    async def readyz(request: Request) -> Response:
        checks = await service.readiness()
        ready = not any(checks.values())
        if "verbose" not in request.query_params:
            return PlainTextResponse("ready" if ready else "not ready", 200 if ready else 503)
        details = service.details()
        listed = [
            {"name": name, "ready": not reason, "reason": reason} | details.get(name, {})
            for name, reason in checks.items()
        ]
        return JSONResponse({"ready": ready, "checks": listed}, 200 if ready else 503)

    async def pong(request: Request) -> Response:
        return PlainTextResponse("pong")

    async def numbers(request: Request) -> Response:
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE_LATEST)

    async def openapi(request: Request) -> Response:
        if not described:
            described.update(document(router.routes, secured=service.authenticator is not None, **service.about()))
        return JSONResponse(described)

    async def channels(request: Request) -> Response:
        if not service.channels:
            raise HTTPException(404)
        return JSONResponse(asyncapi.document(service.channels, service.settings, **service.about()))

    async def problem(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return Response(FAULT, 500, media_type=CONTENT_TYPE)
        found: Problem
        if error.status_code == 405:
            allow = (error.headers or {}).get("Allow", "GET, HEAD")
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": allow})
            found = method_not_allowed(request.method, allow)
        elif request.method == "OPTIONS" and request.scope["path"] == "*":
            return Response(status_code=204, headers={"Allow": "GET, HEAD, OPTIONS, POST"})  # the service as a whole
        else:
            found = NotFound("There is no resource at this path.")
        return Response(encode_problem(found), found.status, headers=found.headers, media_type=CONTENT_TYPE)

    endpoints = {
        "/livez": livez,
        "/readyz": readyz,
        "/metrics": numbers,
        "/openapi.json": openapi,
        "/asyncapi.json": channels,
    }
    if ping:
        endpoints = {}
    endpoints[service.settings.ping_url] = pong
    application = Starlette(
        routes=[StarletteRoute(path, endpoint) for path, endpoint in endpoints.items()],
        exception_handlers={HTTPException: problem, Exception: problem},
    )
    application.router.redirect_slashes = False  # to wherever the Host header says, or into a 500
    return application


def method_not_allowed(method: str, allow: str) -> MethodNotAllowed:
    text = f"{method} is not allowed on this path. The Allow header lists the methods that are."
    return MethodNotAllowed(text, headers={"Allow": allow})
