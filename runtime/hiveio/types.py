"""Types that several parts of the runtime pass to each other."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

App = Callable[[Any, Any, Any], Awaitable[None]]  # ASGI
Stored = asyncio.Future[tuple[int, int]]  # partition and offset of a record on its way to Kafka
# (topic, key, headers, its future) → the headers to send
Observer = Callable[[str, str | bytes | None, list[Any], Stored], list[Any]]
