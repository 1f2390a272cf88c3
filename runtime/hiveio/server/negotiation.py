"""Finds out which HTTP a new connection speaks, where a service takes both."""

import asyncio
from typing import Any, cast

from hiveio.server.http2 import Host, Http2Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class ProtocolNegotiator(asyncio.Protocol):
    """A new connection, until it is known which HTTP it speaks: by ALPN over TLS, by its first bytes without."""

    busy = False
    progress = 0

    def __init__(self, worker: Host, http1: Any) -> None:
        self.worker = worker
        self._http1 = http1
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        if secure := transport.get_extra_info("ssl_object"):
            self._become(Http2Connection if secure.selected_alpn_protocol() == "h2" else self._http1)
            return
        if not self.worker.admit(self):
            self.worker.connections.remove(self)
            self._become(self._http1)  # which answers so

    def data_received(self, data: bytes) -> None:
        self._read += data
        if self._read.startswith(PREFACE):
            self._become(Http2Connection)
        elif not PREFACE.startswith(self._read):
            self._become(self._http1)

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)

    def _become(self, kind: Any) -> None:
        protocol = kind(self.worker)
        if self in self.worker.connections:  # its room is the protocol's, however many connections there are now
            self.worker.connections.remove(self)
            self.worker.connections.add(protocol)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if self._read:
            protocol.data_received(self._read)

    def drain(self) -> None:
        """Nothing: the client learns of the end from its first answer."""

    def close(self) -> None:
        self.transport.close()
