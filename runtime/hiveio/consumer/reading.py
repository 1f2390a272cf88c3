"""Reads a record, whoever wrote it: as an event and its meta, or as the problem for which it is a dead letter."""

import re
from typing import Any

from msgspec import Raw

from hiveio import cloudevents
from hiveio.envelope import Codec
from hiveio.errors import Invalid, Malformed, Problem, detached, text_of
from hiveio.headers import Headers
from hiveio.kafka.headers import UNREADABLE, Pairs
from hiveio.messages import Tombstone

JSON = b"application/json"
MAX_VERSION_DIGITS = 18  # digits: less than 2**63
_POSITION = re.compile(rb"(\d{1,10}):(\d{1,18}):(\d{1,10})")

is_position = re.compile(rb"\d{1,10}:\d{1,18}:\d{1,10}").fullmatch

Reading = tuple[Any, Raw | None] | Problem
Position = tuple[int, int, int]
_NO_MESSAGE = Tombstone()


def read(headers: Pairs, value: bytes | None, codec: Codec) -> Reading:
    """The event and its meta, or why there is none. It raises nothing: no record may stop its partition.

    - What has a header ``ce_specversion``, or is sent as ``application/cloudevents+json``, is a CloudEvent.
    - No value is a Tombstone.
    - Anything else is an action, ``{"type", "payload", "meta"}``. Its payload may be missing in a message of hiveio,
      which has a header ``hive-id`` or ``hive-actor``: of others it may be any JSON that has a member ``type``.
    """
    try:
        found = Headers.wrapping(headers)
        if UNREADABLE in found:
            raise Malformed("the name of a header is not UTF-8")
        version_of(found)
        content_types = found.get_all("content-type")
        if content_types and cloudevents.is_structured(content_types[-1]):
            action = cloudevents.from_structured_record(content_types[-1], value or b"", codec.types)
        elif cloudevents.MARK in found:
            action = cloudevents.from_binary_record(found, value, codec.types)
        elif value is None:
            return _NO_MESSAGE, None
        else:
            return codec.decode(value, headers)
        return codec.decode(action)
    except Problem as error:
        return detached(error)
    except UnicodeDecodeError as error:
        return Malformed(f"it is not UTF-8: {error.reason} at byte {error.start}")
    except BaseException as error:
        return Malformed(f"it cannot be read: {type(error).__name__}: {text_of(error)}")


def event_of(reading: Reading) -> tuple[Any, Raw | None]:
    """The event and its meta. Raises the Problem for which there are none."""
    if isinstance(reading, Problem):
        raise reading
    return reading


def undecoded(error: BaseException) -> Problem:
    """Why a record cannot be decoded. An actor's types may have a ``__post_init__``, which raises any error."""
    if isinstance(error, Problem):
        return detached(error)
    return Invalid(f"it cannot be decoded: {type(error).__name__}: {text_of(error)}")


def unknown_type(error: Problem) -> str | None:
    """The type that no actor here takes, where a record could not be decoded because of it."""
    return error.unknown_type if isinstance(error, Invalid) else None


def parse_position(text: bytes) -> Position:
    """``<partition>:<offset>:<index>``. Raises Invalid."""
    match = _POSITION.fullmatch(text)
    if match is None:
        shown = text[:64].decode("utf-8", "backslashreplace")
        raise Invalid(f"hive-position is {shown!r}; it must look like 0:17:0")
    return int(match[1]), int(match[2]), int(match[3])


def version_of(headers: Headers) -> int | None:
    """The aggregate's version, where the record has it. Raises Invalid."""
    found = headers.get_all("hive-version")
    if not found:
        return None
    if not (found[-1].isdigit() and len(found[-1]) <= MAX_VERSION_DIGITS):
        raise Invalid(f"hive-version is {found[-1][:64]!r}; it must be a whole number")
    return int(found[-1])
