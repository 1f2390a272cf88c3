"""``hiveio dead``: it shows the dead letters of a consumer group, retries them and drops them.

A dead letter is named by its record, ``<topic>/<partition>/<offset>``. ``retry`` and ``drop`` write marks to
the dead-letter topic; the consumer that owns the partition tries the dead letters again, in order, and frees the keys.
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

WAIT_S = 60.0  # the time without any progress after which the command ends


class DeadLetter(NamedTuple):
    """An open dead letter. ``topic`` and ``partition`` are those of the dead-letter topic."""

    topic: str
    partition: int
    key: Key
    origin: str
    message: Message
    headers: dict[str, bytes]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "show", "retry", "drop"])
    parser.add_argument(
        "dead_letters", nargs="*", metavar="TOPIC/PARTITION/OFFSET", help="a dead letter, named by its record"
    )
    parser.add_argument("--key", action="append", default=[], help="the dead letters of this key")
    parser.add_argument("--all", action="store_true", help="all dead letters")
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
        dead_letters = OpenDeadLetters(reader, group, arguments.topic)
        found = list(dead_letters.open())
        if arguments.action == "list":
            return _list(found, dead_letters.void)
        chosen = _chosen(found, arguments)
        if arguments.action == "show":
            return _show(chosen)
        if arguments.action == "drop":
            reader.write([(*_partition(dead_letter), mark("dropped", dead_letter.message)) for dead_letter in chosen])
            behind = {dead_letter.key for dead_letter in dead_letters.open()} & {
                dead_letter.key for dead_letter in chosen
            }
            more = f"; {_count(len(behind), 'key')} of theirs can be retried now" if behind else ""
            print(f"dropped {_count(len(chosen), 'dead letter')}{more}")
            return 0
        return _retry(reader, dead_letters, chosen, group, wait=not arguments.no_wait)


class OpenDeadLetters:
    """The open dead letters of a group, as far as its dead-letter topics were read."""

    def __init__(self, reader: Reader, group: str, topic: str | None) -> None:
        suffix = f".{group}.dead"
        names = [f"{topic}{suffix}"] if topic else [n for n in reader.topics() if n.endswith(suffix)]
        self._reader, self._suffix = reader, suffix
        self._bounds = {at: reader.bounds(*at) for name in names for at in reader.partitions(name)}
        self._folds = {partition: Fold(bounds[0]) for partition, bounds in self._bounds.items()}
        self._dead_letters: dict[tuple[str, int], dict[int, Message]] = {partition: {} for partition in self._bounds}
        self.failed: dict[str, str] = {}  # origin → why it failed when it was tried again

    def asked(self, dead_letter: DeadLetter) -> bool:
        entry = self._folds[dead_letter.topic, dead_letter.partition].entries.get(dead_letter.key)
        return entry is not None and entry.asked

    @property
    def void(self) -> int:
        """The number of dead letters that are void because they came late."""
        return sum(len(fold.void) for fold in self._folds.values())

    def open(self) -> Iterator[DeadLetter]:
        """Read to the end, and yield what is open, in order."""
        # An owner commits its claim before it writes a dead letter. So the end offsets are read before the owners.
        ends = {partition: self._reader.bounds(*partition)[1] for partition in self._folds}
        sources = {partition: (partition[0].removesuffix(self._suffix), partition[1]) for partition in self._folds}
        owners = self._reader.owners(list(sources.values()))
        for partition, fold in self._folds.items():
            dead_letters = self._dead_letters[partition]
            fold.owned(owners.get(sources[partition]))
            for message in self._reader.read(*partition, fold.next, ends[partition]):
                headers, at = headers_of(message), message.offset()
                if MARK not in headers and at is not None:
                    dead_letters[at] = message
                elif headers.get(MARK) == b"failed" and (origin := origin_of(headers)):
                    self.failed["/".join(map(str, origin))] = headers.get(EXCEPTION, b"").decode("utf-8", "replace")
                fold.add(message)
            for at in list(dead_letters):
                headers = headers_of(dead_letters[at])
                key, origin = parking_key(dead_letters[at], headers), origin_of(headers)
                entry = fold.entries.get(key) if key is not None else None
                if entry is None or key is None or origin is None or not entry.open(at):
                    del dead_letters[at]
                    continue
                yield DeadLetter(*partition, key, "/".join(map(str, origin)), dead_letters[at], headers)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _partition(dead_letter: DeadLetter) -> tuple[str, int]:
    return dead_letter.topic, dead_letter.partition


def _chosen(found: list[DeadLetter], arguments: argparse.Namespace) -> list[DeadLetter]:
    if arguments.all:
        return found
    if not arguments.dead_letters and not arguments.key:
        raise HiveError("say which dead letters: TOPIC/PARTITION/OFFSET of their records, a --key, or --all")
    keys, origins = {key.encode() for key in arguments.key}, set(arguments.dead_letters)
    if unknown := origins - {dead_letter.origin for dead_letter in found}:
        raise HiveError(f"{', '.join(sorted(unknown))} is no open dead letter: `hiveio dead list` shows those that are")
    if unknown_keys := keys - {dead_letter.key for dead_letter in found}:
        raise HiveError(f"the key {b', '.join(sorted(unknown_keys)).decode()} has no open dead letter")
    return [dead_letter for dead_letter in found if dead_letter.key in keys or dead_letter.origin in origins]


def _list(found: list[DeadLetter], void: int) -> int:
    behind = Counter(_of(dead_letter) for dead_letter in found)
    for dead_letter in found:
        reason = _text(dead_letter, REASON)
        if reason != "parked" or behind.pop(_of(dead_letter), 0):
            key = shown(dead_letter.key) if isinstance(dead_letter.key, bytes) else "-"
            more = behind.pop(_of(dead_letter), 1) - 1
            parked = f"  and {more} behind it" if more else ""
            why = f"{reason} {_text(dead_letter, EXCEPTION)}".strip().splitlines()[0]
            print(f"{shown(dead_letter.origin)}  key {key}  {shown(why)}{parked}")
    print(f"{_count(len(found), 'dead letter')} of {_count(len({_of(dead_letter) for dead_letter in found}), 'key')}")
    if void:
        print(
            f"void, because the instance that wrote it had lost its partition before: {_count(void, 'dead letter')}. "
            "The next owner of the partition has decided about the record itself; nothing needs to be done"
        )
    return 0


def _of(dead_letter: DeadLetter) -> tuple[str, int, Key]:
    return dead_letter.topic, dead_letter.partition, dead_letter.key


def _show(chosen: list[DeadLetter]) -> int:
    for dead_letter in chosen:
        written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(_text(dead_letter, TIME) or 0) / 1000))
        print(
            f"{dead_letter.origin}  written {written}  "
            f"lies in {dead_letter.topic}/{dead_letter.partition}/{dead_letter.message.offset()}"
        )
        print(f"  key        {dead_letter.message.key()!r}")
        for title, name in (("reason", REASON), ("attempts", ATTEMPTS), ("actors", ACTORS), ("exception", EXCEPTION)):
            if text := _text(dead_letter, name):
                print(f"  {title:10} {shown(text)}")
        for name, raw in dead_letter.headers.items():
            if not name.startswith(PREFIX):
                print(f"  {shown(name)}: {shown(raw)}")
        value = dead_letter.message.value() or b""
        try:
            print(shown_lines(msgspec.json.format(value, indent=2)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            print(repr(value))
    return 0


def _text(dead_letter: DeadLetter, name: str) -> str:
    return dead_letter.headers.get(name, b"").decode("utf-8", "replace")


def _retry(reader: Reader, dead_letters: OpenDeadLetters, chosen: list[DeadLetter], group: str, *, wait: bool) -> int:
    """Ask for another attempt at whole keys, because a key is handled in order, and wait for the result."""
    keys = {_of(dead_letter): dead_letter for dead_letter in reversed(chosen)}  # the first of each
    requested = [dead_letter for dead_letter in dead_letters.open() if _of(dead_letter) in keys]
    dead_letters.failed.clear()
    reader.write([(*_partition(dead_letter), mark("retry", dead_letter.message)) for dead_letter in keys.values()])
    print(f"trying {_count(len(requested), 'dead letter')} of {_count(len(keys), 'key')} again")
    if not wait:
        return 0
    if not reader.members(group):
        print(f"no instance of the group {group} is running: the dead letters are tried when one starts")
        return 0
    done, moved = 0, time.monotonic()
    while True:
        still = [dead_letter for dead_letter in dead_letters.open() if _of(dead_letter) in keys]
        failed = [dead_letter for dead_letter in still if dead_letter.origin in dead_letters.failed]
        left = {_of(dead_letter) for dead_letter in still} - {_of(dead_letter) for dead_letter in failed}
        gone = len(requested) - sum(dead_letter.origin in {s.origin for s in still} for dead_letter in requested)
        if gone > done:
            done, moved = gone, time.monotonic()
            _progress(done, len(requested))
        if not left:
            break
        if late := [
            dead_letter for dead_letter in still if _of(dead_letter) in left and not dead_letters.asked(dead_letter)
        ]:
            # A record that came while the key was being freed was parked again: ask for it too.
            firsts = {_of(dead_letter): dead_letter for dead_letter in reversed(late)}
            reader.write(
                [(*_partition(dead_letter), mark("retry", dead_letter.message)) for dead_letter in firsts.values()]
            )
        if time.monotonic() - moved > WAIT_S:
            raise HiveError(
                f"nothing was handled of {_count(len(left), 'key')} for {WAIT_S:.0f} s. The instances go on trying: "
                "see their logs, and `hiveio dead list`"
            )
        time.sleep(0.1)
    for dead_letter in failed:
        print(f"failed again: {shown(dead_letter.origin)}: {shown(dead_letters.failed[dead_letter.origin])}")
    print(f"handled {done} of {_count(len(requested), 'dead letter')}; still parked: {_count(len(failed), 'key')}")
    return 1 if failed else 0


def _progress(done: int, total: int) -> None:
    if sys.stdout.isatty():
        bar = "#" * (done * 40 // total)
        print(f"\r[{bar:40}] {done}/{total}", end="" if done < total else "\n", flush=True)
