"""``hiveio dev``: the services of this folder on a real Kafka and Valkey, restarted when a file changes."""

import argparse
import signal
from pathlib import Path

from hiveio.cli.packages import needing_dev
from hiveio.cli.services import HOST_ABOUT
from hiveio.cli.shown import shown


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "services",
        metavar="MODULE[:ROLE]",
        nargs="*",
        help="a module with its role, if that is not to be found out by its actors (default: all of this folder)",
    )
    parser.add_argument("--fresh", action="store_true", help="begin without the data that are kept in .hiveio")
    parser.add_argument("--host", default="", help=HOST_ABOUT)


def run(arguments: argparse.Namespace) -> int:
    """Until Ctrl-C, SIGTERM or SIGHUP. Exit code 1 if Kafka or Valkey cannot be started, or end by themselves."""
    with needing_dev("hiveio dev"):
        from hiveio.dev.addresses import bound
        from hiveio.dev.output import Output
        from hiveio.dev.process import ServiceFailed, ServiceUnavailable
        from hiveio.dev.services import ENDINGS, console, end
        from hiveio.dev.session import Session
    from rich.markup import escape

    if arguments.host:
        bound(arguments.host)
    for number in ENDINGS:
        signal.signal(number, end)
    session = Session(Path.cwd(), arguments.services, Output(console, shown), host=arguments.host)
    try:
        return session.run(fresh=arguments.fresh)
    except KeyboardInterrupt:  # what watches the files makes this of each signal
        return 0
    except (ServiceUnavailable, ServiceFailed) as error:
        console.print(f"[red]✗[/] {escape(str(error))}")
        return 1
