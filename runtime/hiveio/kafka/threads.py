"""Threads that call into librdkafka."""

import signal
import threading
from collections.abc import Callable


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
