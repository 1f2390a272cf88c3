"""A load generator over raw sockets, for machines without wrk: a process of its own, one JSON line as its result.

``python -m tests.bench.generator PORT CLIENTS SECONDS METHOD PATH BODY POPULATION FIRST REFUSABLE NUMBERS``
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import cast

import uvloop


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, requests: Iterator[bytes], until: float, taken: list[float], ended: Callable[[bool], None]):
        self._requests, self._until, self._taken, self._ended = requests, until, taken, ended
        self.failed = self.refused = 0
        self._buffer = b""
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it
        self._next(time.perf_counter())

    def _next(self, now: float) -> None:
        self._sent = now
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(buffer) < end + 4 + length:
            return
        self._buffer = b""
        now = time.perf_counter()
        self._taken.append(now - self._sent)
        if head[9:10] != b"2":
            self.refused += head[9:12] == b"422"
            self.failed += head[9:12] != b"422"
        if now < self._until:
            self._next(now)
        else:
            self._over = True
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended(self._over)


def requests(method: str, path: str, body: str, population: int, first: int, numbers: Sequence[int]) -> Iterator[bytes]:
    before, placeholder, after = path.partition("{}")
    head = f"{method} {before}".encode()
    start, other, rest = body.partition("{other}")
    tail = f"{after} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: ".encode()
    content = f"{len(body)}\r\n\r\n{body}".encode()
    for number in count(first + 1):
        if other:
            whole = f"{start}{(number + random.randrange(1, population)) % population}{rest}".encode()
            content = b"%d\r\n\r\n%b" % (len(whole), whole)
        shown = numbers[number % population] if numbers else number % population
        yield b"%b%d%b%b" % (head, shown, tail, content) if placeholder else head + tail + content


async def run(port: int, clients: int, seconds: float, source: Iterator[bytes], refusable: bool) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    taken: list[float] = []
    lost = 0
    left = clients
    over = loop.create_future()

    def ended(well: bool) -> None:
        nonlocal lost, left
        lost += not well
        left -= 1
        if not left:
            over.set_result(None)

    started = time.perf_counter()
    protocols = []
    for _ in range(clients):
        _, protocol = await loop.create_connection(
            lambda: Client(source, started + seconds, taken, ended), "127.0.0.1", port
        )
        protocols.append(protocol)
    await asyncio.wait_for(over, seconds + 30)
    duration = time.perf_counter() - started
    refused = sum(protocol.refused for protocol in protocols)
    ordered = sorted(taken) or [0.0]
    return {
        "requests": len(taken),
        "refused": refused if refusable else 0,
        "failed": lost + sum(protocol.failed for protocol in protocols) + (0 if refusable else refused),
        "seconds": duration,
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
    }


if __name__ == "__main__":
    port, clients, seconds, method, path, body, population, first, refusable, given = sys.argv[1:]
    numbers = [int(number) for number in given.split(",") if number]
    source = requests(method, path, body, int(population), int(first), numbers)
    print(json.dumps(uvloop.run(run(int(port), int(clients), float(seconds), source, refusable == "refusable"))))
