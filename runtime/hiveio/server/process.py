"""The process: gunicorn's master and its workers around one service. ``serve`` is what an entrypoint calls."""

import dataclasses
import gc
import logging
import math
import os
import signal
import socket
import sys
from typing import Any, NoReturn

import msgspec
import uvloop  # noqa: F401 - missing, gunicorn would fall back to a slower loop; here the start fails
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.errors import HaltServer  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from gunicorn.sock import TCP6Socket, TCPSocket  # type: ignore[import-untyped]

from hiveio import logs, metrics
from hiveio.actor import Contract
from hiveio.auth import enabled
from hiveio.config import Settings
from hiveio.errors import ConfigError, Stop
from hiveio.http.routes import Build
from hiveio.loader import load
from hiveio.peers import Peers
from hiveio.server.address import listening
from hiveio.server.http1 import FAST_PARSER
from hiveio.server.tls import certificate
from hiveio.server.worker import Worker, exit_report

STUCK_S = 30  # a worker whose loop does not turn for so long is replaced
REPORT_LIMIT = 4000  # bytes; below PIPE_BUF, so that the reports of two workers do not mix

logger = logging.getLogger("hiveio")


def serve(build: Build) -> NoReturn:
    """Run the service until SIGTERM, SIGINT or SIGQUIT. Ends with exit code 0, or that of a Stop and its one line.

    ``build`` is called in each worker, on its loop: clients of Kafka do not survive a fork.
    """
    # As PID 1 a signal without a handler is lost, and the container would be killed later.
    for early in (signal.SIGTERM, signal.SIGINT):
        signal.signal(early, lambda number, frame: os._exit(0))
    logs.configure()
    try:
        if not FAST_PARSER:
            raise Stop("gunicorn's C parser is missing: install gunicorn[fast]")
        settings = Settings.read()
        if settings.telemetry:
            from hiveio import telemetry  # before the fork: the workers share what it imports

            telemetry.check()
        contracts = load(settings)
        if settings.admin_port and settings.admin_port == settings.port:
            raise ConfigError(f"ADMIN_PORT={settings.admin_port} is wrong: it is PORT too; it takes another port")
        enabled.check(settings, contracts)
        if settings.auth_jwks_url:
            from hiveio.auth import authenticator  # noqa: F401 - before the fork too
        application = Application(_with_workers(settings, contracts), contracts, build)
    except Stop as error:
        _end(error.exit_code, str(error))
    Master(application).run()
    sys.exit(0)


def _with_workers(settings: Settings, contracts: list[Contract]) -> Settings:
    """The settings, with one worker if an actor keeps its state in one process. Raises ConfigError for several."""
    single = [contract.name for contract in contracts if contract.kind.single_process]
    if not single or settings.cluster_size == 1:
        return settings
    if "cluster_size" in settings.given:
        raise ConfigError(
            f"CLUSTER_SIZE={settings.cluster_size} is wrong: {single[0]} keeps its state in one process, and each "
            "worker would answer from a part of it; it takes 1"
        )
    return dataclasses.replace(settings, cluster_size=1)


