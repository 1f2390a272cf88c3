"""``hiveio health``: asks the service in this container whether it is alive, or, with ``--ready``, ready."""

import argparse
import socket
import sys

from hiveio.cli.shown import shown_lines
from hiveio.config import Settings
from hiveio.server.address import connected

TIMEOUT_S = 4.0  # below the 5 s of the HEALTHCHECK of the images


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ready", action="store_true", help="ask whether it is ready, which needs its backends too")


def run(arguments: argparse.Namespace) -> int:
    """0 for yes; 1 for no and for no answer, with the reason on stderr."""
    path = "/readyz" if arguments.ready else "/livez"
    settings = Settings.read()
    try:
        with _connected(settings) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    except OSError as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    if head.split(b" ", 2)[1:2] == [b"200"]:
        return 0
    print(shown_lines(body) or "no answer", file=sys.stderr)
    return 1


def _connected(settings: Settings) -> socket.socket:
    connection = connected(settings.bind, settings.probes_port, TIMEOUT_S)
    if not settings.secure:
        return connection
    import ssl

    # Its certificate is for other names than this one, and the connection stays inside the container.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connection)
