"""Kafka and Valkey in the foreground until Ctrl-C or SIGTERM; KAFKA_PORT, REDIS_PORT and HIVEIO_DATA say where.

`python -m tests.services lock` resolves Kafka's jars anew and writes `kafka.lock`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from tests.services import Kafka, Redis, Service, ServiceFailed, ServiceUnavailable, jars, kafka_home

console = Console(highlight=False, soft_wrap=True)
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end(*_: int | FrameType | None) -> NoReturn:
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C does not cut the ending short
    raise SystemExit(0)


def port(name: str) -> int | None:
    value = os.environ.get(name)
    if value and not (value.isdigit() and 0 < int(value) < 65536):
        raise SystemExit(f"{name}={value}: a port is a number from 1 to 65535")
    return int(value) if value else None


@contextmanager
def step(text: str) -> Iterator[Status]:
    started = time.monotonic()
    with console.status(text) as status:
        yield status
    console.print(f"[green]✓[/] {text} [dim]{time.monotonic() - started:.1f} s[/]")


def run(services: list[Service]) -> int:
    """Wait until a child ends, which it should not."""
    while True:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        for service in services:
            if not service.running:
                console.print(f"[red]✗[/] {service.name} ended by itself\n{escape(service.log_tail())}")
                return 1


def main() -> int:
    for number in ENDINGS:
        signal.signal(number, end)
    if sys.argv[1:] == ["lock"]:
        jars.write_lock()
        return 0
    data = os.environ.get("HIVEIO_DATA")
    folder = Path(data) if data else None
    kafka_port, redis_port = port("KAFKA_PORT"), port("REDIS_PORT")
    try:
        with step("Kafka's jars (43 MB, fetched once)") as status:
            kafka_home(lambda text: status.update(text))
        kafka = Kafka(kafka_port, folder and folder / "kafka")
        redis = Redis(redis_port, folder and folder / "redis")
        with step("Apache Kafka"):
            kafka.start()
        with step("Valkey"):
            redis.start()
        console.print(f"\nEVENT_STORE_BROKERS=localhost:{kafka.port}\nCACHE_URL=redis://localhost:{redis.port}\n")
        console.print("[dim]Ctrl-C ends both.[/]")
        return run([kafka, redis])
    except (ServiceUnavailable, ServiceFailed) as error:
        console.print(f"[red]✗[/] {escape(str(error))}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