def _end(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not sys.exit: threads that an actor's module started must not keep a process that cannot serve.
    metrics.remove()
    os._exit(code)


def in_memory() -> dict[str, str]:
    """Where gunicorn's workers show that they live: the file system of a container may be read-only."""
    return {"worker_tmp_dir": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}


class GunicornLogger(Logger):  # type: ignore[misc]
    """gunicorn's warnings and errors go where all logs go. Its other lines are dropped, and there is no access log."""

    access_log_enabled = False

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.setLevel(logging.WARNING)
        self.error_log.propagate = True


class Application(BaseApplication):  # type: ignore[misc]
    """The service as gunicorn sees it, and what master and workers share."""

    def __init__(self, settings: Settings, contracts: list[Contract], build: Build) -> None:
        self.contracts = contracts
        self.build = build
        self.master: Master | None = None
        self.certificate = certificate(settings)
        self.peers = Peers(settings.cluster_size)
        self.listeners = [listening(settings.bind, settings.port)]
        if settings.admin_port is not None:
            self.listeners.append(listening(settings.bind, settings.admin_port, "ADMIN_PORT"))
        self.addresses: list[tuple[Any, ...]] = [listener.getsockname() for listener in self.listeners]
        port, *admin = [address[1] for address in self.addresses]  # a port of 0 takes a free one
        self.settings = dataclasses.replace(settings, port=port, admin_port=admin[0] if admin else None)
        self._reports, self._reporter = os.pipe()
        os.set_blocking(self._reports, False)
        super().__init__()

    def load_config(self) -> None:
        drain_s = self.settings.drain_timeout_ms / 1000
        chosen: dict[str, Any] = {
            "worker_class": Worker,
            "workers": self.settings.cluster_size,
            "logger_class": GunicornLogger,
            "graceful_timeout": math.ceil(drain_s),
            "timeout": STUCK_S,
            "asgi_loop": "uvloop",
            "asgi_lifespan": "off",
            # A client that hangs up cancels nothing: what it sent is carried out, within REQUEST_TIMEOUT.
            "asgi_disconnect_grace_period": math.ceil(self.settings.request_timeout_ms / 1000) + 1,
            "control_socket_disable": True,
            "when_ready": _ready,
            "pre_fork": _before_fork,
            "child_exit": _child_exit,
        }
        chosen |= in_memory()
        for name, value in chosen.items():
            self.cfg.set(name, value)

    def load(self) -> None:
        """Workers make their own application."""

    def report(self, error: BaseException) -> None:
        """In a worker: report to the master why the process has to end."""
        code, line = exit_report(error)
        record = msgspec.json.encode((code, line.encode("utf-8", "replace")[:REPORT_LIMIT].decode("utf-8", "ignore")))
        os.write(self._reporter, record + b"\n")

    def reported(self) -> tuple[int, str] | None:
        """In the master: the first report of a worker."""
        try:
            records = os.read(self._reports, 65536)
        except BlockingIOError:
            return None
        return msgspec.json.decode(records.splitlines()[0], type=tuple[int, str])

    def stopping_before(self, worker: Worker) -> bool:
        """In a new worker: whether the signal to end came before the worker had handlers of its own."""
        assert self.master is not None
        early = self.master.SIG_QUEUE
        return any(early.get_nowait() == signal.SIGTERM for _ in range(early.qsize()))

    def clean(self) -> None:
        """In a worker without a master: remove what the master would have removed."""
        metrics.remove()


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master, which drains on every signal to end and passes on the exit code of a Stop."""

    def __init__(self, application: Application) -> None:
        self._code = 0
        application.master = self
        super().__init__(application)

    def start(self) -> None:
        self.LISTENERS = []
        for listener, address in zip(self.app.listeners, self.app.addresses, strict=True):
            kind = TCP6Socket if listener.family == socket.AF_INET6 else TCPSocket
            self.LISTENERS.append(kind(address, self.cfg, self.log, fd=listener.detach()))
        super().start()

    def signal(self, sig: int, frame: Any) -> None:
        # gunicorn's SIGINT and SIGQUIT would end workers without a flush, also while they drain. Its other signals
        # change the number of workers, or the workers: here that is a setting, and another container.
        if sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            super().signal(signal.SIGTERM, frame)

    def check_report(self) -> None:
        if self._code == 0 and (report := self.app.reported()):
            self._code, line = report
            print(line, file=sys.stderr, flush=True)
            raise HaltServer("", self._code)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> NoReturn:
        try:
            self.stop()
        except HaltServer:  # a worker failed while the others were drained
            self.stop()
        logger.info("stopped")
        sys.exit(exit_status or self._code)


def _ready(master: Master) -> None:
    settings = master.app.settings
    shown = {"address": master.app.addresses[0][0], "port": settings.port, "workers": settings.cluster_size}
    if settings.admin_port is not None:
        shown["admin_port"] = settings.admin_port
    logger.info("listening", extra=shown)
    gc.freeze()  # before the fork: pages that the collector never touches stay shared


def _before_fork(master: Master, worker: Worker) -> None:
    worker.slot = master.app.peers.enter(other.slot for other in master.WORKERS.values())


def _child_exit(master: Master, worker: Worker) -> None:
    master.app.peers.leave(worker.slot)
    metrics.worker_gone(worker.pid)
    master.check_report()
