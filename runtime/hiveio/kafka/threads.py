"""Threads that call into librdkafka."""

import asyncio
import contextvars
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

MAX_THREADS = 64  # threads for the calls of one kind; they are started as they are needed

T = TypeVar("T")
Kind = Literal["ask", "publish"]
_pools: dict[Kind, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


async def blocking(call: Callable[..., T], *arguments: Any, kind: Kind = "ask") -> T:
    """Make a call on another thread that may block for seconds, while brokers are silent.

    As ``asyncio.to_thread``, whose few threads are for what actors block with. Those who publish have threads of their
    own too: each of them may wait for a delivery, and none of that may keep others from asking.
    """
    pool = _pools.get(kind)
    if pool is None:
        pool = _pools[kind] = ThreadPoolExecutor(MAX_THREADS, f"kafka {kind}")
    run = contextvars.copy_context().run
    return await asyncio.get_running_loop().run_in_executor(pool, lambda: run(call, *arguments))


def start_thread(name: str, target: Callable[[], None]) -> threading.Thread:
    """A daemon thread for calls into librdkafka that takes no signals: they are the main thread's.

    It is born with them blocked: blocked by itself, there would be a moment before.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread
