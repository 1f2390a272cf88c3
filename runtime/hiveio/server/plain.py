"""Serves any ASGI application with one process, for tools: no actor, no draining, gunicorn as it is."""

import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from hiveio import logs
from hiveio.server.process import GunicornLogger, in_memory
from hiveio.types import App

MOST_CONNECTIONS = 100
END_S = 3


class PlainApplication(BaseApplication):  # type: ignore[misc]
    def __init__(self, make: Callable[[], App], listener: socket.socket) -> None:
        self._make, self._listener = make, listener
        super().__init__()

    def load_config(self) -> None:
        for name, value in {
            "bind": f"fd://{self._listener.fileno()}",
            "worker_class": "asgi",
            "workers": 1,
            "worker_connections": MOST_CONNECTIONS,
            "graceful_timeout": END_S,
            "asgi_lifespan": "on",
            "asgi_loop": "uvloop",
            "logger_class": GunicornLogger,
            "control_socket_disable": True,
            **in_memory(),
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """In the worker: the clients of Kafka do not survive a fork, so they are made here."""
        return self._make()


def serve_application(make: Callable[[], App], listener: socket.socket) -> NoReturn:
    """Serve what comes in on this socket, until SIGTERM or SIGINT. ``make`` is called in the process that serves."""
    logs.configure()
    PlainApplication(make, listener).run()
    sys.exit(0)
