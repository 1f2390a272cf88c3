"""``hiveio log``: the records of the transaction log with their verdicts."""

import argparse
import json
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from hiveio.cli.arguments import in_range
from hiveio.cli.judging import JudgedRecord, count_scopes, home_of, judged, searched
from hiveio.cli.shown import shown
from hiveio.config import Settings
from hiveio.errors import ConfigError, NotFound
from hiveio.status.text import about, clock
from hiveio.transaction.record import Commit, ProcessStep, named


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("aggregate", nargs="?", help="ACTOR/ID; without it all records of a scope")
    parser.add_argument("--scope", type=int, default=0, help="the scope, where no aggregate is named (0)")
    parser.add_argument("--last", type=int, metavar="N", help="only the last N records")
    parser.add_argument("--follow", "-f", action="store_true", help="go on with new records")
    parser.add_argument("--json", action="store_true", help="write one JSON object in each line")


def run(arguments: argparse.Namespace) -> int:
    """0, or 1 if there is no such record."""
    in_range("--last", arguments.last, 1)
    settings = Settings.read()
    settings.need(brokers="the log is in Kafka", written_topic="the log is <topic>.transactions")
    if arguments.aggregate is not None and "/" not in arguments.aggregate:
        raise ConfigError(f"{arguments.aggregate} does not name an aggregate; write ACTOR/ID, as in AccountActor/ada")
    count = count_scopes(settings)
    if not 0 <= arguments.scope < count:
        raise ConfigError(f"--scope {arguments.scope}: the log has the scopes 0 to {count - 1}")
    if arguments.aggregate is None:
        scopes = [arguments.scope]
    else:
        scopes = searched(home := home_of(settings, arguments.aggregate, count), count)
        if arguments.follow and count > 1:
            if home is None:
                raise ConfigError(
                    "--follow needs one scope: set ACTOR_MODULE, so that the actor can say which one it is"
                )
            scopes = [home]
    shown_records, actors = 0, set()
    kept: deque[str] = deque(maxlen=arguments.last)
    for scope in scopes:
        for found in judged(settings, scope, follow=arguments.follow):
            names = named(found.record)
            actors |= {name.partition("/")[0] for name in names}
            if arguments.aggregate is None or arguments.aggregate in names:
                line = json.dumps(as_json(scope, found)) if arguments.json else as_text(scope, found)
                shown_records += 1
                if arguments.last is None or arguments.follow:
                    print(line, flush=arguments.follow)
                else:
                    kept.append(line)
        if shown_records:  # an aggregate is in one scope
            break
    for line in kept:
        print(line)
    if not shown_records and arguments.aggregate is not None:
        actor = arguments.aggregate.partition("/")[0]
        unknown = "" if actor in actors else f": it has no actor {actor}, but {', '.join(sorted(actors)) or 'none'}"
        raise NotFound(f"no record of {arguments.aggregate} is in {settings.log_topic}{unknown}")
    return 0 if shown_records else 1


def as_json(scope: int, found: JudgedRecord) -> dict[str, Any]:
    message, record, accepted = found
    return {
        "position": f"{scope}:{message.offset}",
        "time": clock(message.time),
        "verdict": "accepted" if accepted else "void",
        "transaction": message.key,
        **json.loads(msgspec.json.encode(record)),
    }


def as_text(scope: int, found: JudgedRecord) -> str:
    """A line for people, and one more for each aggregate that the record writes or reads, and for each part of the step
    of a process."""
    message, record, accepted = found
    verdict = "accepted" if accepted else "VOID    "
    lines = [f"{scope}:{message.offset}  {clock(message.time)}  {verdict}  {message.key}  {about(record)}"]
    for write in record.writes if isinstance(record, Commit) else ():
        events = " ".join(f"{e['type']} {json.dumps(e['payload'])}" for e in map(msgspec.json.decode, write.events))
        version = f"{write.version} → {write.version + len(write.events)}"
        lines.append(f"    {write.aggregate}  {version}  {events or '(no events)'}")
    lines += [f"    {read.aggregate}  read" for read in (record.reads if isinstance(record, Commit) else ())]
    if isinstance(record, Commit) and record.process is not None:
        lines += [f"    {part}" for part in parts(scope, record.process)]
    if isinstance(record, Commit) and record.cause is not None:
        lines.append(f"    is the command {record.cause.command} of {record.cause.process}, {record.cause.text}")
    return "\n".join(map(shown, lines))


def parts(scope: int, step: ProcessStep) -> Iterator[str]:
    if step.source:
        yield f"takes {step.source}"
    if step.answers:
        yield f"has the answer to the command {scope}:{step.answers}"
    if step.fires:
        yield f"fires the deadline {step.fires}, due at {clock(step.due)} by the log's clock"
    if step.parks:
        yield "waits, and is on record for later"
    if step.stuck:
        yield f"stuck: {step.stuck}"
    if step.unparks:
        yield f"ends the wait of {step.unparks}"
    for name in step.cancels:
        yield f"cancels the deadline {name}"
    for send in step.sends:
        command = msgspec.json.decode(send.message)
        yield f"sends to {send.service}/{send.id}  {command['type']} {json.dumps(command['payload'])}"
    for schedule in step.schedules:
        yield f"schedules the deadline {schedule.name}  {schedule.after_ms} ms later"
    if step.ends:
        yield "ends the process"
