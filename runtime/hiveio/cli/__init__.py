"""``hiveio …``: the command-line tool, in the images and in ``.venv``.

Each command is a module of this package with ``configure(parser)``, which declares its arguments, and
``run(arguments)``, which gives the exit code. Only the module of the command that is called is imported.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from hiveio import __version__
from hiveio.cli.arguments import Command
from hiveio.cli.shown import shown_lines
from hiveio.errors import HiveError, Stop


class About(NamedTuple):
    """A line of `hiveio --help`, and of the table in docs/operations.md."""

    does: str
    changes: str = "nothing"


COMMANDS: dict[str, About] = {
    "check": About("which change of the actors in this folder breaks whom", "the file of --write"),
    "console": About(
        "what is going on, as pages in a browser",
        "with --write: the dead-letter topic; retry, skip of a process: the transaction log",
    ),
    "dead": About(
        "list, show, retry or drop the dead letters of a consumer group", "retry, drop: the dead-letter topic"
    ),
    "dev": About("run the services of this folder on a real Kafka and Valkey, for development", "the folder .hiveio"),
    "health": About("ask the service in this container whether it is alive"),
    "log": About("the records of the transaction log, with their verdicts"),
    "new": About("write a project to begin with: actors, their tests, images and compose.yaml", "a new folder"),
    "replay": About(
        "rebuild a projection from the log",
        "the projection; with --reset also the group's offsets and dead letters",
    ),
    "saga": About("list, show, retry or skip what processes are stuck with", "retry, skip: the transaction log"),
    "serve": About("run a role with the actors of this folder", "what the service stores"),
    "services": About("run Kafka and Valkey on this machine, for development", "the folder of --data"),
    "status": About("scopes, consumer groups, dead letters and instances on one screen"),
    "transaction": About("what became of a transaction, by the log"),
    "upgrade": About("raise the transaction log to the newest format", "with --yes: the transaction log"),
    "verify": About("compare the cache and the event topic with the transaction log"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. The exit code is 0 when it is done, 1 when it found something wrong, 2 for wrong usage, that of
    a Stop, or as a shell has it for a signal: 130 for Ctrl-C, and 141 where nobody reads any more."""
    words = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(prog="hiveio", description="The command-line tool of hiveio.")
    parser.add_argument("--version", action="version", version=f"hiveio {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Command)
    for name, about in COMMANDS.items():
        text = f"{about.does} (changes {about.changes})"
        command = commands.add_parser(name, help=text, description=text)
        if name in words[:1]:
            module = importlib.import_module(f"hiveio.cli.{name}")
            module.configure(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(words)
    try:
        code = int(arguments.run(arguments))
        print(end="", flush=True)
        return code
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it ends
        return 141
    except HiveError as error:
        print(shown_lines(f"hiveio {arguments.command}: {error}"), file=sys.stderr)
        return error.exit_code if isinstance(error, Stop) else 1
    except KeyboardInterrupt:
        return 130
