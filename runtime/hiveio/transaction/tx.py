"""The ``tx`` of one perform: the aggregates that it has read, with their heads, and the events that it writes."""

from typing import Any

from hiveio.actor import Actor, Contract, Event
from hiveio.errors import SeveralScopes
from hiveio.transaction.actors import Actors
from hiveio.transaction.cache import Entry
from hiveio.transaction.command import InFlight
from hiveio.transaction.lock import LockBusy
from hiveio.transaction.pipeline import Pipeline
from hiveio.transaction.quarantine import refusal_of_another
from hiveio.transaction.record import aggregate


class Tx:
    """``entries`` is the read set, with each entry as it was when it was read. ``events`` is the write set, without the
    events that perform returns."""

    def __init__(self, actors: Actors, command: InFlight, pipeline: Pipeline, tip: Entry) -> None:
        self._actors, self._command, self._own = actors, command, pipeline
        self.pipelines = {command.target: pipeline}
        self.entries = {command.target: tip}
        self.events: dict[str, list[Event]] = {}
        self._closed = False

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
