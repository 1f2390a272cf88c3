"""The bodies of requests: the framing of chunks (RFC 9112, section 7.1), and the rest of a body that nobody takes.

gunicorn's parser skips trailers without a check, and moves its whole buffer for each chunk: a body of small chunks
would stop the loop for seconds.
"""

import asyncio
import re

from hiveio.types import Receive

MAX_DISCARDED = 16 << 20  # bytes of a body that nobody takes, read on so that the client sees its answer
DISCARD_S = 2  # for them
MAX_LINE = 4_096  # bytes of the line with a chunk's size, or of a trailer
MAX_EXTENSIONS = 16_384  # bytes in all chunk extensions of a body
MAX_TRAILERS = 100
MAX_PIPELINED = 65_536  # bytes of the next requests that are kept while one runs

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
# What says how a message is framed, routed or judged belongs in its head (RFC 9110, section 6.5.1).
ONLY_IN_HEAD = {
    b"authorization", b"connection", b"content-encoding", b"content-length", b"content-type", b"expect", b"host", b"te",
    b"trailer", b"transfer-encoding",
}  # fmt: skip


class NotHttp(ValueError):
    """A request that is not valid HTTP, or is not accepted; its connection ends with this status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Chunks:
    """The framing of one body in chunks."""

    def __init__(self) -> None:
        self.complete = False
        self.rest = b""  # after the body: the next requests
        self.truncated = False  # a part of them was not kept
        self._data = b""  # half a line
        self._left = 0  # bytes of the chunk that is read
        self._ended = False  # a chunk's data is here in full, its CRLF is not
        self._last = False  # what comes now are trailers
        self._extensions = self._trailers = 0

    def feed(self, data: bytes) -> bytes:
        """The part of the body that is in ``data``. Raises NotHttp."""
        if self.complete:
            self._keep(data)
            return b""
        data, parts, at = self._data + data, [], 0
        self._data = b""
        while not self.complete:
            if self._left:
                part = data[at : at + self._left]
                if not part:
                    break
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                self._ended = not self._left
                continue
            end = data.find(b"\n", at, at + MAX_LINE)
            if end < 0:
                self._data = self._half_line(data[at:])
                break
            self._take(data[at:end])
            at = end + 1
        if self.complete:
            self._keep(data[at:])
        return b"".join(parts)

    def _half_line(self, line: bytes) -> bytes:
        if len(line) >= MAX_LINE:
            raise NotHttp(431 if self._last else 400, f"A line between chunks has more than {MAX_LINE} bytes.")
        if self._ended and line not in (b"", b"\r"):
            raise NotHttp(400, "A chunk is longer than its size says.")
        return line

    def _take(self, line: bytes) -> None:
        """One line between chunks, without its line feed."""
        if not line.endswith(b"\r"):
            raise NotHttp(400, "A line between chunks does not end with CRLF.")
        line = line[:-1]
        if self._ended:
            if line:
                raise NotHttp(400, "A chunk is longer than its size says.")
            self._ended = False
        elif self._last:
            self._take_trailer(line)
        elif match := _SIZE.fullmatch(line):
            self._left = int(match[1], 16)
            self._last = not self._left
            self._extensions += len(match[2] or b"")
            if self._extensions > MAX_EXTENSIONS:
                raise NotHttp(400, f"The chunk extensions of the body have more than {MAX_EXTENSIONS} bytes.")
        else:
            raise NotHttp(400, "The size of a chunk must be 1 to 16 hexadecimal digits.")

    def _take_trailer(self, line: bytes) -> None:
        # Checked and left out: an actor has no use for it.
        if not line:
            self.complete = True
            return
        self._trailers += 1
        if self._trailers > MAX_TRAILERS:
            raise NotHttp(431, f"The body has more than {MAX_TRAILERS} trailers.")
        match = _TRAILER.fullmatch(line)
        if not match:
            raise NotHttp(400, "A trailer must be a header field (name: value).")
        if match[1].lower() in ONLY_IN_HEAD:
            raise NotHttp(400, f"{match[1].decode()} is not allowed in a trailer. Send it in the head of the request.")

    def _keep(self, data: bytes) -> None:
        self.truncated |= len(self.rest) + len(data) > MAX_PIPELINED
        self.rest = (self.rest + data)[:MAX_PIPELINED]


async def discard(receive: Receive) -> None:
    """Read what a client still sends: if the connection were closed under it, it might not get its answer."""
    size = 0
    try:
        async with asyncio.timeout(DISCARD_S):
            while size < MAX_DISCARDED:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return
