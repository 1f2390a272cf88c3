"""Where an aggregate belongs: in the partition that its actor's ``scope(id)`` names.

No verdict depends on that. A version with another ``scope(id)`` would start each aggregate again in another partition,
and both versions would accept records. So a record in a partition where it does not belong, by this version, stops this
instance. It cannot be void instead, because two versions must not judge one record differently.
"""

from collections.abc import Container, Iterable, Iterator, Mapping

from hiveio.actor import Contract
from hiveio.errors import Corrupt, HiveError, Unsafe
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.tail import log_record
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache
from hiveio.transaction.record import Record, named
from hiveio.transaction.rule import scope_of

SAMPLED = 16  # partitions of which the last records are checked
LAST = (10, 100)  # how many records of each: at first, and then if the first ones have at most
BYTES = 1_000_000  # together


class Placement:
    """The partitions of the aggregates of some actors. ``misplaced`` names aggregates, with commas between, that may be
    in any partition: an operator has taken care of them."""

    def __init__(self, contracts: Mapping[str, Contract], topic: str, partitions: int, misplaced: str = "") -> None:
        self._contracts, self._topic, self._partitions = contracts, topic, partitions
        self._misplaced = frozenset(name.strip() for name in misplaced.split(","))

    def home(self, name: str) -> int | None:
        """The partition of ``<actor>/<id>``; None where this version cannot tell."""
        actor, _, id = name.partition("/")
        contract = self._contracts.get(actor)
        if contract is None or name in self._misplaced:
            return None
        try:
            return scope_of(contract.actor.scope(id), self._partitions)
        except BaseException:  # an actor may raise whatever it likes; such an aggregate gets no command anyway
            return None

    def check(self, partition: int, offset: int, record: Record, placed: Container[str] = ()) -> None:
        """Raises Corrupt for a record with an aggregate that belongs elsewhere. ``placed`` are known to belong here."""
        if self._partitions == 1:
            return
        for name in named(record):
            if name not in placed and (home := self.home(name)) not in (None, partition):
                raise Corrupt(self._misplacement(f"{self._topic}/{partition}/{offset}", name, home))

    async def sample(self, log: LogReader, cache: Cache) -> None:
        """Raises Unsafe if the last records of the log, or some aggregates in its cache, show that it was written with
        another ``scope(id)``. Raises Unavailable."""
        if self._partitions == 1:
            return
        for partition in range(min(self._partitions, SAMPLED)):
            for offset, record in await last_records(log, partition):
                try:
                    self.check(partition, offset, record)
                except Corrupt as error:
                    raise Unsafe(str(error)) from None
        for partition, name in await cache.sampled():
            if (home := self.home(name)) not in (None, partition):
                raise Unsafe(self._misplacement(f"The cache of {self._topic}/{partition}", name, home))

    def _misplacement(self, where: str, name: str, home: int | None) -> str:
        return (
            f"{where} has {name}, which belongs to partition {home} by this version's scope(id): that was changed, "
            "and each aggregate would start again in another partition. Run a version with the scope(id) that wrote "
            "this log; docs/operations.md says how to change the scope(id) of an actor"
        )


async def last_records(log: LogReader, partition: int) -> list[tuple[int, Record]]:
    """The last records of a partition with their offsets, without those that this version cannot read. Raises
    Unavailable."""
    first, end = await log.bounds(partition)
    found: list[tuple[int, bytes]] = []
    below = end
    for count in LAST:
        start = max(first, end - count)
        read = await log.read_each(partition, start, below, log_record)
        found, below = [(message.offset, message.value) for message in read] + found, start
        if start == first or sum(len(value) for _, value in found) > BYTES:
            break
    return list(_decoded(found))


def _decoded(found: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Record]]:
    for offset, value in found:
        try:
            yield offset, records.decode(value)
        except HiveError:
            continue  # the scope stops at this record and reports it
