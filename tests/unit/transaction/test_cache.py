"""Who forwards commands to whom, by what instances say in Redis, and how much they take at once."""

from typing import Any

from hiveio import Actor, Command, Event, Model
from hiveio.actor import contracts
from hiveio.transaction.cache import LOAD_BYTES, Cache, fingerprint, taken
from hiveio.transaction.mailbox import PACKET_BYTES


class Pay(Command):
    amount: int


class Paid(Event):
    amount: int


class Purse(Model):
    amount: int = 0


class PurseActor(Actor):
    name = "Purse"
    path = "/purses/{id}"

    def perform(self, purse: Purse | None, command: Pay) -> Paid:
        return Paid(command.amount)

    def replay(self, purse: Purse | None, event: Paid) -> Purse:
        return Purse(event.amount)


def newer() -> type[Actor]:
    """The next version: the same models, and a command that has one more field."""

    class Pay(Command):
        amount: int
        fee: int = 0

    class NewerActor(PurseActor):
        def perform(self, purse: Purse | None, command: Pay) -> Paid:  # type: ignore[override]
            return Paid(command.amount + command.fee)

    return NewerActor


class Keys:
    """A Redis with keys, and nothing else."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.asked: list[int] = []  # for how many items of a list

    async def execute(self, *command: Any, key: str | None = None) -> Any:
        if command[0] == "BLMPOP":
            self.asked.append(command[-1])
            return None
        if command[0] == "SET":
            self.values[command[1]] = command[2].encode()
        return self.values.get(command[1])


async def test_nothing_is_forwarded_to_a_version_that_knows_other_fields_of_a_command() -> None:
    """It would execute the command without them."""
    redis: Any = Keys()
    old, new = contracts([PurseActor]), contracts([newer()])
    assert fingerprint(old) == fingerprint(new)
    caches = [Cache(redis, "topic", "id", fingerprint(each), taken(each)) for each in (old, new)]
    for mine, other in (caches, reversed(caches)):
        await mine.take_commands("A", 1_000)
        assert await mine.takes_commands("A")
        assert not await other.takes_commands("A")


def test_the_order_of_actors_does_not_matter() -> None:
    class Other(PurseActor):
        name = "Other"

    assert taken(contracts([PurseActor, Other])) == taken(contracts([Other, PurseActor]))


async def test_full_packets_come_in_answers_that_are_not_larger_than_others() -> None:
    """The bound of a call holds for all of its answer, and what was taken with it is lost."""
    redis: Any = Keys()
    assert await Cache(redis, "topic", "id", "meaning").receive("A", 0.0) == []
    (count,) = redis.asked
    assert 1 < count <= LOAD_BYTES / PACKET_BYTES
