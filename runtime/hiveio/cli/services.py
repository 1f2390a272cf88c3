"""``hiveio services``: Kafka and Valkey in the foreground, without services of ours."""

import argparse
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hiveio.cli.arguments import in_range
from hiveio.cli.packages import needing_dev
from hiveio.errors import ConfigError

if TYPE_CHECKING:
    from hiveio.dev.services import Services

HOST_ABOUT = (
    "a name or an address under which containers reach this machine: 172.17.0.1 for Docker on Linux, "
    "host.docker.internal for Docker Desktop. Whoever reaches that address reaches Kafka and Valkey, without a password"
)

DESKTOP = "host.docker.internal"
LOOK_S = 0.2  # a process that ends is seen so soon


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--brokers", type=int, default=1, metavar="N", help="how many brokers Kafka has (default: 1)")
    parser.add_argument("--kafka-port", type=int, metavar="PORT", help="of the first broker (default: a free one)")
    parser.add_argument("--redis-port", type=int, metavar="PORT", help="of Valkey (default: a free one)")
    parser.add_argument("--host", default="", help=HOST_ABOUT)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where data are kept (default: nowhere)")
    parser.add_argument("--lock", action="store_true", help=argparse.SUPPRESS)  # resolves Kafka's jars anew


def run(arguments: argparse.Namespace) -> int:
    """Until Ctrl-C, SIGTERM or SIGHUP, or until one of them ends by itself, which is exit code 1."""
    with needing_dev("hiveio services"):
        from hiveio.dev import jars
        from hiveio.dev.addresses import bound, is_free
        from hiveio.dev.process import ServiceFailed, ServiceUnavailable
        from hiveio.dev.services import ENDINGS, MOST_BROKERS, Services, console, end
    from rich.markup import escape

    if arguments.lock:
        jars.write_lock()
        return 0
    count = in_range("--brokers", arguments.brokers, 1, MOST_BROKERS) or 1
    kafka_port = in_range("--kafka-port", arguments.kafka_port, 1, 65536 - 2 * count)
    redis_port = in_range("--redis-port", arguments.redis_port, 1, 65535)
    if arguments.host:
        bound(arguments.host)
    asked = [("--kafka-port", kafka_port + node) for node in range(count)] if kafka_port else []
    for name, port in [*asked, *([("--redis-port", redis_port)] if redis_port else [])]:
        if not is_free(port):  # who listens there would answer for ours, so that would seem to have started
            raise ConfigError(f"{name}: port {port} is not free; end what listens there, or name another port")
    for number in ENDINGS:
        signal.signal(number, end)
    services = Services(
        count=count, kafka_port=kafka_port, redis_port=redis_port, folder=arguments.data, host=arguments.host
    )
    try:
        with services:
            _say(services)
            return _run(services)
    except (ServiceUnavailable, ServiceFailed) as error:
        console.print(f"[red]✗[/] {escape(str(error))}")
        return 1


def _say(services: "Services") -> None:
    from hiveio.dev.services import console

    console.print(f"\n{services.here}\n")
    if outside := services.outside:
        console.print(f"From containers:\n{outside}\n")
        if services.host == DESKTOP:
            console.print(f"[dim]On Linux, docker run needs --add-host {DESKTOP}:host-gateway for that name.[/]")
    else:
        console.print("[dim]For containers: --host 172.17.0.1 (Docker on Linux) or --host host.docker.internal.[/]")
    if len(services.brokers) > 1:
        processes = " or ".join(str(broker.process.pid) for broker in services.brokers if broker.process)
        console.print(f"[dim]To see what the loss of a broker does, kill its process: {processes}.[/]")
    console.print("[dim]Ctrl-C ends all of it.[/]")


def _run(services: "Services") -> int:
    """Wait until a child ends, which it should not; while most of the brokers are left, they go on."""
    from rich.markup import escape

    from hiveio.dev.services import console

    while True:
        time.sleep(LOOK_S)  # and no `os.waitid`, which Python on macOS has since 3.13 only
        ended = services.ended(
            lambda service: console.print(f"[red]✗[/] {service.name} on port {service.port} ended by itself")
        )
        if ended is not None:
            console.print(escape(ended.log_tail()))
            return 1
