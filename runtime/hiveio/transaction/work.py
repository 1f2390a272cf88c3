"""The work of an instance and the memory that it takes: commands that are not answered, the aggregates that they have
opened, and records in flight."""

from hiveio.errors import Unavailable
from hiveio.transaction.bounds import BODIES_BYTES, IN_WORK_BYTES
from hiveio.transaction.command import InFlight
from hiveio.transaction.pending import Pending

COMMANDS = 10_000  # that are taken and not answered


class Work:
    """The work of one instance, for all its aggregates."""

    def __init__(self) -> None:
        self.open: dict[InFlight, None] = {}  # in the order of their deadlines
        self.body_bytes = 0  # bytes of the bodies of these commands
        self.weight = 0  # bytes of open aggregates, of records in flight, and of the entries after these records

    def check(self) -> None:
        """Raises Unavailable if no further command is taken."""
        if len(self.open) >= COMMANDS or self.body_bytes >= BODIES_BYTES:
            raise Unavailable(f"{len(self.open)} commands are in work. Try again later.")

    def take(self, command: InFlight) -> None:
        self.open[command] = None
        self.body_bytes += len(command.envelope.body)

    def over(self, command: InFlight) -> None:
        del self.open[command]
        self.body_bytes -= len(command.envelope.body)

    def due(self, now: float) -> InFlight | None:
        """The next command whose deadline has come."""
        command = next(iter(self.open), None)
        return command if command is not None and command.deadline <= now else None

    @property
    def full(self) -> bool:
        """Whether no further aggregate is opened, and no chain grows."""
        return self.weight > IN_WORK_BYTES

    def resized(self, before: int, after: int) -> None:
        """The size of an open aggregate has changed."""
        self.weight += after - before

    def appended(self, pending: Pending) -> None:
        self.weight += pending.size

    def settled(self, pending: Pending) -> None:
        self.weight -= pending.size
