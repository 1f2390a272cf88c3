"""``hiveio check``: finds changes of the actors in this folder that break others, before they are rolled out.

``--write schemas.json`` writes a description of the actors to a file, which belongs in git. ``hiveio check
schemas.json`` compares the actors with it. Further files are those of other services: each event that one service
writes must be understood by the other. ``--log`` reads the transaction log: its events are decoded and folded by their
actors. The command writes nothing but the file.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from hiveio.actor import Contract
from hiveio.cli.judging import count_scopes, judged
from hiveio.cli.schemas import Description, describe, incompatibilities, unwritten_fields
from hiveio.cli.shown import shown
from hiveio.config import Settings
from hiveio.errors import ConfigError, Invalid, LoadError
from hiveio.loader import load
from hiveio.transaction.placement import Placement
from hiveio.transaction.record import Commit, Write

FORMAT = 1

CLIENTS = "clients"
READERS = "readers of the event topic"
RECORDS = "old records in the log"
INSTANCES = "older instances, while both run"
BOTH = f"{READERS}, and {INSTANCES}"
SNAPSHOTS = "snapshots in the cache"


class Finding(NamedTuple):
    whom: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"breaks {self.whom}: {self.what}; {self.remedy}"


class File(msgspec.Struct):
    """The description of a service: its actors by name."""

    format: int
    actors: dict[str, Description]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="the file of this service, then those of others"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write a description of the actors, to compare with later"
    )
    parser.add_argument("--log", action="store_true", help="decode and fold every event of the transaction log")


def run(arguments: argparse.Namespace) -> int:
    """0 if nothing breaks, 1 if something does, 2 for wrong usage and for files or actors that cannot be loaded."""
    if not (arguments.files or arguments.write or arguments.log):
        raise ConfigError("Name a file that --write has written, or --log, or both")
    settings = Settings.read()
    try:
        contracts = load(settings)
    except LoadError as error:
        raise ConfigError(str(error)) from None
    ours = {contract.name: describe(contract) for contract in contracts}
    before, *others = [_read(path) for path in arguments.files] or [ours]
    found = [*changes(before, ours), *(f for other in others for f in (*across(ours, other), *across(other, ours)))]
    if arguments.log:
        found += in_log(settings, contracts)
    for finding in found:
        print(shown(str(finding)))
    if arguments.write:
        _write(arguments.write, ours)
    print(f"{_counted(len(ours), 'actor')}: {_counted(len(found), 'breaking change')}")
    return 1 if found else 0


def _counted(number: int, thing: str) -> str:
    return f"{number or 'no'} {thing}{'' if number == 1 else 's'}"


def _read(path: Path) -> dict[str, Description]:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=File)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; write it with hiveio check --write") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} was not written by hiveio check --write: {error}") from None
    if file.format != FORMAT:
        raise ConfigError(
            f"{path} has format {file.format}, and this version knows {FORMAT}; write it again with --write"
        )
    return file.actors


def _write(path: Path, actors: dict[str, Description]) -> None:
    text = msgspec.json.format(msgspec.json.encode(File(FORMAT, actors), order="deterministic"), indent=1)
    try:
        path.write_bytes(text + b"\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


# -- this service, before and now


def changes(before: dict[str, Description], now: dict[str, Description]) -> Iterator[Finding]:
    for name, old in before.items():
        if name in now:
            yield from _message_changes(name, old, now[name])
            yield from _event_changes(name, old, now[name])
            yield from _fold_changes(name, old, now[name])
        else:
            yield from _removed_actor(name, old, {n: new for n, new in now.items() if n not in before})


def _removed_actor(name: str, old: Description, new: dict[str, Description]) -> Iterator[Finding]:
    like = [n for n, other in new.items() if (old.events and other.events.keys() & old.events.keys())]
    if old.model is not None:
        remedy = f'write name = "{name}" in {like[0]}' if like else "keep the actor, if only to fold what it wrote"
        yield Finding(RECORDS, f"the log has aggregates of {name}, and there is no actor of that name", remedy)
    if not any(new[n].path == old.path for n in like) and (old.commands or old.queries):
        yield Finding(CLIENTS, f"{old.path or name} is gone", "keep it until nobody asks for it")


def _message_changes(actor: str, old: Description, new: Description) -> Iterator[Finding]:
    """Commands and queries, which older clients write and the service of today reads."""
    for title, was, now in (("command", old.commands, new.commands), ("query", old.queries, new.queries)):
        for name, schema in was.items():
            if name not in now:
                yield Finding(CLIENTS, f"the {title} {actor} {name} is gone", "keep it until nobody sends it")
                continue
            for at, why in incompatibilities(schema, now[name]):
                remedy = "give a new field a default, and take what was taken; or make another message of it"
                yield Finding(CLIENTS, f"{actor} {name}{at}: {why}", remedy)
    if added := sorted({*new.requires} - {*old.requires}):
        text = f"{actor} requires a scope more of a token: {', '.join(added)}"
        yield Finding(CLIENTS, text, "let the issuer give it to those who are to go on, and then require it")
    moved = [(name, old.paths[name], new.paths[name]) for name in old.paths if name in new.paths]
    if old.commands and new.commands:
        moved.insert(0, ("", old.path, new.path))
    for name, was_at, now_at in moved:
        if was_at != now_at:
            text = f"{f'{actor} {name}'.strip()} was on {was_at}, and is on {now_at or 'no path'}"
            yield Finding(CLIENTS, text, "keep the path")


def _event_changes(actor: str, old: Description, new: Description) -> Iterator[Finding]:
    for name, schema in old.events.items():
        if (today := new.events.get(name)) is None:
            if not new.upcasts:
                remedy = "let upcast make today's event of it, or keep it in replay"
                yield Finding(RECORDS, f"no {actor} reads the event {name} any more", remedy)
        else:
            if not new.upcasts:
                for at, why in incompatibilities(schema, today):
                    remedy = "give a new field a default, or let upcast make today's event of the old one"
                    yield Finding(RECORDS, f"{actor} {name}{at}: {why}", remedy)
            gone = {f".{field}": "it is gone, and they find its default" for field in unwritten_fields(today, schema)}
            for at, why in (gone | dict(incompatibilities(today, schema))).items():
                remedy = "keep it until nobody reads it; add fields, and do not change them"
                yield Finding(READERS if new.model is None else BOTH, f"{actor} {name}{at}: {why}", remedy)
        if name in old.given and name not in new.given:
            successors = [n for n in new.given if n not in old.events]
            instead = f", but {', '.join(successors)}" if successors else ""
            yield Finding(READERS, f"{actor} writes no {name} any more{instead}", "let readers take the other first")
    for name in new.given:
        if name not in old.events:
            remedy = "first roll out a version whose replay takes it, then one whose perform gives it"
            yield Finding(INSTANCES, f"{actor} writes {name}, which they cannot fold", remedy)
    if old.topic != new.topic:
        text = f"{actor} writes to {new.topic or 'EVENT_STORE_TOPIC'}, and wrote to {old.topic or 'EVENT_STORE_TOPIC'}"
        yield Finding(READERS, text, "let them read both first")


def _fold_changes(actor: str, old: Description, new: Description) -> Iterator[Finding]:
    """Another model has another cache. Another ``replay`` of the same model does not, unless schema_version is
    raised."""
    same = (old.model, old.schema_version) == (new.model, new.schema_version)
    # If the events changed too, the new code may be for an event that no snapshot has folded.
    if same and old.code and new.code and old.code != new.code and old.events.keys() >= new.events.keys():
        remedy = "raise schema_version; if no state changes by that, write the file again with --write"
        yield Finding(SNAPSHOTS, f"replay or upcast of {actor} changed, and the model did not", remedy)
    if new.schema_version < old.schema_version:
        text = f"schema_version of {actor} is {new.schema_version}, and was {old.schema_version}"
        yield Finding(SNAPSHOTS, text, "take a number that was never used")
    if old.scope != new.scope:
        remedy = "let it return what it returned for every id in the log, which --log checks"
        yield Finding(RECORDS, f"scope of {actor} changed, and names the partition of what is in the log", remedy)


# -- two services


def across(writers: dict[str, Description], readers: dict[str, Description]) -> Iterator[Finding]:
    """Find events that a service does not understand, of other services from which it takes some."""
    heard = {name: schema for reader in readers.values() for name, schema in reader.heard.items()}
    skips = all(reader.skips for reader in readers.values() if reader.heard)
    listeners = ", ".join(name for name, reader in readers.items() if reader.heard)
    for actor, writer in writers.items():
        if not heard.keys() & writer.events.keys():
            continue
        for name, schema in writer.events.items():
            if name in heard:
                for at, why in incompatibilities(schema, heard[name]):
                    yield Finding(listeners, f"{actor} writes {name}{at}: {why}", "let it read what is written")
            elif not skips:
                remedy = 'take it in perform, or write unknown = "skip"'
                yield Finding(listeners, f"{actor} writes {name}, which nobody takes: a dead letter each", remedy)


# -- the log


class _Failure(msgspec.Struct):
    """Aggregates whose events cannot be folded for one reason: their number, and where the first one is."""

    first: str
    aggregates: int = 0


class _LogCheck:
    """Decodes and folds the events of a log with their actors. An aggregate is left at its first event that fails."""

    def __init__(self, contracts: list[Contract], placement: Placement) -> None:
        self._contracts = {contract.name: contract for contract in contracts if contract.replay}
        self._placement = placement
        self._states: dict[str, Any] = {}
        self._left: set[str] = set()
        self.counts: Counter[str] = Counter()  # events by actor and type
        self.failures: dict[tuple[str, str], _Failure] = {}  # by what fails, and the remedy
        self.misplaced: dict[str, dict[str, str]] = {}  # of each actor the aggregates that scope(id) puts elsewhere

    def take(self, write: Write, scope: int, position: str) -> None:
        """Take the next accepted write. ``position`` names its record in the log."""
        name, actor = write.aggregate, write.aggregate.partition("/")[0]
        if self._placement.home(name) not in (None, scope):
            self.misplaced.setdefault(actor, {}).setdefault(name, position)
        for event in write.events:
            type_ = _typed(event).type
            self.counts[f"{actor} {type_}"] += 1
            if name in self._left:
                continue
            try:
                self._states[name] = _fold(self._contracts[actor], self._states.get(name), bytes(event))
            except Exception as error:
                self._left.add(name)
                key = _failure(actor, type_, error, known=actor in self._contracts)
                self.failures.setdefault(key, _Failure(position)).aggregates += 1

    def findings(self) -> Iterator[Finding]:
        for (what, remedy), failure in self.failures.items():
            count = _counted(failure.aggregates, "aggregate")
            yield Finding(RECORDS, f"{what} ({count}, first at {failure.first})", remedy)
        for actor, positions in self.misplaced.items():
            count, first = _counted(len(positions), "aggregate"), next(iter(positions.values()))
            what = f"scope(id) of {actor} gives another partition to {count}, first at {first}"
            yield Finding(RECORDS, what, "keep the scope(id) that wrote them")


def in_log(settings: Settings, contracts: list[Contract]) -> list[Finding]:
    """Find the events in the log that the actors cannot decode or fold."""
    settings.need(brokers="the log is in Kafka", written_topic="the log is <topic>.transactions")
    scopes = count_scopes(settings)
    by_name = {contract.name: contract for contract in contracts if contract.replay}
    log = _LogCheck(contracts, Placement(by_name, settings.log_topic, scopes, settings.misplaced))
    for scope in range(scopes):
        for found in judged(settings, scope):
            if isinstance(found.record, Commit) and found.accepted:
                for write in found.record.writes:
                    log.take(write, scope, f"{settings.log_topic}/{scope}/{found.message.offset}")
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(log.counts.items()))
    print(f"{settings.log_topic}: " + shown(counts))
    return list(log.findings())


def _fold(contract: Contract, state: Any, event: bytes) -> Any:
    assert contract.replay is not None
    folded = contract.replay(state, contract.event_codec.decode(event)[0])
    return contract.model_decoder.decode(msgspec.json.encode(folded))


def _failure(actor: str, type_: str, error: Exception, *, known: bool) -> tuple[str, str]:
    if not known:
        what = f"the log has aggregates of {actor}, and there is no actor of that name"
        return what, f'write name = "{actor}" in the actor that is to fold them'
    if isinstance(error, Invalid) and error.members.get("pointer") == "/type":
        reason = "it is none of the events that replay takes"
    else:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{actor} cannot fold {type_}: {reason}", "let upcast make today's event of it, or let replay take it"


class _Typed(msgspec.Struct):
    type: str


_typed = msgspec.json.Decoder(_Typed).decode
