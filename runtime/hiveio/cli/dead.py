"""``hiveio dead``: what is in the dead-letter topics of a consumer group, and what is to become of it.

A letter is named by the place of its record, ``<topic>/<partition>/<offset>``. ``retry`` and ``drop`` write marks to
the dead-letter topic; the consumer that owns the partition tries the letters again, in order, and frees the keys.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from hiveio.cli.shown import shown, shown_lines
from hiveio.config import Settings
from hiveio.consumer.letters import (
    ACTORS,
    ATTEMPTS,
    EXCEPTION,
    MARK,
    OURS,
    REASON,
    TIME,
    Key,
    Parking,
    headers_of,
    mark,
    origin_of,
    parking_key,
)
from hiveio.errors import HiveError
from hiveio.kafka import Message
from hiveio.kafka.reader import Reader

WAIT_S = 60.0  # without any progress


class Letter(NamedTuple):
    """An open letter. ``topic`` and ``partition`` are those where it lies."""

    topic: str
    partition: int
    key: Key
    origin: str
    message: Message
    headers: dict[str, bytes]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "show", "retry", "drop"])
    parser.add_argument(
        "letters", nargs="*", metavar="TOPIC/PARTITION/OFFSET", help="letters, by the place of the record"
    )
    parser.add_argument("--key", action="append", default=[], help="the letters of this key")
    parser.add_argument("--all", action="store_true", help="all letters")
    parser.add_argument("--topic", help="only those of this source topic")
    parser.add_argument("--group", help="the consumer group (default: EVENT_STORE_GROUP_ID)")
    parser.add_argument("--no-wait", action="store_true", help="retry: do not wait for the outcome")


def run(arguments: argparse.Namespace) -> int:
    settings = Settings.read()
    settings.need(brokers="the dead letters are in Kafka")
    group = arguments.group or settings.group_id
    if not group:
        settings.need(group_id="or name the group with --group")
    with Reader(settings, group) as reader:
        shelves = Shelves(reader, group, arguments.topic)
        found = list(shelves.open())
        if arguments.action == "list":
            return _list(found, shelves.void)
        chosen = _chosen(found, arguments)
        if arguments.action == "show":
            return _show(chosen)
        if arguments.action == "drop":
            reader.write([(*_place(letter), mark("dropped", letter.message)) for letter in chosen])
            behind = {letter.key for letter in shelves.open()} & {letter.key for letter in chosen}
            print(f"{len(chosen)} dropped" + (f"; {len(behind)} of their keys have more: retry them" if behind else ""))
            return 0
        return _retry(reader, shelves, chosen, group, wait=not arguments.no_wait)


class Shelves:
    """The dead-letter partitions of a group, folded as far as they were read."""

    def __init__(self, reader: Reader, group: str, topic: str | None) -> None:
        suffix = f".{group}.dead"
        names = [f"{topic}{suffix}"] if topic else [n for n in reader.topics() if n.endswith(suffix)]
        self._reader, self._suffix = reader, suffix
        self._bounds = {place: reader.bounds(*place) for name in names for place in reader.partitions(name)}
        self._parkings = {place: Parking(bounds[0]) for place, bounds in self._bounds.items()}
        self._letters: dict[tuple[str, int], dict[int, Message]] = {place: {} for place in self._bounds}
        self.failed: dict[str, str] = {}  # origin → why it failed when it was tried again

    def asked(self, letter: Letter) -> bool:
        entry = self._parkings[letter.topic, letter.partition].entries.get(letter.key)
        return entry is not None and entry.asked

    @property
    def void(self) -> int:
        """Letters that count for nothing, because they came late."""
        return sum(len(parking.void) for parking in self._parkings.values())

    def open(self) -> Iterator[Letter]:
        """Read on to the end, and give what is open, in order."""
        # Owners commit that they are there before they write a letter: so the ends are asked for first.
        ends = {place: self._reader.bounds(*place)[1] for place in self._parkings}
        sources = {place: (place[0].removesuffix(self._suffix), place[1]) for place in self._parkings}
        owners = self._reader.owners(list(sources.values()))
        for place, parking in self._parkings.items():
            letters = self._letters[place]
            parking.owned(owners.get(sources[place]))
            for message in self._reader.read(*place, parking.next, ends[place]):
                headers, at = headers_of(message), message.offset()
                if MARK not in headers and at is not None:
                    letters[at] = message
                elif headers.get(MARK) == b"failed" and (origin := origin_of(headers)):
                    self.failed["/".join(map(str, origin))] = headers.get(EXCEPTION, b"").decode("utf-8", "replace")
                parking.fold(message)
            for at in list(letters):
                headers = headers_of(letters[at])
                key, origin = parking_key(letters[at], headers), origin_of(headers)
                entry = parking.entries.get(key) if key is not None else None
                if entry is None or key is None or origin is None or not entry.open(at):
                    del letters[at]
                    continue
                yield Letter(*place, key, "/".join(map(str, origin)), letters[at], headers)


def _place(letter: Letter) -> tuple[str, int]:
    return letter.topic, letter.partition


def _chosen(found: list[Letter], arguments: argparse.Namespace) -> list[Letter]:
    if arguments.all:
        return found
    if not arguments.letters and not arguments.key:
        raise HiveError("name letters as TOPIC/PARTITION/OFFSET, a --key, or --all")
    keys, origins = {key.encode() for key in arguments.key}, set(arguments.letters)
    if strange := origins - {letter.origin for letter in found}:
        raise HiveError(f"no open letter is {', '.join(sorted(strange))}: hiveio dead list shows those that are")
    if strange_keys := keys - {letter.key for letter in found}:
        raise HiveError(f"no letter is open of the key {b', '.join(sorted(strange_keys)).decode()}")
    return [letter for letter in found if letter.key in keys or letter.origin in origins]


def _list(found: list[Letter], void: int) -> int:
    behind = Counter(_of(letter) for letter in found)
    for letter in found:
        reason = _text(letter, REASON)
        if reason != "parked" or behind.pop(_of(letter), 0):
            key = shown(letter.key) if isinstance(letter.key, bytes) else "-"
            more = behind.pop(_of(letter), 1) - 1
            parked = f"  and {more} behind it" if more else ""
            why = f"{reason} {_text(letter, EXCEPTION)}".strip().splitlines()[0]
            print(f"{shown(letter.origin)}  key {key}  {shown(why)}{parked}")
    print(f"{len(found)} letters of {len({_of(letter) for letter in found})} keys")
    if void:
        print(
            f"{void} more came late, from instances that had lost their partition, and are void: the next owner of the "
            "partition has decided about their records itself. Nothing needs to be done"
        )
    return 0


def _of(letter: Letter) -> tuple[str, int, Key]:
    return letter.topic, letter.partition, letter.key


def _show(chosen: list[Letter]) -> int:
    for letter in chosen:
        written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(_text(letter, TIME) or 0) / 1000))
        print(
            f"{letter.origin}  written {written}  lies in {letter.topic}/{letter.partition}/{letter.message.offset()}"
        )
        print(f"  key        {letter.message.key()!r}")
        for title, name in (("reason", REASON), ("attempts", ATTEMPTS), ("actors", ACTORS), ("exception", EXCEPTION)):
            if text := _text(letter, name):
                print(f"  {title:10} {shown(text)}")
        for name, raw in letter.headers.items():
            if not name.startswith(OURS):
                print(f"  {shown(name)}: {shown(raw)}")
        value = letter.message.value() or b""
        try:
            print(shown_lines(msgspec.json.format(value, indent=2)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            print(repr(value))
    return 0


def _text(letter: Letter, name: str) -> str:
    return letter.headers.get(name, b"").decode("utf-8", "replace")


def _retry(reader: Reader, shelves: Shelves, chosen: list[Letter], group: str, *, wait: bool) -> int:
    """Ask for whole keys, since a key goes in order, and follow what comes of it."""
    keys = {_of(letter): letter for letter in reversed(chosen)}  # the first of each
    wanted = [letter for letter in shelves.open() if _of(letter) in keys]
    shelves.failed.clear()
    reader.write([(*_place(letter), mark("retry", letter.message)) for letter in keys.values()])
    print(f"{len(wanted)} letters of {len(keys)} keys are to be tried again")
    if not wait:
        return 0
    if not reader.members(group):
        print(f"no instance of the group {group} runs: they are tried when one starts")
        return 0
    done, moved = 0, time.monotonic()
    while True:
        still = [letter for letter in shelves.open() if _of(letter) in keys]
        failed = [letter for letter in still if letter.origin in shelves.failed]
        left = {_of(letter) for letter in still} - {_of(letter) for letter in failed}
        gone = len(wanted) - sum(letter.origin in {s.origin for s in still} for letter in wanted)
        if gone > done:
            done, moved = gone, time.monotonic()
            _progress(done, len(wanted))
        if not left:
            break
        if late := [letter for letter in still if _of(letter) in left and not shelves.asked(letter)]:
            # A record that came while the key was being freed is parked anew: go on with it.
            firsts = {_of(letter): letter for letter in reversed(late)}
            reader.write([(*_place(letter), mark("retry", letter.message)) for letter in firsts.values()])
        if time.monotonic() - moved > WAIT_S:
            raise HiveError(f"{len(left)} keys have not moved for {WAIT_S:.0f} s; they stay asked for")
        time.sleep(0.1)
    for letter in failed:
        print(f"failed again: {shown(letter.origin)}: {shown(shelves.failed[letter.origin])}")
    print(f"{done} of {len(wanted)} handled, {len(failed)} keys stay parked")
    return 1 if failed else 0


def _progress(done: int, total: int) -> None:
    if sys.stdout.isatty():
        bar = "#" * (done * 40 // total)
        print(f"\r[{bar:40}] {done}/{total}", end="" if done < total else "\n", flush=True)
