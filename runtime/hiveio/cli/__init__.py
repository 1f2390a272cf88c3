"""``hiveio …``: the command-line tool, in the images and in ``.venv``.

Each command is a module of this package with ``configure(parser)``, which declares its arguments, and
``run(arguments)``, which gives the exit code. Only the module of the command that is called is imported.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from hiveio.errors import HiveError, Stop

# command → what it does, as one line of `hiveio --help`
COMMANDS: dict[str, str] = {
    "dead": "list, show, retry or drop the dead letters of a consumer group",
    "health": "ask the service in this container whether it is alive",
    "log": "the records of the transaction log, with their verdicts",
    "new": "write a small project to begin with: an actor, its test and its image",
    "replay": "build a projection anew from the log",
    "transaction": "what became of a transaction, told by the log",
    "verify": "compare the cache and the event topic with the transaction log",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. Its exit code: 0 done, 1 it found something wrong, 2 wrong usage, else that of a Stop."""
    words = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(prog="hiveio", description="The command-line tool of hiveio.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        if name in words[:1]:
            module = importlib.import_module(f"hiveio.cli.{name}")
            module.configure(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(words)
    try:
        return int(arguments.run(arguments))
    except Stop as error:
        print(f"hiveio {arguments.command}: {error}", file=sys.stderr)
        return error.exit_code
    except HiveError as error:
        print(f"hiveio {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
