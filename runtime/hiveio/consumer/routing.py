"""The routing of events: which actors handle which event, and what they want of one that no actor handles."""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from hiveio.actor import Contract
from hiveio.envelope import Codec, Handler
from hiveio.messages import CommandAccepted, CommandRefused, Tombstone

MAX_LOGGED_TYPES = 100  # types that nobody takes and that are logged, each once
MAX_TYPE_LENGTH = 100  # characters of one in a log line
logger = logging.getLogger("hiveio.consumer")


class Counts:
    """The records of this process, counted by what was done with them."""

    __slots__ = ("dead", "failed", "handled", "parked", "redriven", "repeated", "retried", "skipped")

    def __init__(self) -> None:
        self.handled = self.repeated = self.skipped = self.retried = self.failed = 0
        self.dead = self.parked = self.redriven = 0


class Target(msgspec.Struct, eq=False):
    """An actor's handler. ``with_record``: it gets the context of each record."""

    contract: Contract
    handle: Handler
    with_record: bool
    name: str
    batch: bool


class Routing:
    """The handlers of each type of event. There is one for all partitions."""

    def __init__(
        self, handlers: Sequence[tuple[Contract, Handler]], *, with_record: bool = False, codec: Codec | None = None
    ) -> None:
        """``codec`` decodes the records, where they are not simply the events that the actors take."""
        self.targets = [
            Target(contract, handle, with_record or contract.wants_context, contract.name, contract.batch)
            for contract, handle in handlers
        ]
        self.names = frozenset(target.name for target in self.targets)
        self.by_type: dict[type, list[Target]] = {}
        for target in self.targets:
            for kind in target.contract.subscribes.values():
                self.by_type.setdefault(kind, []).append(target)
        if takers := [target for target in self.targets if CommandRefused in target.contract.inputs.values()]:
            self.by_type[CommandRefused] = takers
        if takers := [target for target in self.targets if target.contract.process]:
            self.by_type[CommandAccepted] = takers
        self.outcomes = frozenset(
            outcome
            for kind, outcome in ((CommandRefused, b"refused"), (CommandAccepted, b"accepted"))
            if kind in self.by_type
        )
        self.codec = codec or Codec(self.by_type, strict=False)
        if takers := [target for target in self.targets if target.contract.tombstones]:
            self.by_type[Tombstone] = takers
        self.mutable = frozenset(kind for target in self.targets for kind in target.contract.mutable)
        self.counts = Counts()
        kinds = [(target.name, target.contract.kind) for target in self.targets]
        self._keep_undecodable = frozenset(name for name, kind in kinds if kind.undecodable == "dead")
        self._keep_unknown = frozenset(name for name, kind in kinds if kind.unknown == "dead")
        self._logged_types: set[str] = set()

    def takers(self, event: Any, without: frozenset[str] = frozenset()) -> Sequence[Target]:
        """The targets of an event, or of a tombstone, but for the actors ``without``."""
        targets = self.by_type.get(type(event), ())
        return [target for target in targets if target.name not in without] if without else targets

    def keepers(self, kind: str | None) -> frozenset[str]:
        """The actors that keep an undecodable record, or one of this unknown type. Without any, it is skipped."""
        return self._keep_undecodable if kind is None else self._keep_unknown

    def log_unknown(self, where: str, kind: str) -> None:
        """Log once for each type what is done with its records, and what can be done about it."""
        kind = kind[:MAX_TYPE_LENGTH]
        if kind not in self._logged_types and len(self._logged_types) < MAX_LOGGED_TYPES:
            self._logged_types.add(kind)
            logger.error(
                "%s: no actor here takes the type %r (they take: %s). It is a dead letter for %s, as are all records "
                'of its type, and their keys are parked. Take it in perform, or set unknown = "skip" on the actor; '
                "then run `hiveio dead retry`. This line is logged once for each type",
                where, kind, ", ".join(sorted(self.codec.types)), ", ".join(sorted(self._keep_unknown)),
            )  # fmt: skip
