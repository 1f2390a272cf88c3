"""Point 6 of docs/faults.md: the cache is the fold at its watermark, the event topic the accepted events, in order."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.faults.fold import Finding, Fold, plain

BITS = 65536  # verdicts in one bitmap of the cache


class OnTopic(NamedTuple):
    """A message of the event topic."""

    offset: int
    key: str
    value: bytes
    headers: dict[str, str]


@dataclass
class CacheDump:
    """One generation of the cache: what is stored under its watermark."""

    watermark: str = ""
    entries: dict[str, bytes] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    bits: dict[int, bytes] = field(default_factory=dict)
    floor: int = 0
    writers: dict[str, str] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)  # keys that the map of keys does not have


def check_cache(fold: Fold, cache: CacheDump, topic_id: str) -> Iterator[Finding]:
    """``fold`` has taken everything below the watermark."""
    for key in cache.strays:
        yield Finding(6, key, "a key that the map of keys does not have")
    offset, _, _, generation, *_ = cache.watermark.split("|", 7)
    expected = fold.watermark(topic_id, generation), fold.writers_text()
    if (cache.watermark, cache.writers) != expected:
        yield Finding(6, "watermark", f"{cache.watermark} and {cache.writers}, it should say {expected}")
    for name in sorted(cache.entries.keys() - fold.aggregates.keys()):
        yield Finding(6, name, f"in the cache as {cache.entries[name]!r}, and never written below {offset}")
    for name, timeline in fold.aggregates.items():
        text = cache.entries.get(name)
        if text is None:
            yield Finding(6, name, f"at version {timeline.version} and not in the cache (watermark {offset})")
            continue
        folded = (timeline.version, timeline.head, plain(timeline.states[-1]))
        if _stored(fold, name, text) != folded:
            yield Finding(6, name, f"the cache has {text!r} at {offset}, the fold {folded}")
    for at in range(cache.floor * BITS, fold.next):
        bits = cache.bits.get(at // BITS, b"")
        byte, bit = divmod(at % BITS, 8)
        if (byte < len(bits) and bool(bits[byte] >> (7 - bit) & 1)) != fold.verdicts[at]:
            yield Finding(6, f"verdict {at}", f"by the fold it is {'accepted' if fold.verdicts[at] else 'void'}")
    yield from _check_ids(fold, cache.ids)


def _stored(fold: Fold, name: str, text: bytes) -> tuple[int, str, Any]:
    """Version, head and state by an entry of the cache, with the events folded that an older version could not."""
    version, head, snapshot = text.split(b" ", 2)
    events: list[dict[str, Any]] = []
    if snapshot.startswith(b"~"):
        _, size, rest = snapshot[1:].split(b" ", 2)
        snapshot, events = rest[: int(size)], json.loads(b"[%s]" % rest[int(size) :])
    state = fold.replayed(name, snapshot, events) if events else json.loads(snapshot) if snapshot else None
    return int(version), head.decode(), state


def _check_ids(fold: Fold, ids: Mapping[str, str]) -> Iterator[Finding]:
    for command, (offset, time, keyed) in fold.ids.items():
        text = ids.get(command)
        if text is None and not fold.known(command, fold.next):
            continue
        if text != f"{offset}:{time}:{int(keyed)}":
            yield Finding(6, command, f"on record at {offset}:{time}:{int(keyed)}, the cache has {text}")
    for command in sorted(ids.keys() - fold.ids.keys()):
        yield Finding(6, command, f"the cache has it at {ids[command]}, and it is not on record")


def check_events(fold: Fold, topic: Iterable[OnTopic]) -> Iterator[Finding]:
    places = {event.position: place for place, event in enumerate(fold.events)}
    last = -1
    for message in topic:
        position = message.headers.get("hive-position", "")
        where = f"event topic {message.offset}"
        place = places.get(position)
        if place is None:
            yield Finding(6, where, f"position {position!r} is no accepted event")
            continue
        expected = fold.events[place]
        headers = {name: text for name, text in message.headers.items() if name.startswith("hive-")}
        if (message.key, headers, json.loads(message.value)) != (expected.key, expected.headers, expected.value):
            text = f"{message.key} {headers} {message.value!r}"
            yield Finding(6, where, f"{text}, it should be {expected.key} {expected.headers} {expected.value}")
        if place > last + 1:
            yield Finding(6, where, f"a gap: {position} comes where {fold.events[last + 1].position} is missing")
        last = max(last, place)
    if last < len(fold.events) - 1:
        missing = fold.events[last + 1]
        yield Finding(
            6, "event topic", f"ends before {missing.position} of {missing.headers['hive-actor']}/{missing.key}"
        )
