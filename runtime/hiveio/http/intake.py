"""How messages come in: the body of a request, and the forms of a message that are not one JSON envelope."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from hiveio.envelope import Envelope
from hiveio.errors import TooLarge
from hiveio.http.response import Response
from hiveio.types import Message, Receive


class ClientDisconnected(Exception):
    """The client hung up before its request arrived in full; nobody waits for an answer."""


class TakeBatch(Protocol):
    """Carries out a batch while it comes in."""

    async def __call__(
        self,
        first: Message,
        receive: Receive,
        headers: Mapping[bytes, bytes],
        common: Envelope,
        progressed: Callable[[], None],
    ) -> Response:
        """The response to a batch of which ``first`` is the first part.

        ``common`` has what all its messages have in common; ``progressed`` is called while the batch makes progress.
        Raises TooLarge before anything is carried out where Content-Length says so, and ClientDisconnected.
        """


class Form(NamedTuple):
    """A form of a body. Either ``envelope`` makes the JSON envelope of its one message, or ``take_batch`` takes it."""

    envelope: Callable[[bytes, Mapping[bytes, bytes]], bytes] | None = None
    take_batch: TakeBatch | None = None


class Intake(Protocol):
    """The forms that a route takes besides one JSON envelope."""

    def form(self, headers: Mapping[bytes, bytes], start: bytes) -> Form | None:
        """The form of a body that starts like this; None for one JSON envelope. Raises UnsupportedMediaType."""


async def read_body(first: Message, receive: Receive, limit: int) -> bytes:
    """A body that comes in several parts, of which ``first`` is the first. Raises TooLarge and ClientDisconnected."""
    parts: list[bytes] = []
    size, message = 0, first
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise TooLarge(f"The body has more than {limit} bytes.")
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
