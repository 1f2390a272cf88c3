"""``hiveio health``: asks the service in this container whether it is alive, or, with ``--ready``, ready."""

import argparse
import socket
import sys

from hiveio.cli.shown import shown_lines
from hiveio.config import Settings
from hiveio.server.address import connected

TIMEOUT_S = 4.0  # within the 5 s that the images' HEALTHCHECK gives


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ready", action="store_true", help="whether its dependencies answer too")


def run(arguments: argparse.Namespace) -> int:
    """0 for yes. No and no answer are 1, and the reason goes to stderr."""
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
    connection = connected(settings.bind, settings.port, TIMEOUT_S)
    if not settings.secure:
        return connection
    import ssl

    # Its certificate is made for other names than this one; who else would listen in here?
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connection)
