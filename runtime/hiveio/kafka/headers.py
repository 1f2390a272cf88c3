"""The headers of a message, whatever their names are made of.

The client (2.16.1) makes a null pointer of each header's name that is not UTF-8, and leaves an exception behind: who
touches the name ends the process. CPython notices the exception, and raises SystemError, where it does not call the
method by a short cut of its own, which it takes in a loop that has run a few times.
"""

from collections.abc import Callable
from operator import methodcaller
from typing import Any

from confluent_kafka import Message

UNREADABLE = "\ufffd"  # the name of a header whose own is not UTF-8: the client reads none that is not, and writes none

Pairs = list[tuple[str, bytes | None]]

# Takes no short cut, nor does ``map``. Raises SystemError, once for each message; then ``mended`` has its headers.
_checked: Callable[[Message], Pairs | None] = methodcaller("headers")


def headers_of(message: Message) -> Pairs:
    """In their order, repeated ones too. Nobody calls ``message.headers()``: see above."""
    try:
        return _checked(message) or []
    except SystemError:
        return mended(message)


def mended(message: Message) -> Pairs:
    """The headers of a message for which ``headers`` has raised SystemError; it gives these from now on."""
    # Their representation tells the pairs with a null pointer, and a slice leaves it out.
    pairs: list[Any] = list(_checked(message) or ())
    found: Pairs = [(UNREADABLE, pair[1:][0]) if repr(pair).startswith("(<NULL>") else pair for pair in pairs]
    message.set_headers(found)  # type: ignore[arg-type]
    return found
