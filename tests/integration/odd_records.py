"""Records as no client library writes them: a Produce request by hand, whose header names need not be UTF-8."""

import socket
import struct
import time
from collections.abc import Iterable, Sequence

from tests.process import wait_until

Header = tuple[bytes, bytes | None]
Odd = tuple[bytes | None, bytes | None, Sequence[Header]]  # key, value, headers


def write_odd(brokers: str, topic: str, records: Iterable[Odd], partition: int = 0) -> None:
    """Write them in this order, all in one batch, and return when they are stored."""
    batch = _batch(list(records))
    name = topic.encode()
    body = struct.pack(">hhi", -1, -1, 10_000)  # no transaction, acks=all, timeout
    body += struct.pack(">ih", 1, len(name)) + name + struct.pack(">iii", 1, partition, len(batch)) + batch
    request = struct.pack(">hhih", 0, 8, 1, 3) + b"odd" + body  # Produce, version 8

    def refused() -> int:
        answer = _ask(brokers, request)
        (code,) = struct.unpack_from(">h", answer, 4 + 4 + 2 + len(name) + 4 + 4)
        return int(code)

    wait_until(lambda: refused() == 0, what="the topic has a leader, who takes it")


def _ask(brokers: str, request: bytes) -> bytes:
    host, port = brokers.split(",")[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        return _read(connection, *struct.unpack(">i", _read(connection, 4)))


def _read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += connection.recv(size - len(found)) or _ended()
    return found


def _ended() -> bytes:
    raise AssertionError("Kafka has closed the connection")


def _batch(records: list[Odd]) -> bytes:
    now = int(time.time() * 1000)
    packed = b"".join(_record(number, *record) for number, record in enumerate(records))
    count = len(records)
    counted = struct.pack(">hiqqqhii", 0, count - 1, now, now, -1, -1, -1, count) + packed
    rest = struct.pack(">ibI", -1, 2, _crc32c(counted)) + counted
    return struct.pack(">qi", 0, len(rest)) + rest


def _record(
    number: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[bytes, bytes | None]]
) -> bytes:
    body = b"\0" + _varint(0) + _varint(number) + _bytes(key) + _bytes(value) + _varint(len(headers))
    body += b"".join(_bytes(name) + _bytes(text) for name, text in headers)
    return _varint(len(body)) + body


def _bytes(value: bytes | None) -> bytes:
    return _varint(-1) if value is None else _varint(len(value)) + value


def _varint(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _entry(index: int) -> int:
    for _ in range(8):
        index = (index >> 1) ^ (0x82F63B78 if index & 1 else 0)
    return index


_TABLE = [_entry(index) for index in range(256)]
