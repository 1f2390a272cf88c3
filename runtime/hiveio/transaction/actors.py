"""The actors of a service, and the scopes of their aggregates."""

from collections.abc import Sequence

from hiveio.actor import Contract
from hiveio.errors import contained
from hiveio.transaction.rule import scope_of


class Actors:
    """The contracts by the name of the actor, as records have it, and by its class, as ``tx`` has it."""

    def __init__(self, contracts: Sequence[Contract], scopes: int) -> None:
        self.by_name = {contract.name: contract for contract in contracts}
        self.by_kind = {contract.kind: contract for contract in contracts}
        self._scopes = scopes

    def partition(self, contract: Contract, id: str) -> int:
        """The scope of an aggregate. Raises what the actor's ``scope`` raises."""
        try:
            return scope_of(contract.actor.scope(id), self._scopes)
        except BaseException as error:
            raise contained(error)  # noqa: B904 - it is the same, or has it as its cause
