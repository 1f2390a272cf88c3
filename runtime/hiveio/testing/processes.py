"""What tests of process managers see of a log: the commands that were sent, and the deadlines."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec

from hiveio.actor import Contract
from hiveio.envelope import encode_message
from hiveio.messages import Command, Deadline
from hiveio.testing.memory import MemoryLog
from hiveio.transaction import record as records
from hiveio.transaction.process import Process
from hiveio.transaction.record import Barrier, Commit, ProcessStep, Record

_MESSAGE = msgspec.json.Decoder(dict[str, Any])


class Sent(NamedTuple):
    """A command to another service, as it is on the wire."""

    service: str
    id: str
    command: str
    payload: Any

    @classmethod
    def of(cls, service: str, id: str, message: bytes) -> "Sent":
        found = _MESSAGE.decode(message)
        return cls(service, id, found["type"], found["payload"])

    @classmethod
    def expected(cls, service: str, id: str, command: Command) -> "Sent":
        return cls.of(service, id, encode_message(command))


class PendingDeadline(NamedTuple):
    """A deadline of a process: its name in the log, when it is due by the log's clock, and its event as an envelope."""

    due: int
    actor: str
    id: str
    name: str
    event: bytes


class Clock:
    """The clock of a log in memory, in milliseconds. It stands still until it is moved on."""

    def __init__(self) -> None:
        self._now = 1_000_000

    def __call__(self) -> int:
        return self._now

    def move(self, log: MemoryLog, to: int) -> None:
        """Let the time of the log go on to ``to``, by records that change nothing else, as the leader does it."""
        fold = log.folds[0]
        while fold.time < to:
            self._now += min(to - fold.time, fold.window.step_ms)
            log.append(0, f"tick-{len(log.partitions[0]):x}", records.encode(Barrier(())))


def steps(judged: Iterable[tuple[int, Record, bool]]) -> Iterator[ProcessStep]:
    """The steps of processes that were accepted."""
    for _, record, accepted in judged:
        if accepted and isinstance(record, Commit) and record.process is not None:
            yield record.process


def sent(judged: Iterable[tuple[int, Record, bool]]) -> list[Sent]:
    """The commands that processes have sent, in their order."""
    return [Sent.of(send.service, send.id, send.message) for step in steps(judged) for send in step.sends]


def scheduled(judged: Iterable[tuple[int, Record, bool]], contract: Contract) -> list[tuple[Deadline, timedelta]]:
    """The deadlines that processes have scheduled, with the time until each."""
    decode = contract.input_codec.decode
    return [
        (decode(each.event)[0], timedelta(milliseconds=each.after_ms))
        for step in steps(judged)
        for each in step.schedules
    ]


def pending(log: MemoryLog) -> list[PendingDeadline]:
    """The pending deadlines of all processes, in the order in which they are due."""
    found = []
    for aggregate, fold in log.folds[0].aggregates.items():
        actor, _, id = aggregate.partition("/")
        for name, deadline in Process.of(fold.process).deadlines.items():
            found.append(PendingDeadline(deadline.at, actor, id, name, bytes(deadline.event)))
    return sorted(found)


def fires_next(log: MemoryLog) -> PendingDeadline | None:
    """The first pending deadline that can fire: those of a process that is stuck wait with its inputs."""
    aggregates = log.folds[0].aggregates
    return next(
        (each for each in pending(log) if not Process.of(aggregates[f"{each.actor}/{each.id}"].process).stuck), None
    )


def process_of(log: MemoryLog, contract: Contract, id: str) -> Process:
    """What is kept of a process."""
    fold = log.folds[0].aggregates.get(f"{contract.name}/{id}")
    return Process.of(fold.process if fold is not None else b"")


def pending_of(log: MemoryLog, contract: Contract, id: str) -> list[Deadline]:
    """The pending deadlines of one process, in the order in which they are due."""
    mine = [each for each in pending(log) if (each.actor, each.id) == (contract.name, id)]
    return [contract.input_codec.decode(each.event)[0] for each in mine]
