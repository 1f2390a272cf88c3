"""One worker process: start, serve, drain. gunicorn's ASGI worker with a life that leaves time to flush.

gunicorn's own counts idle connections as work, kills a worker whose requests outlive ``graceful_timeout`` before
anything is flushed, and gives start and stop a fixed 30 s. Here DRAIN_TIMEOUT is divided: requests in flight get
``REQUEST_SHARE`` of it, components the rest, and the worker is gone before its master loses patience.
"""

import asyncio
import gc
import itertools
import logging
import os
import resource
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from gunicorn.workers.gasgi import ASGIWorker  # type: ignore[import-untyped]

from hiveio import __version__
from hiveio.errors import Stop
from hiveio.http.edge import Edge
from hiveio.http.routes import check_reached
from hiveio.metrics import ProcessMetrics
from hiveio.peers import Health
from hiveio.server.http1 import Http1Connection
from hiveio.server.tls import GOODBYE_S, HANDSHAKE_S
from hiveio.server.watchdog import Watchdog
from hiveio.service import Service
from hiveio.types import App

REQUEST_SHARE = 0.6  # of DRAIN_TIMEOUT, for requests in flight
RESERVE = 0.1  # of it, for the end of the process
LOOK_S = 0.05  # between two looks for new requests, when it drains
QUIET_LOOKS = 10  # in a row without a new request: listeners may close without cutting a client off
LINGER_LOOKS = 30  # at most, for clients that never pause
TURNS = 5  # of the loop, in which it accepts connections and reads the requests that came on them
BEAT_S = 1.0
MEASURE_BEATS = 5  # between two measurements of the process
EAGER_S = 0.1  # between two looks at whether this worker is ready, until it is
KEEPALIVE_S = 75  # longer than load balancers keep an idle connection, so that they close it and not we
BACKLOG = 2_048  # connections that wait to be taken; with 100, a thousand clients that come at once wait a second
MAX_CONNECTIONS = 4_096  # of one worker; or what the limit of open files leaves
RESERVED_FILES = 128  # for Kafka, Redis, the actor and ADMIN_PORT, when files are few
ADMIN_CONNECTIONS = 32  # of ADMIN_PORT, however many others there are
FETCH_S = 15  # for a client to fetch the next bytes of its answer

logger = logging.getLogger("hiveio")


class Connection(Protocol):
    """A client's connection, of whichever HTTP."""

    worker: Any  # or the AdminSide
    transport: asyncio.Transport

    @property
    def busy(self) -> bool:
        """Whether a request came in that is not answered yet."""

    @property
    def progress(self) -> int:
        """Requests so far."""

    def drain(self) -> None:
        """Ask the client for no more requests here."""

    def close(self) -> None:
        """Hang up."""


class AdminSide:
    """The worker as the connections of ADMIN_PORT see it: another application, and all else the same."""

    def __init__(self, worker: "Worker", asgi: App) -> None:
        self._worker, self.asgi = worker, asgi

    def admit(self, connection: Connection) -> bool:
        """As that of the worker. Whoever takes all connections of PORT does not make the probes fail."""
        own = sum(each.worker is self for each in self._worker.connections)
        return self._worker.admit(connection) or own < ADMIN_CONNECTIONS

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)


