"""The headers of a message, whatever bytes are in their names.

The client (2.16.1) makes a null pointer of each header's name that is not UTF-8, and leaves an exception set: any use
of the name ends the process. CPython notices the exception, and raises SystemError, unless it calls the
method by a short cut of its own, which it does in a loop that has run a few times.
"""

from collections.abc import Callable
from operator import methodcaller
from typing import Any

from confluent_kafka import Message

UNREADABLE = "\ufffd"  # stands for a name that is not UTF-8, which the client can neither read nor write

Pairs = list[tuple[str, bytes | None]]

# No short cut, as with ``map``. Raises SystemError once for each message; then ``repaired`` has its headers.
_checked: Callable[[Message], Pairs | None] = methodcaller("headers")


def headers_of(message: Message) -> Pairs:
    """In their order, repeated ones too. Nothing else may call ``message.headers()``: see above."""
    try:
        return _checked(message) or []
    except SystemError:
        return repaired(message)


def repaired(message: Message) -> Pairs:
    """The headers of a message for which ``headers`` has raised SystemError; the message has these from now on."""
    # ``repr`` shows which pairs have a null pointer, and a slice leaves the pointer out.
    pairs: list[Any] = list(_checked(message) or ())
    found: Pairs = [(UNREADABLE, pair[1:][0]) if repr(pair).startswith("(<NULL>") else pair for pair in pairs]
    message.set_headers(found)  # type: ignore[arg-type]
    return found
