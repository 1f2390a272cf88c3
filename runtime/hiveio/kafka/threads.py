"""Threads that call into librdkafka."""

import asyncio
import contextvars
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

MAX_THREADS = 64  # for calls that block; each is started when it is needed

T = TypeVar("T")
_pools: list[ThreadPoolExecutor] = []  # one, once it is needed
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


async def blocking(call: Callable[..., T], *arguments: Any) -> T:
    """Make a call on another thread that may block for seconds, while brokers are silent.

    Like ``asyncio.to_thread``, whose few threads are left to actors.
    """
    if not _pools:
        _pools.append(ThreadPoolExecutor(MAX_THREADS, "kafka ask"))
    run = contextvars.copy_context().run

    def made() -> T:
        try:
            return run(call, *arguments)
        except StopIteration as error:  # a future takes none, so whoever awaits it would wait for ever
            raise RuntimeError(f"{call} raised StopIteration") from error

    return await asyncio.get_running_loop().run_in_executor(_pools[0], made)


def start_thread(name: str, target: Callable[[], None]) -> threading.Thread:
    """A daemon thread for calls into librdkafka that gets no signals: the main thread handles them.

    It starts with signals blocked: if it blocked them itself, it could get one before.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread
