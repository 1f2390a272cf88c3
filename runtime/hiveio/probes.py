"""The paths of the runtime itself: probes, metrics, and the descriptions of what stands here."""

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from hiveio import asyncapi, metrics, openapi
from hiveio.envelope import Envelope, Outcome
from hiveio.errors import NotFound
from hiveio.routes import Route, query_parameters
from hiveio.service import Service

TEXT = "text/plain; charset=utf-8"


def probes(service: Service, described: Sequence[Route]) -> list[Route]:
    """GET on each of them; ``described`` are the routes of /openapi.json."""

    async def livez(envelope: Envelope) -> Outcome:
        if dead := service.dead():
            return Outcome({"alive": False, "stuck": dead}, 503)
        return _text(b"alive")

    async def readyz(envelope: Envelope) -> Outcome:
        checks = await service.readiness()
        ready = not any(checks.values())
        status = 200 if ready else 503
        if "verbose" not in envelope.message:
            return _text(b"ready" if ready else b"not ready", status)
        details = service.details()
        listed = [
            {"name": name, "ready": not reason, "reason": reason} | details.get(name, {})
            for name, reason in checks.items()
        ]
        return Outcome({"ready": ready, "checks": listed}, status)

    async def ping(envelope: Envelope) -> Outcome:
        return _text(b"pong")

    async def numbers(envelope: Envelope) -> Outcome:
        return _text(metrics.exposition(), media_type=metrics.CONTENT_TYPE_LATEST)

    describe = functools.cache(lambda: openapi.document(described))

    async def document(envelope: Envelope) -> Outcome:
        return Outcome(describe())

    async def channels(envelope: Envelope) -> Outcome:
        if not service.channels:
            raise NotFound("this service touches no topic")
        return Outcome(asyncapi.document(service.channels, service.settings))

    endpoints: dict[str, Callable[[Envelope], Awaitable[Outcome]]] = {
        "/livez": livez,
        "/readyz": readyz,
        "/metrics": numbers,
        "/openapi.json": document,
        "/asyncapi.json": channels,
        service.settings.ping_url: ping,
    }
    return [
        Route(method="GET", path=path, decode=_parameters, handler=handler, ours=True, probe=True)
        for path, handler in endpoints.items()
    ]


def _parameters(body: bytes, id: str, names: Mapping[str, str], query: bytes) -> tuple[Any, None]:
    return query_parameters(query), None


def _text(body: bytes, status: int = 200, media_type: str = TEXT) -> Outcome:
    return Outcome(status=status, headers={"content-type": media_type}, encoded=body)
