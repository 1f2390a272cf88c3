"""Authenticates requests: keeps the keys of the issuer, and the tokens that they have verified."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from urllib.parse import urlsplit

from hiveio import outages
from hiveio.auth.fetching import Fetcher, FetchFailed
from hiveio.auth.keys import KeySet, NoKeys
from hiveio.auth.tokens import BadToken, Head, head_of, verified
from hiveio.config import Settings
from hiveio.errors import Unauthorized, Unavailable
from hiveio.identity import Identity
from hiveio.metrics import Counter, Gauge

REFRESH_S = 300.0  # between two looks at the keys
AGAIN_S = 10.0  # at least between two looks that tokens with an unknown key cause
FIRST_RETRY_S, MAX_RETRY_S = 0.5, 30.0  # after a look that failed; the time doubles, with jitter
MAX_AGE_S = 86_400.0  # of the keys, while the issuer cannot be reached; then no token counts
MAX_WAITING = 64  # requests that wait for a look; others are answered 503 at once
MAX_VERIFIED = 4_096  # tokens that are remembered

logger = logging.getLogger("hiveio.auth")

_refused = Counter("hiveio_auth_refused_total", "Requests without a token that counts", ["reason"])
_fetched = Gauge(
    "hiveio_auth_keys_fetched_timestamp_seconds",
    "When a worker has last fetched the keys of the issuer; of several workers the earliest",
    multiprocess_mode="livemin",
)


class Authenticator:
    """Verifies the bearer tokens of requests. It is a Component of the service.

    The keys are fetched at the start, every REFRESH_S, and when a token names a key that is not known: then at most
    every AGAIN_S, whatever clients send. While the issuer is away, known keys go on to count for MAX_AGE_S. A key that
    the issuer withdraws counts no longer once it is fetched, nor do the tokens that it has signed.
    """

    name = "issuer's keys"

    def __init__(self, settings: Settings, fetch: Callable[[], Awaitable[bytes]] | None = None) -> None:
        """``fetch`` gives the document with the keys, or raises FetchFailed; otherwise it is that of AUTH_JWKS_URL."""
        self._issuer, self._audience = settings.auth_issuer, settings.auth_audience
        self._fetch_document = fetch or Fetcher(settings.auth_jwks_url).fetch
        self._wait_s = settings.request_timeout_ms / 2_000
        self._outage = outages.of(f"the key server {urlsplit(settings.auth_jwks_url).hostname}")
        self._keys: KeySet | None = None
        self._verified: dict[bytes, tuple[Identity, float]] = {}  # by the hash of a token, with the end of its time
        self._fetched_at = self._asked_at = -MAX_AGE_S
        self._failure = "the keys are not fetched yet"  # why the last look gave none; "" if it gave some
        self._look: asyncio.Task[None] | None = None
        self._waiting = 0
        self._loop: asyncio.Task[None] | None = None

    # -- component

    async def start(self) -> None:
        self._loop = asyncio.create_task(self._keep_fresh())

    async def stop(self) -> None:
        for task in (self._loop, self._look):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))

    async def ready(self) -> str | None:
        if self._usable() is None:
            return self._failure or f"the keys of the issuer are older than {MAX_AGE_S / 3600:.0f} h"
        return None

    def alive(self) -> bool:
        return self._loop is None or not self._loop.done()

    # -- requests

    async def identify(self, authorization: bytes | None) -> Identity:
        """Who sends a request with this Authorization. Raises Unauthorized (401), Unavailable (503)."""
        try:
            return await self._identify(_token(authorization))
        except Unauthorized as error:
            _refused.labels(error.reason if isinstance(error, BadToken) else "missing").inc()
            raise

    async def _identify(self, token: bytes) -> Identity:
        digest = sha256(token).digest()
        known = self._verified.get(digest)
        if known is not None and time.time() < known[1] and self._usable() is not None:
            return known[0]
        head = head_of(token)
        identity, until = await self._verify(token, head)
        self._verified.pop(digest, None)
        if len(self._verified) >= MAX_VERIFIED:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = identity, until
        return identity

    async def _verify(self, token: bytes, head: Head) -> tuple[Identity, float]:
        keys = self._usable()
        if keys is None:
            raise self._unavailable()
        try:
            return self._verify_with(keys, token, head)
        except _UnknownKey as unknown:
            await self._look_again()
            newer = self._usable()
            if newer is None or self._failure or self._look is not None:  # nobody can say yet
                raise self._unavailable() from None
            if newer is keys:
                raise unknown.problem from None
        try:
            return self._verify_with(newer, token, head)
        except _UnknownKey as unknown:
            raise unknown.problem from None

    def _verify_with(self, keys: KeySet, token: bytes, head: Head) -> tuple[Identity, float]:
        """Raises BadToken, or _UnknownKey where newer keys may say otherwise."""
        key = keys.find(head.kid, head.alg)
        if key is None:
            raise _UnknownKey(BadToken("unknown key", "The issuer has no such key as the token names."))
        try:
            return verified(token, head, key, self._issuer, self._audience)
        except BadToken as problem:
            if problem.reason == "signature" and head.kid is None:  # it does not say which key it means
                raise _UnknownKey(problem) from None
            raise

    def _unavailable(self) -> Unavailable:
        return Unavailable("Tokens cannot be verified at the moment. Try again.", inside=self._failure or "old keys")

    # -- keys

    def _usable(self) -> KeySet | None:
        return self._keys if time.monotonic() - self._fetched_at < MAX_AGE_S else None

    async def _look_again(self) -> None:
        """Fetch the keys because of a token, if that is due, and wait until a look that is under way ends, or until it
        has taken too long for a request."""
        if self._look is None and time.monotonic() - self._asked_at < AGAIN_S:
            return
        if self._waiting >= MAX_WAITING:
            return
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await asyncio.shield(self._looking())
        except TimeoutError:
            pass  # the request is to be answered before its own time is over
        finally:
            self._waiting -= 1

    def _looking(self) -> "asyncio.Task[None]":
        """The look at the keys that is under way, or a new one."""
        if self._look is None:
            self._asked_at = time.monotonic()
            self._look = asyncio.create_task(self._fetch())
        return self._look

    async def _keep_fresh(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            await asyncio.shield(self._looking())
            if self._failure:
                pause_s, retry_s = retry_s, min(2 * retry_s, MAX_RETRY_S)
            else:
                pause_s, retry_s = REFRESH_S, FIRST_RETRY_S
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.0))

    async def _fetch(self) -> None:
        try:
            keys = KeySet(await self._fetch_document())
        except Exception as error:  # whatever it is, known keys go on to count, and the next look comes
            expected = isinstance(error, FetchFailed | NoKeys)
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            self._failure = f"{self._outage.backend} gives no keys: {reason}"
            self._outage.away(reason)
            return
        finally:
            self._look = None
        self._outage.back()
        self._failure, self._fetched_at = "", time.monotonic()
        _fetched.set_to_current_time()
        if keys != self._keys:
            logger.info("the keys of the issuer are here", extra={"keys": keys.ids, "changed": self._keys is not None})
            self._keys = keys
            self._verified.clear()


class _UnknownKey(Exception):
    def __init__(self, problem: BadToken) -> None:
        self.problem = problem


def _token(authorization: bytes | None) -> bytes:
    """The token of ``Bearer <token>``. Raises Unauthorized, with a challenge that names no error (RFC 6750)."""
    scheme, _, token = (authorization or b"").strip().partition(b" ")
    if scheme.lower() != b"bearer":
        raise Unauthorized("The request has no bearer token. Send it as Authorization: Bearer <token>.")
    return token.strip()
