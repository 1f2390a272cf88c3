"""``hiveio console``: what is going on, as pages in a browser. It only reads, unless it is started with --write."""

import argparse
import secrets
import sys
from pathlib import Path

from hiveio.cli.arguments import in_range
from hiveio.config import Settings
from hiveio.console.app import Console
from hiveio.console.guard import is_loopback
from hiveio.errors import ConfigError
from hiveio.loader import load
from hiveio.server.address import listening
from hiveio.server.plain import serve_application
from hiveio.status import Collector
from hiveio.transaction.cache import fingerprint
from hiveio.types import App

PORT = 3030
HERE = {"127.0.0.1", "::1", "0.0.0.0", "::"}  # what listens there is found by the name localhost
SHORTEST = 16  # characters of a token


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"the port to listen on ({PORT})")
    parser.add_argument("--token-file", type=Path, help="a file with the token that a browser needs")
    parser.add_argument(
        "--write",
        action="store_true",
        help="let it retry and drop dead letters, and retry and skip what processes are stuck with",
    )
    parser.add_argument(
        "--instance", action="append", default=[], metavar="URL",
        help="a service to ask that does not announce itself, as http://HOST:PORT (consumers, producers)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is ended."""
    settings = Settings.read()
    settings.need(brokers="the console reads from Kafka")
    if not settings.written_topic:
        settings.need(read_topics="the console shows its events")
    in_range("--port", arguments.port, 0, 65535)
    token = token_of(arguments.host, arguments.token_file)
    contracts = load(settings) if settings.actor_module else []
    host = "127.0.0.1" if arguments.host == "localhost" else arguments.host
    listener = listening(host, arguments.port, "--port", "--host")
    url = url_of(host, listener.getsockname()[1])
    hints = [] if arguments.write else ["it only reads; --write lets it retry and drop"]
    if arguments.token_file:  # its token is a secret of somebody else, and this line may be kept
        hints.insert(0, f"open it with ?token= and the token of {arguments.token_file}")
    elif token:
        url += f"?token={token}"
    hint = f" ({'; '.join(hints)})" if hints else ""
    print(f"hiveio console: {url}{hint}", file=sys.stderr, flush=True)

    def make() -> App:
        collector = Collector(settings, arguments.instance, [fingerprint(contracts)] if contracts else [])
        return Console(settings, contracts, collector, write=arguments.write).application(token)

    serve_application(make, listener)


def token_of(host: str, file: Path | None) -> str:
    """The token of the file; a new one where the console can be reached from elsewhere; none on loopback."""
    if file is None:
        return "" if is_loopback(host) else secrets.token_urlsafe(24)
    try:
        token = file.read_bytes().decode("utf-8", "replace").strip()
    except OSError as error:
        raise ConfigError(f"--token-file {file} cannot be read: {error.strerror}") from None
    if len(token) < SHORTEST or not all(c.isascii() and (c.isalnum() or c in "-._~") for c in token):
        raise ConfigError(
            f"--token-file {file} is wrong: a token has at least {SHORTEST} characters, of a-z A-Z 0-9 - . _ ~"
        )
    return token


def url_of(host: str, port: int) -> str:
    """Where a browser on this machine, or for an address of the network on another one, opens it."""
    return f"http://{'localhost' if host in HERE else f'[{host}]' if ':' in host else host}:{port}/"
