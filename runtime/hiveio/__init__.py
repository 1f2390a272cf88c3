"""What the author of an actor imports, and nothing else."""

from hiveio.actor import Actor, ProcessManager, Transaction
from hiveio.correlation import KEY
from hiveio.envelope import Context
from hiveio.errors import Forbidden, NotFound, Rejected, Stuck, Unauthorized, Unavailable
from hiveio.headers import Headers
from hiveio.identity import Identity
from hiveio.messages import Command, CommandRefused, Deadline, Event, Model, Query, Tombstone

__version__ = "0.2.0"
__all__ = [
    "KEY",
    "Actor",
    "Command",
    "CommandRefused",
    "Context",
    "Deadline",
    "Event",
    "Forbidden",
    "Headers",
    "Identity",
    "Model",
    "NotFound",
    "ProcessManager",
    "Query",
    "Rejected",
    "Stuck",
    "Tombstone",
    "Transaction",
    "Unauthorized",
    "Unavailable",
]
