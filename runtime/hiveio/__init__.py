"""What the author of an actor imports, and nothing else."""

from hiveio.actor import Actor, Command, Event, Model, Query, Tombstone, Transaction
from hiveio.envelope import Context
from hiveio.errors import Forbidden, NotFound, Rejected, Unauthorized, Unavailable
from hiveio.headers import Headers
from hiveio.identity import Identity

__version__ = "0.2.0"
__all__ = [
    "Actor",
    "Command",
    "Context",
    "Event",
    "Forbidden",
    "Headers",
    "Identity",
    "Model",
    "NotFound",
    "Query",
    "Rejected",
    "Tombstone",
    "Transaction",
    "Unauthorized",
    "Unavailable",
]
