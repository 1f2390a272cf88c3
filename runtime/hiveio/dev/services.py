"""Kafka and Valkey together: started with a display of the progress, with addresses for this machine and containers."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, NoReturn, Self

from rich.console import Console
from rich.status import Status

from hiveio.dev.addresses import preferred
from hiveio.dev.kafka import Kafka, kafka_home, running_cluster
from hiveio.dev.process import Service, free_port
from hiveio.dev.redis import Redis

JARS = "Kafka's jars (43 MB, fetched once)"
MOST_BROKERS = 5  # each takes 300 MB
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
console = Console(highlight=False, soft_wrap=True, emoji=False)


def end(*_: int | FrameType | None) -> NoReturn:
    """For a signal: everything ends in good order, and a second Ctrl-C does not cut that short."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


@contextmanager
def step(text: str) -> Iterator[Status]:
    """Shows what is done, and afterwards how long it took."""
    started = time.monotonic()
    with console.status(text) as status:
        yield status
    console.print(f"[green]✓[/] {text} [dim]{time.monotonic() - started:.1f} s[/]")


class Addresses(NamedTuple):
    brokers: str
    cache: str

    def __str__(self) -> str:
        return f"EVENT_STORE_BROKERS={self.brokers}\nCACHE_URL={self.cache}"


class Services:
    """A Kafka of `count` brokers, and Valkey. A context manager that starts and ends them.

    The first broker listens on `kafka_port`, and each further one on the next port. With `host` containers reach them
    too, on the ports behind those, or on free ones. Data are kept in `folder`, if there is one; those of a cluster of
    another size are left alone. Starting raises ServiceUnavailable and ServiceFailed.
    """

    def __init__(
        self,
        *,
        count: int = 1,
        kafka_port: int | None = None,
        redis_port: int | None = None,
        folder: Path | None = None,
        host: str = "",
    ) -> None:
        self.host = host
        voters = {node: free_port() for node in range(1, count + 1)}
        folders = {node: "kafka" if count == 1 else f"kafka-{node}-of-{count}" for node in voters}
        self.brokers = [
            Kafka(
                kafka_port and kafka_port + node - 1,
                folder and folder / folders[node],
                host=host,
                host_port=preferred(kafka_port + count + node - 1) if kafka_port and host else None,
                node=node,
                voters=voters,
            )
            for node in voters
        ]
        self.redis = Redis(redis_port, folder and folder / "redis", host=host)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            with step(JARS) as status:
                kafka_home(lambda text: status.update(f"{JARS}: {text}"))
            one = len(self.brokers) == 1
            with step("Apache Kafka" if one else f"Apache Kafka, {len(self.brokers)} brokers"):
                stack.enter_context(self.brokers[0] if one else running_cluster(self.brokers))
            with step("Valkey"):
                stack.enter_context(self.redis)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def here(self) -> Addresses:
        """For processes of this machine."""
        return Addresses(",".join(broker.brokers for broker in self.brokers), self.redis.url)

    @property
    def outside(self) -> Addresses | None:
        """For containers, with `host`."""
        if not self.host:
            return None
        brokers = ",".join(f"{self.host}:{broker.host_port}" for broker in self.brokers)
        return Addresses(brokers, f"redis://{self.host}:{self.redis.port}")

    def ended(self, said: Callable[[Service], None]) -> Service | None:
        """The service that ended by itself, if its others cannot go on without it. `said` is called once for each."""
        for service in (*self.brokers, self.redis):
            if service.process is not None and not service.running:
                said(service)
                if not self.redis.running or 2 * self._running(self.brokers) <= len(self.brokers):
                    return service
                service.kill()  # it is gone, and is not looked at again
        return None

    @staticmethod
    def _running(brokers: Sequence[Kafka]) -> int:
        return sum(broker.running for broker in brokers)
