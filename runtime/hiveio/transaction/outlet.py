"""The topics to which an instance publishes what its log has accepted, and the clients for each."""

from collections.abc import Awaitable
from typing import Any

from hiveio.config import Settings
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.session_clients import SessionClients
from hiveio.kafka.tail import Tail
from hiveio.kafka.threads import blocking
from hiveio.transaction.cache import Cache
from hiveio.transaction.publisher import Kind, Publisher
from hiveio.transaction.scope import Scope
from hiveio.types import Observer


class Outlet:
    """One topic, and the clients that read and write it."""

    def __init__(self, settings: Settings, topic: str, kind: Kind, observer: Observer | None = None) -> None:
        """``observer`` is called for each record that is published and gives the headers to send."""
        self.topic, self.reader = topic, LogReader(settings, topic)
        self._kind, self._observer = kind, observer
        # The publishers follow the log with a tail of their own while they are behind their scopes.
        self._tail = Tail(settings, settings.log_topic)
        self._clients = SessionClients(settings, f"publisher {topic}")
        self._log_topic = settings.log_topic

    def start(self) -> None:
        self._tail.start()

    def publisher(self, scope: Scope, cache: Cache) -> Publisher:
        """A publisher of a scope."""
        return Publisher(self._kind, self.topic, scope, cache, self._tail, self.reader, self._clients, self._observer)

    def renew(self, topics: set[str]) -> Awaitable[Any]:
        """Renew the clients that work on these topics. The reader is renewed by the call that is returned."""
        if self.topic in topics:
            self._clients.renew()
        if self._log_topic in topics:
            self._tail.renew()
        return blocking(self.reader.renew)

    def alive(self) -> bool:
        return self._tail.alive()

    async def stop(self) -> None:
        await self._tail.stop()
        await self._clients.stop()
        await blocking(self.reader.close)
