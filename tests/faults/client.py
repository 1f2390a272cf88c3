"""A small HTTP/1.1 client over asyncio streams: keep-alive, one request at a time, cheap enough for 64 of them."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        try:
            return json.loads(self.body) if self.body else None
        except ValueError:
            return self.body.decode("utf-8", "replace")


class NotSent(Exception):
    """Nobody listens: the request certainly did not arrive."""


class Lost(Exception):
    """The connection broke, or no answer came in time: what became of the request is unknown."""


class Connection:
    """To one port. Opened when it is used, opened again when it broke."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 15.0,
    ) -> Answer:
        try:
            async with asyncio.timeout(timeout_s):
                if self._streams is not None and self._streams[0].at_eof():
                    self.close()  # the one that served it has ended since
                if self._streams is None:
                    self._streams = await self._connect()
                return await self._exchange(*self._streams, method, path, body, headers or {})
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from None
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            raise NotSent(str(error)) from None

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        body: Any,
        headers: Mapping[str, str],
    ) -> Answer:
        payload = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(payload)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + payload)
        status, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        given = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
        answer = Answer(
            int(status.split(" ")[1]), given, await reader.readexactly(int(given.get("content-length", "0")))
        )
        if given.get("connection", "").lower() == "close":
            self.close()
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
