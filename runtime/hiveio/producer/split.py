"""Finds the records of a batch while it comes in, with bounded memory: newline-delimited JSON and JSON arrays."""

import re
from collections.abc import Iterator
from typing import Protocol

from hiveio.errors import Malformed, Problem, TooLarge

_BLANK = re.compile(rb"[ \t\r\n]*+")
# Strings are skipped as a whole, so that only brackets are looked at one by one. Possessive: nothing is tried twice.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_OUTSIDE = re.compile(rb'(?s)[^"\[\]{}]*+(?:%b[^"\[\]{}]*+)*+' % _STRING)
_INSIDE = re.compile(rb'(?s)[^"\\]*+(?:\\.[^"\\]*+)*+')
_SCALAR = re.compile(rb'(?s)%b|[^",\[\]{}]++' % _STRING)

Item = bytes | Problem  # a Problem represents a record that is too large


class Splitter(Protocol):
    """Finds the records of a batch while it comes in; keeps one record, of at most ``limit`` bytes, and one part."""

    kept: bytes  # of a record that is not complete yet

    def __init__(self, limit: int) -> None: ...

    def feed(self, part: bytes) -> Iterator[Item]:
        """The records that are complete. Raises Malformed."""

    def close(self) -> Iterator[Item]:
        """The records that are left at the end of the body. Raises Malformed."""


class Lines:
    """Newline-delimited JSON. Empty lines are ignored."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.kept = b""
        self._large = False  # the rest of this line is not kept

    def feed(self, part: bytes) -> Iterator[Item]:
        *lines, self.kept = (self.kept + part).split(b"\n")
        for line in lines:
            if self._large or len(line) > self._limit:
                self._large = False
                yield _too_large(self._limit)
            elif stripped := line.strip():
                yield stripped
        if len(self.kept) > self._limit:
            self.kept, self._large = b"", True

    def close(self) -> Iterator[Item]:
        if self._large or self.kept:
            yield from self.feed(b"\n")


class Items:
    """The items of a JSON array, found by their brackets. Their decoder checks what is between these."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.kept = b""
        self._at = 0  # where to go on
        self._depth = 0  # of brackets inside the item; 0: between items
        self._in_string = self._large = False
        self._expected = "["  # then "item or ]", ", or ]", "item", and in the end "nothing"

    def feed(self, part: bytes) -> Iterator[Item]:
        data, at, begin = self.kept + part, self._at, 0
        while True:
            if self._depth == 0:
                begin = at = _end(_BLANK, data, at)
                if at == len(data):
                    break
                char = data[at : at + 1]
                if char in (b"[", b",", b"]") and char.decode() in self._expected:
                    self._expected = {b"[": "item or ]", b",": "item", b"]": "nothing"}[char]
                    at += 1
                elif "item" not in self._expected:
                    raise Malformed(f"The JSON array is malformed: {self._expected} is missing.")
                elif char in b"{[":
                    self._depth, at = 1, at + 1
                else:
                    scalar = _SCALAR.match(data, at)
                    if scalar is None and char != b'"':
                        raise Malformed("The JSON array is malformed: an item is missing.")
                    if scalar is None or (scalar.end() == len(data) and char != b'"'):
                        if len(data) - at > self._limit:
                            raise _too_large(self._limit)
                        break
                    yield scalar[0].strip()
                    at, self._expected = scalar.end(), ", or ]"
                continue
            if self._in_string:
                at = _end(_INSIDE, data, at)
                if data[at : at + 1] != b'"':  # the end of the data, or a backslash before it
                    break
                at, self._in_string = at + 1, False
            at = _end(_OUTSIDE, data, at)
            if at == len(data):
                break
            char = data[at : at + 1]
            at += 1
            if char == b'"':
                self._in_string = True
            else:
                self._depth += 1 if char in b"{[" else -1
                if self._depth == 0:
                    large = self._large or at - begin > self._limit
                    yield _too_large(self._limit) if large else data[begin:at]
                    self._large, self._expected = False, ", or ]"
        if self._depth and (self._large or len(data) - begin > self._limit):
            self._large, begin = True, at
        self.kept, self._at = data[begin:], at - begin

    def close(self) -> Iterator[Item]:
        if self._expected != "nothing":
            raise Malformed("The JSON array is malformed: the body ends before it does.")
        return iter(())


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    found = pattern.match(data, at)
    assert found is not None  # it also matches an empty string
    return found.end()


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The record has more than {limit} bytes.")
