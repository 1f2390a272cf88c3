"""Kafka and Valkey in the foreground until Ctrl-C or SIGTERM; KAFKA_PORT, REDIS_PORT and HIVEIO_DATA say where.

With BROKERS=3 Kafka is a cluster of three brokers, on KAFKA_PORT and the two ports after it. One of them may be killed.
`python -m tests.services lock` resolves Kafka's jars anew and writes `kafka.lock`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from tests.services import (
    Kafka,
    Redis,
    ServiceFailed,
    ServiceUnavailable,
    free_port,
    jars,
    kafka_home,
    running_cluster,
)

console = Console(highlight=False, soft_wrap=True)
MOST_BROKERS = 5  # each takes 300 MB
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end(*_: int | FrameType | None) -> NoReturn:
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C does not cut the ending short
    raise SystemExit(0)


def setting(name: str, what: str, highest: int) -> int | None:
    value = os.environ.get(name)
    if value and not (value.isdigit() and 0 < int(value) <= highest):
        raise SystemExit(f"{name}={value}: {what} is a number from 1 to {highest}")
    return int(value) if value else None


def brokers_of(count: int, port: int | None, folder: Path | None) -> list[Kafka]:
    """Those of one cluster. The data of a cluster of another size are left alone."""
    voters = {node: free_port() for node in range(1, count + 1)}
    folders = {node: "kafka" if count == 1 else f"kafka-{node}-of-{count}" for node in voters}
    return [
        Kafka(port and port + node - 1, folder and folder / folders[node], node=node, voters=voters) for node in voters
    ]


@contextmanager
def step(text: str) -> Iterator[Status]:
    started = time.monotonic()
    with console.status(text) as status:
        yield status
    console.print(f"[green]✓[/] {text} [dim]{time.monotonic() - started:.1f} s[/]")


def run(brokers: Sequence[Kafka], redis: Redis) -> int:
    """Wait until a child ends, which it should not; while most of the brokers are left, they go on."""
    while True:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        for service in (*brokers, redis):
            if service.process is not None and not service.running:
                console.print(f"[red]✗[/] {service.name} on port {service.port} ended by itself")
                if not redis.running or 2 * sum(broker.running for broker in brokers) <= len(brokers):
                    console.print(escape(service.log_tail()))
                    return 1
                service.kill()  # it is gone, and is not looked at again


def main() -> int:
    for number in ENDINGS:
        signal.signal(number, end)
    if sys.argv[1:] == ["lock"]:
        jars.write_lock()
        return 0
    data = os.environ.get("HIVEIO_DATA")
    folder = Path(data) if data else None
    count = setting("BROKERS", "how many there are", MOST_BROKERS) or 1
    kafka_port = setting("KAFKA_PORT", "the port of the first broker", 65536 - count)
    redis_port = setting("REDIS_PORT", "a port", 65535)
    with ExitStack() as stack:
        return serve(stack, brokers_of(count, kafka_port, folder), Redis(redis_port, folder and folder / "redis"))


def serve(stack: ExitStack, brokers: list[Kafka], redis: Redis) -> int:
    try:
        with step("Kafka's jars (43 MB, fetched once)") as status:
            kafka_home(lambda text: status.update(text))
        with step("Apache Kafka" if len(brokers) == 1 else f"Apache Kafka, {len(brokers)} brokers"):
            stack.enter_context(brokers[0] if len(brokers) == 1 else running_cluster(brokers))
        with step("Valkey"):
            stack.enter_context(redis)
        addresses = ",".join(f"localhost:{broker.port}" for broker in brokers)
        console.print(f"\nEVENT_STORE_BROKERS={addresses}\nCACHE_URL=redis://localhost:{redis.port}\n")
        if len(brokers) > 1:
            processes = " or ".join(str(broker.process.pid) for broker in brokers if broker.process)
            console.print(f"[dim]To see what the loss of a broker does, kill its process: {processes}.[/]")
        console.print("[dim]Ctrl-C ends all of it.[/]")
        return run(brokers, redis)
    except (ServiceUnavailable, ServiceFailed) as error:
        console.print(f"[red]✗[/] {escape(str(error))}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
