"""Types that several parts of the runtime pass to each other."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

# What ASGI calls an application with: https://asgi.readthedocs.io/en/latest/specs/www.html
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
Fields = list[tuple[bytes, bytes]]  # headers


class RecordMetadata(NamedTuple):
    """Where Kafka has stored a record; ``offset`` is -1 where it does not say."""

    partition: int
    offset: int


DeliveryFuture = asyncio.Future[RecordMetadata]  # of a record that is on its way to Kafka
# (topic, key, headers, its future) → the headers to send
Observer = Callable[[str, str | bytes | None, list[Any], DeliveryFuture], list[Any]]
