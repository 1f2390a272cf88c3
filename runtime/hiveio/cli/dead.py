"""``hiveio dead``: it shows the dead letters of a consumer group, retries them and drops them.

A dead letter is named by its record, ``<topic>/<partition>/<offset>``. ``retry`` and ``drop`` write marks to
the dead-letter topic; the consumer that owns the partition tries the dead letters again, in order, and frees the keys.
"""

import argparse
import sys
import time
from collections import Counter

import msgspec

from hiveio.cli.arguments import Command
from hiveio.cli.shown import shown, shown_lines
from hiveio.config import Settings
from hiveio.consumer.dead_letters.format import ACTORS, ATTEMPTS, EXCEPTION, PREFIX, REASON, Key, mark, time_of
from hiveio.consumer.dead_letters.opened import DeadLetter, OpenDeadLetters
from hiveio.errors import HiveError
from hiveio.kafka.reader import Reader
from hiveio.status.text import clock

WAIT_S = 60.0  # the time without any progress after which the command ends


def configure(parser: Command) -> None:
    parser.mixes = True
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
            why = f"{reason} {_text(dead_letter, EXCEPTION)}".strip().partition("\n")[0]
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
        written = clock(time_of(dead_letter.headers))
        print(
            f"{shown(dead_letter.origin)}  written {written}  "
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
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
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
