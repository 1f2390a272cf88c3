"""The instances: as they announce themselves in Redis, and what they answer to whoever asks them."""

import asyncio
import math
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from hiveio.metrics import gauges
from hiveio.status.model import Check, Instance
from hiveio.transaction.presence import GONE_S, Announcement

ASK_S = 1.5  # for the next bytes of an answer
MOST_S = 5.0  # for both answers, from whoever sends them slowly
MOST_BYTES = 4_000_000  # of one answer
MOST_ASKED = 100  # services, in one look
AT_ONCE = 20


class _Part(msgspec.Struct):
    """A part of a service in its answer to /readyz?verbose."""

    name: str
    reason: str | None = None
    quarantined: list[dict[str, object]] = []


class _Readiness(msgspec.Struct):
    checks: list[_Part] = []


class Answers(NamedTuple):
    """What a service has answered: its /readyz?verbose, and the numbers of its /metrics by name and labels."""

    ready: bool | None
    checks: list[_Part]
    numbers: Mapping[str, list[tuple[dict[str, str], float]]]
    unreachable: str

    def by_scope(self, name: str) -> dict[int, float]:
        """A gauge with the label ``scope``."""
        found = ((labels.get("scope", ""), value) for labels, value in self.numbers.get(name, ()))
        return {int(scope): value for scope, value in found if scope.isdecimal()}

    def total(self, name: str) -> float | None:
        found = self.numbers.get(name)
        return sum(value for _, value in found) if found else None


def listed(
    announced: Iterable[Announcement],
    named: Iterable[str],
    leads: Mapping[str, list[int]],
    answers: Mapping[str, Answers],
) -> list[Instance]:
    """The instances that announced themselves, and the services that were named by their URL."""
    now = time.time()
    found = []
    for each in announced:
        seen_s = max(0.0, now - each.seen)
        instance = Instance(
            id=each.id,
            url=url_of(each),
            service=each.service,
            version=each.version,
            fingerprint=each.fingerprint,
            actors=list(each.actors),
            up_s=max(0.0, now - each.started),
            seen_s=seen_s,
            gone=seen_s > GONE_S,
            leads=leads.get(each.id, []),
        )
        found.append(_with_answers(instance, answers.get(instance.url)))
    urls = {instance.url for instance in found}
    found += [_with_answers(Instance(id=url, url=url), answers.get(url)) for url in named if url not in urls]
    return found


def url_of(each: Announcement) -> str:
    host = f"[{each.host}]" if ":" in each.host else each.host
    return f"{'https' if each.secure else 'http'}://{host}:{each.port}"


def _with_answers(instance: Instance, answers: Answers | None) -> Instance:
    if answers is None:
        return instance
    instance.ready, instance.unreachable = answers.ready, answers.unreachable
    for check in answers.checks:
        if check.reason:
            instance.not_ready.append(Check(check.name, check.reason))
        instance.quarantined += check.quarantined
    if (in_flight := answers.total("hiveio_commands_in_flight")) is not None:
        instance.commands_in_flight = int(in_flight)
    if (follows := answers.total("hiveio_followed_scopes")) is not None:
        instance.follows = int(follows)
    return instance


async def ask_all(urls: Iterable[str], problem: Callable[[str], None]) -> dict[str, Answers]:
    """Ask the services at these URLs, several at a time; each has MOST_S."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(url: str) -> Answers:
        async with slots:
            try:
                return await asyncio.wait_for(asyncio.to_thread(ask, url), MOST_S)
            except TimeoutError:
                return Answers(None, [], {}, f"{url} did not answer within {MOST_S:g} s")

    every = list(dict.fromkeys(urls))
    if len(every) > MOST_ASKED:
        problem(f"Only {MOST_ASKED} of {len(every)} instances are asked.")
    chosen = every[:MOST_ASKED]
    return dict(zip(chosen, await asyncio.gather(*map(one, chosen)), strict=True))


def ask(url: str) -> Answers:
    """What a service answers. Blocking; after MOST_S it gives up what is still being sent."""
    until = time.monotonic() + MOST_S
    try:
        status, body = _get(url, "/readyz?verbose", until)
        checks = msgspec.json.decode(body, type=_Readiness).checks if body[:1] == b"{" else []
        _, metrics = _get(url, "/metrics", until)
        numbers = {name: _finite(found) for name, found in gauges(metrics.decode("utf-8", "replace")).items()}
        return Answers(status == 200, checks, numbers, "")
    except (OSError, HTTPException, ValueError) as error:  # msgspec's errors are ValueErrors
        return Answers(None, [], {}, f"{url} does not answer: {str(error) or type(error).__name__}")


def _finite(found: list[tuple[dict[str, str], float]]) -> list[tuple[dict[str, str], float]]:
    return [(labels, value) for labels, value in found if math.isfinite(value)]


def _unverified() -> ssl.SSLContext:
    """An instance announces an address, which its certificate does not name. Nothing secret is sent to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _get(url: str, path: str, until: float) -> tuple[int, bytes]:
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise ValueError("it takes http://HOST:PORT")
    connection: HTTPConnection
    if parts.scheme == "https":
        connection = HTTPSConnection(parts.hostname, parts.port, timeout=ASK_S, context=_unverified())
    else:
        connection = HTTPConnection(parts.hostname, parts.port, timeout=ASK_S)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        body = bytearray()
        while part := answer.read1(MOST_BYTES):
            body += part
            if len(body) > MOST_BYTES:
                raise ValueError(f"its answer is larger than {MOST_BYTES} bytes")
            if time.monotonic() > until:
                raise ValueError(f"its answer has not ended within {MOST_S:g} s")
        return answer.status, bytes(body)
    finally:
        connection.close()
