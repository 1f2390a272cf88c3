"""What the author of an actor imports, and nothing else."""

from hiveio.actor import Actor, Command, Event, Model, Query, Transaction
from hiveio.envelope import Context
from hiveio.errors import Forbidden, NotFound, Rejected, Unauthorized, Unavailable

__version__ = "0.1.0"
__all__ = [
    "Actor",
    "Command",
    "Context",
    "Event",
    "Forbidden",
    "Model",
    "NotFound",
    "Query",
    "Rejected",
    "Transaction",
    "Unauthorized",
    "Unavailable",
]
