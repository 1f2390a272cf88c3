"""If-Match and If-None-Match: RFC 9110, section 13. The entity tags that are compared here are always strong ones."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from hiveio.errors import Refused, VersionMismatch

_TAG = rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS = re.compile(rb"(?:[ \t]*,)*[ \t]*" + _TAG + rb"(?:[ \t]*(?:,[ \t]*)+" + _TAG + rb")*(?:[ \t]*,)*[ \t]*")
_EACH = re.compile(_TAG)
_ANY = (b"*",)
_NOTHING = b'"0"'


class Conditions(NamedTuple):
    """The conditions of a request: entity tags as they are written, or ``*``; None is no condition."""

    match: tuple[bytes, ...] | None = None
    none_match: tuple[bytes, ...] | None = None

    def met(self, tag: str | None, *, exists: bool) -> bool:
        """Whether If-Match allows an entity with this tag (None: without a tag). ``*`` allows every entity that
        exists, with a tag or without one; a weak tag matches none."""
        if self.match is None:
            return True
        return exists if self.match == _ANY else tag is not None and tag.encode() in self.match

    def absent(self, tag: str | None, *, exists: bool) -> bool:
        """Whether If-None-Match allows it. Here a weak tag is as good as a strong one."""
        if self.none_match is None:
            return True
        if self.none_match == _ANY:
            return not exists
        return tag is None or tag.encode() not in [each.removeprefix(b"W/") for each in self.none_match]

    def check(self, version: int, name: str) -> None:
        """Raises VersionMismatch (412) where a command may not be executed on this version.

        An aggregate that does not exist yet has version 0, which may be asked for as ``"0"``, and no entity tag.
        """
        tag, exists = etag(version) if version else None, version > 0
        met = self.met(tag, exists=exists) or (not exists and self.match is not None and _NOTHING in self.match)
        if not met or not self.absent(tag, exists=exists):
            raise VersionMismatch(f"{name} is at version {version}, which the request does not allow.", version=version)


def etag(version: int) -> str:
    """The entity tag of a version."""
    return f'"{version}"'


def conditions(headers: Iterable[tuple[bytes, bytes]]) -> Conditions:
    """The conditions among the headers of a request; a list may be in several headers. Raises Refused (400)."""
    headers = list(headers)
    return Conditions(_tags("If-Match", headers), _tags("If-None-Match", headers))


def _tags(name: str, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, ...] | None:
    values = [value for each, value in headers if each == name.lower().encode()]
    if not values:
        return None
    value = b",".join(values)
    if value.strip() == b"*":
        return _ANY
    if not _TAGS.fullmatch(value):
        raise Refused(f'{name} must be * or a list of entity tags, such as {name}: "5", "6".')
    return tuple(_EACH.findall(value))
