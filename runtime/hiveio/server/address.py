"""Addresses: where the service listens, how its own machine reaches it, and who calls."""

import errno
import socket
from typing import Any

from hiveio.errors import ConfigError

ANY, ANY_IPV4 = "::", "0.0.0.0"
# Where a client on the same machine reaches what listens on all addresses; there may be one family only.
_LOCAL = {ANY: ("127.0.0.1", "::1"), ANY_IPV4: ("127.0.0.1",)}


def listening(host: str, port: int, setting: str = "PORT", host_setting: str = "BIND") -> socket.socket:
    """A socket that is bound to this address; ``::`` is all of IPv6 and of IPv4, whichever the machine has. ``setting``
    is where the port comes from, and ``host_setting`` where the host does.

    Raises ConfigError. Bound here and not by gunicorn, which tries for five seconds and exits with many lines.
    """
    try:
        return _bound(host, port)
    except OSError as error:
        # A port that another process has under IPv6 is no reason to listen on IPv4 only.
        if host == ANY and error.errno != errno.EADDRINUSE:
            return listening(ANY_IPV4, port, setting, host_setting)
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigError(f"{setting}={port} cannot be bound: {error.strerror}") from None
        remedy = f"It takes an address of this machine, or {ANY} for all"
        raise ConfigError(f"{host_setting}={host} cannot be bound: {error.strerror}. {remedy}") from None


def _bound(host: str, port: int) -> socket.socket:
    # Resolved, because an address that is valid on one link only names its interface: fe80::1%eth0.
    ((family, _, _, _, address),) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # net.ipv6.bindv6only may say otherwise
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def connected(host: str, port: int, within_s: float) -> socket.socket:
    """A connection to a service of this machine that listens on ``host``. Raises OSError."""
    *others, last = _LOCAL.get(host, (host,))
    for other in others:
        try:
            return socket.create_connection((other, port), within_s)
        except TimeoutError:  # somebody listens, and does not answer
            raise
        except OSError:
            continue
    return socket.create_connection((last, port), within_s)


def host_and_port(name: Any) -> tuple[str, int] | None:
    """Host and port of a socket's name, for ASGI. An IPv4 client of a socket for both families has its IPv4 address."""
    if not isinstance(name, tuple):
        return None
    host, port = name[:2]
    family, _, mapped = host.rpartition(":")
    return (mapped if family == "::ffff" and "." in mapped else host), port
