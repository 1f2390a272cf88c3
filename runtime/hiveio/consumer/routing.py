"""Which actors take which event, and what they say of one that nobody takes."""

from collections.abc import Sequence

import msgspec

from hiveio.actor import Contract
from hiveio.envelope import Codec, Handler
from hiveio.errors import Invalid, Problem


class Counts:
    """What became of the records of this process."""

    __slots__ = ("dead", "failed", "handled", "parked", "redriven", "repeated", "retried", "skipped")

    def __init__(self) -> None:
        self.handled = self.repeated = self.skipped = self.retried = self.failed = 0
        self.dead = self.parked = self.redriven = 0


class Target:
    """An actor's handler; ``with_record`` when it is given the context of each record."""

    __slots__ = ("batch", "contract", "handle", "name", "with_record")

    def __init__(self, contract: Contract, handle: Handler, *, with_record: bool) -> None:
        self.contract, self.handle, self.with_record = contract, handle, with_record
        self.name, self.batch = contract.name, contract.batch


class Routing:
    """Which handlers take which event; one for all lanes."""

    def __init__(self, handlers: Sequence[tuple[Contract, Handler]], *, with_record: bool = False) -> None:
        self.targets = [
            Target(contract, handle, with_record=with_record or contract.wants_context) for contract, handle in handlers
        ]
        self.names = frozenset(target.name for target in self.targets)
        self.by_type: dict[type, list[Target]] = {}
        for target in self.targets:
            for kind in target.contract.heard.values():
                self.by_type.setdefault(kind, []).append(target)
        self.codec = Codec(self.by_type, strict=False)
        self.counts = Counts()
        kinds = [(target.name, target.contract.kind) for target in self.targets]
        self._keep_undecodable = frozenset(name for name, kind in kinds if kind.undecodable == "dead")
        self._keep_unknown = frozenset(name for name, kind in kinds if kind.unknown == "dead")

    def keepers(self, value: bytes, error: Problem) -> frozenset[str]:
        """Who wants a record kept that ``error`` says is not for them: none, and it is skipped."""
        return self._keep_unknown if self._unheard(value, error) else self._keep_undecodable

    def _unheard(self, value: bytes, error: Problem) -> bool:
        """Whether it could not be decoded because nobody here takes its type, which is no fault."""
        if not isinstance(error, Invalid) or error.members.get("pointer") != "/type":
            return False
        try:
            return _type_of(value).type not in self.codec.types
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False


class _Type(msgspec.Struct):
    type: str


_type_of = msgspec.json.Decoder(_Type).decode
