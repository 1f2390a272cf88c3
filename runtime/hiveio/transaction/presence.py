"""The instances of a log, as they announce themselves in Redis: for people who look, and for no decision.

Each writes every ANNOUNCE_S where it listens and what it is. One that ends removes itself. One that dies is kept for
FORGOTTEN_S, so that a look shows that it is missing.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Iterable
from ipaddress import ip_address

import msgspec
from msgspec import Struct

from hiveio import __version__
from hiveio.config import Settings
from hiveio.errors import HiveError, Unavailable
from hiveio.kafka.threads import blocking
from hiveio.transaction.cache import Cache

ANNOUNCE_S = 10.0
GONE_S = 3 * ANNOUNCE_S  # an instance that has not announced itself for so long is gone, or cannot reach Redis
FORGOTTEN_S = 3_600.0
STOP_S = 1.0  # for the last call

logger = logging.getLogger("hiveio.transaction")


class Announcement(Struct, frozen=True):
    """What an instance says of itself. ``id`` is what it holds leases under; each worker process has its own. ``port``
    is that of its probes and metrics. ``started`` and ``seen`` are seconds since the epoch, by the clock of its
    machine."""

    id: str
    host: str
    port: int
    secure: bool
    version: str
    fingerprint: str
    service: str
    actors: tuple[str, ...]
    started: float
    seen: float


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Announcement)


def announcements(texts: Iterable[bytes]) -> list[Announcement]:
    """Those that this version can read, first the one that was started first."""
    found = []
    for text in texts:
        try:
            found.append(_decoder.decode(text))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return sorted(found, key=lambda each: (each.started, each.id))


class Presence:
    """Announces one instance until it stops. Nothing depends on it, so a Redis that is away is no fault here."""

    def __init__(self, cache: Cache, settings: Settings, id: str, fingerprint: str, actors: Iterable[str]) -> None:
        self._cache, self._settings, self._id = cache, settings, id
        self._fingerprint, self._actors = fingerprint, tuple(sorted(actors))
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(STOP_S):
                await self._cache.withdraw([self._id])
        except (HiveError, TimeoutError):
            pass  # it is forgotten later

    async def _run(self) -> None:
        s, started, tidied = self._settings, time.time(), float("-inf")
        host = await blocking(_address) if ip_address(s.bind).is_unspecified else s.bind
        while True:
            try:
                said = Announcement(
                    id=self._id,
                    host=host,
                    port=s.probes_port,
                    secure=s.secure,
                    version=__version__,
                    fingerprint=self._fingerprint,
                    service=s.service_name,
                    actors=self._actors,
                    started=started,
                    seen=time.time(),
                )
                await self._cache.announce(self._id, _encode(said), int(FORGOTTEN_S))
                if time.monotonic() - tidied > FORGOTTEN_S:
                    await self._tidy()
                    tidied = time.monotonic()
            except Unavailable:
                pass  # readiness and the log say why
            except Exception:
                logger.exception("this instance could not be announced, so `hiveio status` does not show it")
            await asyncio.sleep(ANNOUNCE_S)

    async def _tidy(self) -> None:
        """Remove instances that died long ago, and what nobody can read."""
        found = await self._cache.announced()
        latest = time.time() - FORGOTTEN_S
        fresh = {each.id for each in announcements(found.values()) if each.seen > latest}
        if old := found.keys() - fresh:
            await self._cache.withdraw(sorted(old))


def _address() -> str:
    """The address of this machine as its name has it: in a container the one that others reach."""
    name = socket.gethostname()
    try:
        return socket.gethostbyname(name)
    except OSError:
        return name
