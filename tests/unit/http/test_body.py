"""Chunks come in whatever parts the network makes of them."""

import random

import pytest

from hiveio.http.body import MAX_PIPELINED, Chunks, NotHttp

FRAMED = b'5\r\nhello\r\n1;a="b"\r\n \r\n00A\r\n\r\n wo\r\nrld\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\n'
DICE = random.Random(7)


def cut(data: bytes) -> list[bytes]:
    places = sorted(DICE.sample(range(len(data)), DICE.randrange(12)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


@pytest.mark.parametrize("parts", [[FRAMED], [bytes([byte]) for byte in FRAMED], *(cut(FRAMED) for _ in range(200))])
def test_the_body_is_the_same_however_it_comes(parts: list[bytes]) -> None:
    chunks = Chunks()
    assert b"".join(map(chunks.feed, parts)) == b"hello \r\n wo\r\nrld"
    assert chunks.complete
    assert (chunks.rest, chunks.truncated) == (b"GET / HTTP/1.1\r\n", False)


def test_what_comes_ahead_is_bounded() -> None:
    chunks = Chunks()
    chunks.feed(b"0\r\n\r\n" + b"x" * (MAX_PIPELINED - 1))
    chunks.feed(b"x")
    assert not chunks.truncated
    chunks.feed(b"x")
    assert chunks.truncated
    assert len(chunks.rest) == MAX_PIPELINED


@pytest.mark.parametrize("wrong", [b"5\r\nhellox", b"5\r\nhello\rx", b"5 \r\n", b"g", b"\r\n", b"0\r\nX\r\n", b"1\n"])
def test_what_is_wrong_is_noticed_at_its_last_byte_at_the_latest(wrong: bytes) -> None:
    with pytest.raises(NotHttp):
        Chunks().feed(wrong + b"\r\n")
    chunks = Chunks()
    with pytest.raises(NotHttp):
        [chunks.feed(bytes([byte])) for byte in wrong + b"\r\n"]
