"""``hiveio dead``: what is in the dead-letter topics of a consumer group, and what is to become of it.

A letter is named by its record, ``<topic>/<partition>/<offset>``. ``retry`` and ``drop`` write marks to
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
from hiveio.consumer.dead_letters.fold import Fold
from hiveio.consumer.dead_letters.format import (
    ACTORS,
    ATTEMPTS,
    EXCEPTION,
    MARK,
    PREFIX,
    REASON,
    TIME,
    Key,
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
    parser.add_argument("letters", nargs="*", metavar="TOPIC/PARTITION/OFFSET", help="a letter, named by its record")
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
        letters = OpenLetters(reader, group, arguments.topic)
        found = list(letters.open())
        if arguments.action == "list":
            return _list(found, letters.void)
        chosen = _chosen(found, arguments)
        if arguments.action == "show":
            return _show(chosen)
        if arguments.action == "drop":
            reader.write([(*_partition(letter), mark("dropped", letter.message)) for letter in chosen])
            behind = {letter.key for letter in letters.open()} & {letter.key for letter in chosen}
            more = f"; {_count(len(behind), 'key')} of theirs can be retried now" if behind else ""
            print(f"dropped {_count(len(chosen), 'dead letter')}{more}")
            return 0
        return _retry(reader, letters, chosen, group, wait=not arguments.no_wait)


class OpenLetters:
    """The dead-letter partitions of a group, folded as far as they were read."""

    def __init__(self, reader: Reader, group: str, topic: str | None) -> None:
        suffix = f".{group}.dead"
        names = [f"{topic}{suffix}"] if topic else [n for n in reader.topics() if n.endswith(suffix)]
        self._reader, self._suffix = reader, suffix
        self._bounds = {at: reader.bounds(*at) for name in names for at in reader.partitions(name)}
        self._folds = {partition: Fold(bounds[0]) for partition, bounds in self._bounds.items()}
        self._letters: dict[tuple[str, int], dict[int, Message]] = {partition: {} for partition in self._bounds}
        self.failed: dict[str, str] = {}  # origin → why it failed when it was tried again

    def asked(self, letter: Letter) -> bool:
        entry = self._folds[letter.topic, letter.partition].entries.get(letter.key)
        return entry is not None and entry.asked

    @property
    def void(self) -> int:
        """Letters that count for nothing, because they came late."""
        return sum(len(fold.void) for fold in self._folds.values())

    def open(self) -> Iterator[Letter]:
        """Read on to the end, and give what is open, in order."""
        # Owners commit that they are there before they write a letter: so the ends are asked for first.
        ends = {partition: self._reader.bounds(*partition)[1] for partition in self._folds}
        sources = {partition: (partition[0].removesuffix(self._suffix), partition[1]) for partition in self._folds}
        owners = self._reader.owners(list(sources.values()))
        for partition, fold in self._folds.items():
            letters = self._letters[partition]
            fold.owned(owners.get(sources[partition]))
            for message in self._reader.read(*partition, fold.next, ends[partition]):
                headers, at = headers_of(message), message.offset()
                if MARK not in headers and at is not None:
                    letters[at] = message
                elif headers.get(MARK) == b"failed" and (origin := origin_of(headers)):
                    self.failed["/".join(map(str, origin))] = headers.get(EXCEPTION, b"").decode("utf-8", "replace")
                fold.add(message)
            for at in list(letters):
                headers = headers_of(letters[at])
                key, origin = parking_key(letters[at], headers), origin_of(headers)
                entry = fold.entries.get(key) if key is not None else None
                if entry is None or key is None or origin is None or not entry.open(at):
                    del letters[at]
                    continue
                yield Letter(*partition, key, "/".join(map(str, origin)), letters[at], headers)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _partition(letter: Letter) -> tuple[str, int]:
    return letter.topic, letter.partition


def _chosen(found: list[Letter], arguments: argparse.Namespace) -> list[Letter]:
    if arguments.all:
        return found
    if not arguments.letters and not arguments.key:
        raise HiveError("say which letters: TOPIC/PARTITION/OFFSET of their records, a --key, or --all")
    keys, origins = {key.encode() for key in arguments.key}, set(arguments.letters)
    if strange := origins - {letter.origin for letter in found}:
        raise HiveError(f"{', '.join(sorted(strange))} is no open dead letter: `hiveio dead list` shows those that are")
    if strange_keys := keys - {letter.key for letter in found}:
        raise HiveError(f"the key {b', '.join(sorted(strange_keys)).decode()} has no open dead letter")
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
    print(f"{_count(len(found), 'dead letter')} of {_count(len({_of(letter) for letter in found}), 'key')}")
    if void:
        print(
            f"void, because the instance that wrote it had lost its partition before: {_count(void, 'dead letter')}. "
            "The next owner of the partition has decided about the record itself; nothing needs to be done"
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
            if not name.startswith(PREFIX):
                print(f"  {shown(name)}: {shown(raw)}")
        value = letter.message.value() or b""
        try:
            print(shown_lines(msgspec.json.format(value, indent=2)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            print(repr(value))
    return 0


def _text(letter: Letter, name: str) -> str:
    return letter.headers.get(name, b"").decode("utf-8", "replace")


def _retry(reader: Reader, letters: OpenLetters, chosen: list[Letter], group: str, *, wait: bool) -> int:
    """Ask for whole keys, since a key goes in order, and follow what comes of it."""
    keys = {_of(letter): letter for letter in reversed(chosen)}  # the first of each
    wanted = [letter for letter in letters.open() if _of(letter) in keys]
    letters.failed.clear()
    reader.write([(*_partition(letter), mark("retry", letter.message)) for letter in keys.values()])
    print(f"trying {_count(len(wanted), 'dead letter')} of {_count(len(keys), 'key')} again")
    if not wait:
        return 0
    if not reader.members(group):
        print(f"no instance of the group {group} is running: they are tried when one starts")
        return 0
    done, moved = 0, time.monotonic()
    while True:
        still = [letter for letter in letters.open() if _of(letter) in keys]
        failed = [letter for letter in still if letter.origin in letters.failed]
        left = {_of(letter) for letter in still} - {_of(letter) for letter in failed}
        gone = len(wanted) - sum(letter.origin in {s.origin for s in still} for letter in wanted)
        if gone > done:
            done, moved = gone, time.monotonic()
            _progress(done, len(wanted))
        if not left:
            break
        if late := [letter for letter in still if _of(letter) in left and not letters.asked(letter)]:
            # A record that came while the key was being freed is parked anew: go on with it.
            firsts = {_of(letter): letter for letter in reversed(late)}
            reader.write([(*_partition(letter), mark("retry", letter.message)) for letter in firsts.values()])
        if time.monotonic() - moved > WAIT_S:
            raise HiveError(
                f"nothing was handled of {_count(len(left), 'key')} for {WAIT_S:.0f} s. The instances go on trying: "
                "see their logs, and `hiveio dead list`"
            )
        time.sleep(0.1)
    for letter in failed:
        print(f"failed again: {shown(letter.origin)}: {shown(letters.failed[letter.origin])}")
    print(f"handled {done} of {_count(len(wanted), 'dead letter')}; still parked: {_count(len(failed), 'key')}")
    return 1 if failed else 0


def _progress(done: int, total: int) -> None:
    if sys.stdout.isatty():
        bar = "#" * (done * 40 // total)
        print(f"\r[{bar:40}] {done}/{total}", end="" if done < total else "\n", flush=True)
