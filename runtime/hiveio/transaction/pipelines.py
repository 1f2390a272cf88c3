"""The pipelines of one instance by the names of their aggregates, and what all of them share."""

from collections.abc import Callable, Iterable

from hiveio.errors import Problem
from hiveio.transaction.access import Access
from hiveio.transaction.command import InFlight
from hiveio.transaction.lock import Retries
from hiveio.transaction.metrics import CommandMetrics
from hiveio.transaction.pending import Pending
from hiveio.transaction.pipeline import Pipeline
from hiveio.transaction.pipeline_state import IDLE, PAUSED
from hiveio.transaction.scope import Scope
from hiveio.transaction.work import Work


class Pipelines:
    """A pipeline is here from its first command until it is closed."""

    def __init__(self, access: Access, retries: Retries, work: Work, metrics: CommandMetrics) -> None:
        self.access, self.retries, self.work, self.metrics = access, retries, work, metrics
        self._open: dict[str, Pipeline] = {}
        self.perform: Callable[[Pipeline, InFlight], None]
        self.give_up: Callable[[InFlight, Problem], None]

    def serve(
        self, perform: Callable[[Pipeline, InFlight], None], give_up: Callable[[InFlight, Problem], None]
    ) -> None:
        """Set who performs a command on the tip of its pipeline, and who answers one that is out of retries."""
        self.perform, self.give_up = perform, give_up

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Pipeline | None:
        return self._open.get(name)

    def work_on(self, scope: Scope) -> bool:
        """Whether one of its aggregates is open."""
        return any(pipeline.scope is scope for pipeline in self._open.values())

    def of(self, scope: Scope, name: str) -> Pipeline:
        """The pipeline of an aggregate; it is made if there is none."""
        pipeline = self._open.get(name)
        if pipeline is None:
            pipeline = self._open[name] = Pipeline(self, scope, name)
        return pipeline

    def closed(self, pipeline: Pipeline) -> None:
        if self._open.get(pipeline.aggregate) is pipeline:
            del self._open[pipeline.aggregate]

    def settled(self, pending: Pending, verdict: bool | None) -> None:
        """A record of this instance is read back, or (None) nobody can say what became of it."""
        for name in pending.entries:
            self._open[name].settled(pending, verdict)

    def release(self, pipeline: Pipeline, names: Iterable[str]) -> None:
        """Release the locks that no other pipeline uses."""
        others = {name: other for name in names if (other := self._open.get(name)) and other is not pipeline}
        unused = [
            name
            for name in names
            if (other := others.get(name)) is None or other.unlocked or other.state in (IDLE, PAUSED)
        ]
        self.access.release(pipeline.scope, unused)

    def release_all(self) -> None:
        for name, pipeline in self._open.items():
            self.access.release(pipeline.scope, (name,))
