"""``hiveio serve ROLE``: runs a role as its image does, with the settings of this environment."""

import argparse
import os
from typing import NoReturn

from hiveio.roles import ROLES, build_of


def configure(parser: argparse.ArgumentParser) -> None:
    about = "; ".join(f"{name} {role.does}" for name, role in ROLES.items())
    parser.add_argument("role", metavar="ROLE", choices=ROLES, help=about)
    parser.epilog = "Settings come from the environment; ACTOR_PATH is the current folder if it is not set."


def run(arguments: argparse.Namespace) -> NoReturn:
    """Until SIGTERM or SIGINT. The exit code is that of the service."""
    from hiveio.server.process import serve  # gunicorn is not needed for --help

    os.environ.setdefault("ACTOR_PATH", os.getcwd())
    serve(build_of(arguments.role))
