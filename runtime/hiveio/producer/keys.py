"""Idempotency-Keys of a producer: a repeat inside the window is answered as the first was, and stored once."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Coroutine
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from hiveio.config import Settings
from hiveio.envelope import Envelope, Outcome, encode_json, encode_value
from hiveio.errors import Conflict, KeyReused, Unavailable, Unknown
from hiveio.redis import Script, connect

_CLAIM, _KEEP = Script("claim", "hiveio.producer"), Script("keep", "hiveio.producer")
ATTEMPTS, FIRST_S = 8, 0.1  # to store the outcome of a key; the wait doubles, with jitter: half a minute

logger = logging.getLogger("hiveio.producer")


class Claim(NamedTuple):
    """A key that this request holds until its answer is kept or the key is released. ``token`` is the id of the
    request's records; ``prefix`` belongs to the keys of the topic that they are written to."""

    prefix: str
    name: bytes
    token: str
    hash: str


class Keys:
    """The keys and their answers, in the Redis of CACHE_URL, for IDEMPOTENCY_TIME.

    A key is claimed before its event goes to Kafka, and its answer is kept once it is known. In between, and for the
    whole window if no answer comes (the process was killed), a repeat is not stored: it gets 409, then 504. A refusal
    releases the key.
    """

    name = "keys"

    def __init__(self, settings: Settings) -> None:
        self._redis = connect(settings.cache_url)
        self._probe = Claim(f"hive:keys:{{{settings.client_id}}}:", b"ready", "ready", "")
        self._window_ms = settings.idempotency_time_s * 1000
        self._timeout_ms = settings.request_timeout_ms
        self._later: set[asyncio.Task[None]] = set()

    # -- component

    async def start(self) -> None:
        """Raises Unsafe for a Redis that may evict keys."""
        try:
            await self._redis.refuse_eviction()
        except Unavailable:
            pass  # readiness says so

    async def stop(self) -> None:
        if self._later:
            await asyncio.wait(self._later, timeout=1.0)
        await self._redis.stop()

    async def ready(self) -> str | None:
        """None if Redis keeps an entry, always the same one: a PING says nothing about rights, memory or replicas."""
        try:
            await self._store(self._probe, b"P\nready\n")
        except Unavailable as error:
            return str(error)
        return None

    def alive(self) -> bool:
        return True

    # -- keys

    async def claim(self, topic: str, topic_id: str, actor: str, envelope: Envelope, token: str) -> Claim | Outcome:
        """The claim of this request, or the answer that the first one got. A key belongs to one topic of one cluster,
        because an answer says what is stored there.

        Raises Conflict (409) while the first is being handled, Unknown (504) with its id if it ended without an answer,
        KeyReused (422) if its body was another, Unavailable (503).
        """
        # Each caller has keys of its own: nobody reads, or spoils, the answer of another one by guessing a key.
        caller = () if envelope.identity is None else (envelope.identity.subject,)
        name = encode_json((actor, envelope.id, envelope.key, *caller))
        prefix = f"hive:keys:{{{topic}/{topic_id}}}:"
        claim = Claim(prefix, name, token, blake2b(envelope.body, digest_size=8).hexdigest())
        if self._probe.prefix != prefix:
            self._probe = self._probe._replace(prefix=prefix)  # readiness asks the shard that has the keys
        try:
            _, found = await self._redis.call(_CLAIM, prefix, (self._window_ms,), claim[1:])
        except (Unavailable, asyncio.CancelledError):
            self.later(self._retry_store(claim, b""))  # it may have been claimed all the same
            raise
        if not found:
            return claim
        entry, age_ms = found
        state, first, hash, *answer = entry.split(b"\n", 4)
        if hash.decode() != claim.hash:
            raise KeyReused("This Idempotency-Key was used before with another body.")
        if state == b"D":
            status, headers = msgspec.json.decode(answer[0], type=tuple[int, dict[str, str]])
            return Outcome(status=status, headers=headers, encoded=answer[1])
        if 0 <= age_ms < self._timeout_ms:  # below 0, the clock of Redis was set back since
            raise Conflict("A request with this Idempotency-Key is still being handled.", headers={"Retry-After": "1"})
        raise Unknown(
            "The first request with this Idempotency-Key has no answer. It may be stored, and is not sent again.",
            id=first.decode(),
        )

    async def keep(self, claim: Claim, outcome: Outcome, meta: msgspec.Raw | None) -> None:
        """Remember the answer of a claimed key."""
        body = outcome.encoded if outcome.encoded is not None else encode_value(outcome.value, meta)
        head = f"D\n{claim.token}\n{claim.hash}\n".encode()
        await self._store_or_retry(claim, b"%b%b\n%b" % (head, encode_json((outcome.status, outcome.headers)), body))

    async def release(self, claim: Claim) -> None:
        """Release a key: nothing was sent with it."""
        await self._store_or_retry(claim, b"")

    def _store(self, claim: Claim, entry: bytes) -> Awaitable[Any]:
        return self._redis.call(_KEEP, claim.prefix, (self._window_ms,), (claim.name, claim.token, entry))

    async def _store_or_retry(self, claim: Claim, entry: bytes) -> None:
        try:
            await self._store(claim, entry)
        except Unavailable:
            self.later(self._retry_store(claim, entry))  # the answer of the request does not wait for it

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do work for which no answer waits; ``stop`` waits for it."""
        task = asyncio.create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _retry_store(self, claim: Claim, entry: bytes) -> None:
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(FIRST_S * 2**attempt * random.uniform(0.5, 1.0))
            try:
                await self._store(claim, entry)
                return
            except Unavailable:
                continue
        logger.error("the Idempotency-Key %s stays claimed: Redis does not answer", claim.name.decode())
