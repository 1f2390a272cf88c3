"""The ``tx`` of one perform: the aggregates that it has read, with their heads, the events that it writes, and what a
process sends and schedules."""

import re
from datetime import timedelta
from typing import Any

from msgspec import Raw

from hiveio.actor import Actor, Contract
from hiveio.envelope import ID_LIMIT, encode_message
from hiveio.errors import SeveralScopes
from hiveio.messages import Command, Deadline, Event
from hiveio.transaction.actors import Actors
from hiveio.transaction.command import InFlight
from hiveio.transaction.entry import Entry
from hiveio.transaction.lock import LockBusy
from hiveio.transaction.pipeline import Pipeline
from hiveio.transaction.process import Input, Process
from hiveio.transaction.quarantine import refusal_of_another
from hiveio.transaction.record import ProcessStep, Schedule, Send, aggregate

_SERVICE = re.compile(r"[a-zA-Z0-9._-]{1,220}")


class Tx:
    """``entries`` is the read set, with each entry as it was when it was read. ``events`` is the write set, without the
    events that perform returns."""

    def __init__(self, actors: Actors, command: InFlight, pipeline: Pipeline, tip: Entry) -> None:
        self._actors, self._command, self._own = actors, command, pipeline
        self.pipelines = {command.target: pipeline}
        self.entries = {command.target: tip}
        self.events: dict[str, list[Event]] = {}
        self._sends: list[Send] = []
        self._deadlines: dict[str, Schedule | None] = {}  # by name; None is to be cancelled
        self._ends = self._closed = False

    @property
    def state(self) -> Any:
        return self._state(self._command.contract, self._command.target)

    def _state(self, contract: Contract, name: str) -> Any:
        entry = self.entries[name]
        return contract.own_state(entry.state, entry.snapshot)

    @property
    def version(self) -> int:
        return self.entries[self._command.target].version

    async def get(self, actor: type[Actor], id: str) -> Any:
        """See hiveio.Transaction. Raises LockBusy, after which the command is performed again with all its aggregates
        locked."""
        name = self._named(actor, id)
        if name not in self.entries:
            self._command.need(name)
            if name not in self.pipelines:
                self.pipelines[name] = pipeline = self._own.another(name)
                pipeline.add_reader()
            entry = await self._own.wait_for(self.pipelines[name])
            if entry.fault:
                raise refusal_of_another()
            self.entries[name] = entry
        return self._state(self._actors.by_kind[actor], name)

    def emit(self, actor: type[Actor], id: str, event: Event) -> None:
        """See hiveio.Transaction."""
        name = self._named(actor, id)
        self._actors.by_kind[actor].check_event(event)
        self.events.setdefault(name, []).append(event)

    def send(self, service: str, id: str, command: Command) -> None:
        """See hiveio.Transaction."""
        self._check_process("send")
        if not isinstance(command, Command):
            raise TypeError(f"tx.send was given {command!r}, which is not a Command")
        if not _SERVICE.fullmatch(service):
            raise ValueError(f"tx.send was given the service {service!r}; it is the name of that service's event topic")
        declared = self._command.contract.sends
        if declared and type(command) not in declared.get(service, ()):
            raise TypeError(f"tx.send was given {type(command).__name__} for {service}, which `sends` does not name")
        if not 0 < len(id.encode()) <= ID_LIMIT:
            raise ValueError(f"tx.send was given the id {id!r}; it has 1 to {ID_LIMIT} bytes of UTF-8")
        self._sends.append(Send(service, id, self._encoded(command)))

    def schedule(self, deadline: Deadline, *, after: timedelta, name: str = "") -> None:
        """See hiveio.Transaction."""
        self._check_process("schedule")
        self._check_deadline("schedule", type(deadline))
        after_ms = after // timedelta(milliseconds=1)
        if after_ms < 0:
            raise ValueError(f"tx.schedule was given {after!r}; a deadline is in the future")
        full = deadline_name(type(deadline), name)
        self._deadlines[full] = Schedule(full, after_ms, self._encoded(deadline))

    def cancel(self, kind: type[Deadline], name: str = "") -> None:
        """See hiveio.Transaction."""
        self._check_process("cancel")
        self._check_deadline("cancel", kind)
        self._deadlines[deadline_name(kind, name)] = None

    def end(self) -> None:
        """See hiveio.Transaction."""
        self._check_process("end")
        self._ends = True

    def has_ended(self, name: str) -> bool:
        """Whether an aggregate that it has read is a process that has ended."""
        process = self.entries[name].process
        return bool(process) and Process.of(process).ended

    @property
    def taken(self) -> bool:
        """Whether the input has had its effect already."""
        input = self._command.input
        return input is not None and input.taken(self.entries[self._command.target].process)

    @property
    def waits(self) -> bool:
        """Whether other inputs of the process wait before this one."""
        input = self._command.input
        return input is not None and input.waits(self.entries[self._command.target].process)

    def parked(self, input: Input, stuck: str) -> ProcessStep:
        """The step of an input that waits. ``stuck`` says why, where it is this one that cannot be handled."""
        if input.resumes:
            return ProcessStep(stuck=stuck)
        event = Raw(self._command.envelope.body)
        return ProcessStep(
            input.source, fires=input.fires, due=input.due, parks=(event,), stuck=stuck, answers=input.answers
        )

    def step(self, input: Input | None) -> ProcessStep | None:
        """The step of the process, or None where there is nothing in it."""
        nothing = not (self._sends or self._deadlines or self._ends)
        if nothing and (input is None or input.cause is not None):
            return None
        schedules = tuple(schedule for schedule in self._deadlines.values() if schedule is not None)
        cancels = tuple(name for name, schedule in self._deadlines.items() if schedule is None)
        taken = input or Input()
        sent = tuple(self._sends)
        return ProcessStep(
            taken.source,
            sent,
            schedules,
            cancels,
            taken.fires,
            taken.due,
            unparks=taken.resumes,
            answers=taken.answers,
            ends=self._ends,
        )

    def _encoded(self, message: Command | Deadline) -> Raw:
        return Raw(encode_message(message, self._command.envelope.meta))

    def _check_process(self, method: str) -> None:
        if self._closed:
            raise LockBusy(f"the perform of {self._command.target} to which this tx was given has ended")
        if not self._command.contract.process:
            raise TypeError(f"{self._command.contract.name} called tx.{method}, and is not a ProcessManager")

    def _check_deadline(self, method: str, kind: type) -> None:
        contract = self._command.contract
        if not issubclass(kind, Deadline) or contract.inputs.get(kind.__name__) is not kind:
            raise TypeError(f"tx.{method} was given {kind!r}, which is no Deadline that {contract.name}.perform takes")

    @property
    def complete(self) -> bool:
        """Whether all aggregates that it writes were read, since a write needs a head."""
        return not self.events or self.events.keys() <= self.entries.keys()

    async def read_written(self) -> None:
        """Read the aggregates that it writes and has not read."""
        for name in self.events.keys() - self.entries.keys():
            actor, _, id = name.partition("/")
            await self.get(self._actors.by_name[actor].kind, id)

    def moved(self) -> bool:
        """Whether an aggregate that it has read was changed meanwhile."""
        return any(self.pipelines[name].latest() is not entry for name, entry in self.entries.items())

    @property
    def locked_until(self) -> float:
        """The monotonic time up to which all aggregates that it has read are surely locked."""
        return min(pipeline.locked_until for pipeline in self.pipelines.values())

    def close(self) -> None:
        """End it: nothing is read or written by it any more, even if the actor has kept it."""
        self._closed = True
        pipelines, self.pipelines = self.pipelines, {}
        for name, pipeline in pipelines.items():
            if name != self._command.target:
                pipeline.remove_reader()

    def _named(self, actor: type[Actor], id: str) -> str:
        if self._closed:
            raise LockBusy(f"the perform of {self._command.target} to which this tx was given has ended")
        contract = self._actors.by_kind.get(actor)
        if contract is None:
            raise TypeError(f"{actor!r} is not an actor of this service")
        name = aggregate(contract.name, id)
        scope, mine = self._actors.partition(contract, id), self._command.scope.partition
        if scope != mine:
            raise SeveralScopes(
                f"{self._command.target} is in scope {mine} and {name} is in scope {scope}, and a transaction stays "
                "inside one scope. In an existing log, scope(id) and the number of partitions are fixed. Write to each "
                "aggregate with a command of its own, or give actors with new names a scope(id) that puts both into "
                "one scope. A new log can also be made with one partition.",
                aggregates=[self._command.target, name],
                scopes=[mine, scope],
            )
        return name


def deadline_name(kind: type[Deadline], name: str) -> str:
    """The name of a deadline in the log."""
    return f"{kind.__name__}/{name}" if name else kind.__name__
