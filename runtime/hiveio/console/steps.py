"""What each record of a process did: the input that it took, the commands that it sent, and which later step has their
answers."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from hiveio.console.records import Row
from hiveio.transaction.record import Commit, ProcessStep, Send

_SOURCE = re.compile(r"([^/]+)/.*/(\d+)/(\d+)")  # the id of a topic may have a slash in it
READ = 2_000  # records of a process, the latest ones, of which steps are shown


class Answer(NamedTuple):
    """The record that has taken the answer to a command, and where that came from; "" where ``perform`` was not given
    it, and so its place is not on record."""

    row: Row
    source: str


class Command(NamedTuple):
    """A command that was sent, and where it is in the outbox, as ``scope:offset:index``."""

    sent: Send
    position: str
    answer: Answer | None


class ProcessMoment(NamedTuple):
    """A record of a process. ``step`` is None where a client's command did nothing but write events. ``kind`` is the
    type of the event that it took, where the record or an earlier one has it."""

    row: Row
    step: ProcessStep | None
    kind: str
    events: list[bytes]
    commands: list[Command]


def moments(name: str, partition: int, rows: Sequence[Row]) -> list[ProcessMoment]:
    """By the accepted records that wrote it, oldest first. Barriers, which do nothing, are left out."""
    answers: dict[str, Answer] = {}
    for row in rows:
        if (step := _step(name, row)) is not None and step.answers:
            answers[step.answers] = Answer(row, step.source)
    waiting: dict[str, str] = {}  # the types of the events that wait, by the names of the inputs
    found = []
    for row in rows:
        if not isinstance(row.record, Commit):
            continue
        step = _step(name, row)
        kind = ""
        if step is not None:
            if step.parks:
                kind = waiting[step.source or step.fires] = type_of(bytes(step.parks[0]))
            elif step.unparks:
                kind = waiting.pop(step.unparks, "")
        events = [bytes(event) for write in row.record.writes if write.aggregate == name for event in write.events]
        commands = []
        for index, sent in enumerate(step.sends if step is not None else ()):
            at = f"{row.message.offset}:{index}"
            commands.append(Command(sent, f"{partition}:{at}", answers.get(at)))
        found.append(ProcessMoment(row, step, kind, events, commands))
    return found


def _step(name: str, row: Row) -> ProcessStep | None:
    """Its step in this record; none where another aggregate is the target."""
    if isinstance(row.record, Commit) and row.record.command.target == name:
        return row.record.process
    return None


def place(source: str) -> str:
    """Where an input comes from, without the id of its topic: ``topic/partition/offset``. Deadlines have a name."""
    found = _SOURCE.fullmatch(source)
    return "/".join(found.groups()) if found else source


class _Typed(msgspec.Struct):
    type: str = "?"


def type_of(envelope: bytes) -> str:
    try:
        return msgspec.json.decode(envelope, type=_Typed).type
    except msgspec.MsgspecError:
        return "?"