class Worker(ASGIWorker):  # type: ignore[misc]
    """Runs the service of one process. ``self.app`` is the ``process.Application``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: set[Connection] = set()
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most_connections = min(MAX_CONNECTIONS, max(files - RESERVED_FILES, files // 2))
        # The state of each connection, and from when on it has been in it.
        self._still: dict[Connection, tuple[tuple[int, bool, int], float]] = {}
        self.failure: BaseException | None = None
        self.orphan = False
        self.slot = 0  # among the workers of this process
        self._uncancellable: set[asyncio.Task[Any]] = set()  # they catch their cancellation
        self._end = asyncio.Event()

    # -- what gunicorn calls

    def load_wsgi(self) -> None:
        """The application needs a running loop: it is made in ``_serve``."""

    def handle_exit_signal(self) -> None:
        """SIGTERM. A second one changes nothing."""
        # Not alive = False: connections whose answers do not say so yet would be closed, under the next request.
        self._end.set()

    def handle_quit_signal(self) -> None:
        """SIGINT (Ctrl-C reaches every process of a terminal) and SIGQUIT drain too."""
        self.handle_exit_signal()

    def init_signals(self) -> None:
        super().init_signals()
        # A signal between the fork and this line went to the master's handler, inherited here.
        if self.app.stopping_before(self):
            self.handle_exit_signal()

    def run(self) -> None:
        serving = self.loop.create_task(self._serve())
        try:
            while not serving.done():
                try:
                    self.loop.run_until_complete(serving)
                except (SystemExit, KeyboardInterrupt) as error:
                    # It leaves the loop from whichever task or callback raises it. One that an actor has begun by
                    # itself ends by it, and nothing else does.
                    if serving.done() or not self.alive:
                        raise
                    logger.exception(
                        "a task of an actor raised %s; it has ended, all others go on", type(error).__name__
                    )
        except Exception as error:
            logger.exception("the worker failed")
            self.failure = error
        finally:
            self._cleanup()
            if self.orphan:
                self.app.clean()
        if self.failure is not None:
            self.app.report(self.failure)
        if self._uncancellable:
            sys.stdout.flush()
            os._exit(0)  # the interpreter would end these tasks with an exception in each, and log it

    def _cleanup(self) -> None:
        """Cancel the tasks that are left. gunicorn waits without a bound for those that catch their cancellation."""
        if left := asyncio.all_tasks(self.loop):
            for task in left:
                task.cancel()
            within_s = self.app.settings.drain_timeout_ms / 1000 * RESERVE / 2
            ended, self._uncancellable = self.loop.run_until_complete(asyncio.wait(left, timeout=within_s))
            for task in ended:
                if not task.cancelled():
                    task.exception()  # looked at, so that asyncio does not log it
        self.loop.close()
        for listener in self.sockets:
            listener.close()

    # -- its life

    async def _serve(self) -> None:
        settings = self.app.settings
        service = Service(settings, self.app.contracts)
        service.failed = self._fail
        service.peers, service.slot = self.app.peers, self.slot
        watchdog = Watchdog(service.contracts)
        watchdog.start()
        tasks = [asyncio.create_task(self._beat())]
        if settings.cluster_size > 1:
            tasks.append(asyncio.create_task(self._report_health(service)))
        try:
            if settings.telemetry:
                from hiveio.telemetry import Telemetry  # where it is off, nothing of it is even imported

                service.telemetry = service.use(Telemetry(settings))  # the first, so that it ends last
            if settings.auth_jwks_url:
                from hiveio.auth.authenticator import Authenticator

                service.authenticator = service.use(Authenticator(settings))
            routes = self.app.build(service)
            check_reached(service, routes)
            edge = Edge(service, routes)
            self.asgi = service.telemetry.serving(edge, edge.router.template)
            if not await self._started(service):
                return
            await self._listen(AdminSide(self, edge.admin))
            edge.watch()
            settle_memory()
            logger.info("worker serves", extra={"actors": [contract.name for contract in service.contracts]})
            await self._end.wait()
            await self._drain(service, edge, settings.drain_timeout_ms / 1000)
            edge.unwatch()
        except Exception as error:
            # An error here comes back the same in every new worker: the process ends, its supervisor decides.
            self._fail(error)
        finally:
            self.alive = False
            for task in tasks:
                task.cancel()
            await self._stopped(service, settings.drain_timeout_ms / 1000 * (1 - REQUEST_SHARE - RESERVE))
            watchdog.stop()

    async def _listen(self, admin: AdminSide) -> None:
        secure: dict[str, Any] = {}
        if certificate := self.app.certificate:
            certificate.renew()  # this worker may replace one that died long after the start
            secure = {
                "ssl": certificate.context,
                "ssl_handshake_timeout": HANDSHAKE_S,
                "ssl_shutdown_timeout": GOODBYE_S,
            }
        greet: Callable[[Any], Callable[[], asyncio.BaseProtocol]] = partial(partial, Http1Connection)
        if self.app.settings.http_version == 2:
            from hiveio.server.negotiation import ProtocolNegotiator

            def greet(side: Any) -> Callable[[], asyncio.BaseProtocol]:
                return partial(ProtocolNegotiator, side, Http1Connection)

        # The second socket, if there is one, is that of ADMIN_PORT.
        for listener, side in zip(self.sockets, (self, admin), strict=False):
            # The loop listens again, with 100 unless a number is given.
            server = await self.loop.create_server(greet(side), sock=listener.sock, backlog=BACKLOG, **secure)
            self.servers.append(server)

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self.handle_exit_signal()

    async def _started(self, service: Service) -> bool:
        """Start the components; False if the process is to end before that is done. Raises what the start raises."""
        starting, ending = asyncio.create_task(service.start()), asyncio.create_task(self._end.wait())
        await asyncio.wait((starting, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not starting.done():
            starting.cancel()
            within_s = self.app.settings.drain_timeout_ms / 1000 * REQUEST_SHARE
            await asyncio.wait((starting,), timeout=within_s)  # an actor may catch its cancellation
            if not starting.done():
                logger.error("the start did not end within %g s after its cancellation", within_s)
                return False
        if not starting.cancelled():
            starting.result()
        return not self._end.is_set()

    async def _beat(self) -> None:
        """Show the master that the loop turns, end a worker whose master is gone, look for a new certificate, and
        measure what this process needs."""
        process = ProcessMetrics(__version__, self.app.settings.service_name)
        for beat in itertools.count():
            self.notify()
            if beat % MEASURE_BEATS == 0:
                process.measure()
            if self.app.certificate:
                self.app.certificate.renew()
            self._cut_off()
            if self.ppid != os.getppid() and not self.orphan:
                logger.error("the master process is gone; shutting down")
                self.orphan = True
                self.handle_exit_signal()
            await asyncio.sleep(BEAT_S)

    async def _report_health(self, service: Service) -> None:
        """Share the health of this worker with the others."""
        while True:
            health = await service.health()
            self.app.peers.report(self.slot, health)
            await asyncio.sleep(BEAT_S if health is Health.READY else EAGER_S)

    def admit(self, connection: Connection) -> bool:
        """Note a connection, and say whether there is room for it. One that is noted already has room.

        One that is refused is noted too, until it is lost: its file is still open, and it may have to be cut off.
        """
        known = connection in self.connections
        self.connections.add(connection)
        return known or len(self.connections) <= self.most_connections

    def _cut_off(self) -> None:
        """End connections on which nothing moves: silent ones, half a request, an answer that nobody fetches.

        Looked at from here, now and then: timers of their own would cost every request something. How long a request
        may take is the edge's to say.
        """
        now = self.loop.time()
        before, self._still = self._still, {}
        for connection in list(self.connections):
            unsent = connection.transport.get_write_buffer_size()
            state = (connection.progress, connection.busy, unsent)
            seen, unchanged_from = before.get(connection, (state, now))
            self._still[connection] = (state, unchanged_from if seen == state else now)
            if unsent:
                allowed_s: float = FETCH_S
            elif connection.busy:
                continue
            else:
                allowed_s = KEEPALIVE_S if connection.progress else self.app.settings.request_timeout_ms / 1000
            if seen == state and now - unchanged_from > allowed_s:
                connection.transport.abort()

    async def _drain(self, service: Service, edge: Edge, budget_s: float) -> None:
        """Answer what came in, then stop the components."""
        began = self.loop.time()
        service.draining = True
        busy = sum(connection.busy for connection in self.connections)
        logger.info("draining", extra={"requests": busy, "connections": len(self.connections)})
        # From here on every answer says "Connection: close". A client about to send its next request on an open
        # connection, or waiting to be accepted, gets a 503 instead of a reset.
        for connection in self.connections:
            connection.drain()
        # Looks are counted, and not the time: while this process has no CPU, clients send what it cannot see yet.
        look_s, quiet = min(LOOK_S, budget_s * 0.2 / QUIET_LOOKS), 0
        for _ in range(LINGER_LOOKS):
            seen = edge.requests
            await asyncio.sleep(look_s)
            quiet = quiet + 1 if edge.requests == seen else 0
            if quiet == QUIET_LOOKS or self.loop.time() - began > budget_s * REQUEST_SHARE / 2:
                break
        await self._turned()
        for server in self.servers:
            server.close()
        await self._answered(budget_s * REQUEST_SHARE - (self.loop.time() - began))
        if cut := sum(connection.busy for connection in self.connections):
            logger.error("requests were still running when their share of DRAIN_TIMEOUT ended", extra={"requests": cut})
        left = budget_s * (1 - RESERVE) - (self.loop.time() - began)
        await self._stopped(service, left)
        # What a component answered while it stopped is still sent, and so is a 503 to what has just come in.
        await self._turned()
        await self._answered(min(0.2, budget_s * RESERVE / 2))
        for connection in list(self.connections):
            connection.close()
        await asyncio.sleep(0)

    @staticmethod
    async def _turned() -> None:
        """Accept and read what has come in. The loop runs its timers before it looks at its sockets, so after a time
        without CPU a connection would be closed under a request that waits in it: its client would get a reset."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def _answered(self, within_s: float) -> None:
        until = self.loop.time() + within_s
        # Looked at again and again: an event would cost every request something.
        while self.loop.time() < until and any(map(_owes, self.connections)):
            await asyncio.sleep(0.01)
            await self._turned()

    async def _stopped(self, service: Service, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                await service.stop()
        except TimeoutError:
            logger.error("components did not stop within DRAIN_TIMEOUT", extra={"components": service.unfinished})


def _owes(connection: Connection) -> bool:
    """Whether its client waits for an answer, or has not fetched all of one: what is left of it goes with the loop."""
    return connection.busy or connection.transport.get_write_buffer_size() > 0


def settle_memory() -> None:
    """What lives now lives on: keep the collector from walking it again (10 % of the requests, a third of the p99)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def exit_report(error: BaseException) -> tuple[int, str]:
    """The exit code and the line with which a process ends for this error."""
    if isinstance(error, Stop):
        return error.exit_code, str(error)
    logger.error("%s", "".join(traceback.format_exception(error)).rstrip())
    return Stop.exit_code, f"The service had to end: {type(error).__name__}: {error}"
