"""Where a server listens: on this machine alone, or where containers reach it too."""

import ipaddress
import socket

from hiveio.dev.process import HOST, free_port
from hiveio.errors import ConfigError

EVERYWHERE = "0.0.0.0"


def bound(host: str) -> str:
    """Where to listen beside HOST, so that others come in under `host`, a name or an address of IPv4.

    An address of this machine, that of Docker's bridge for example, is listened on alone. A name, and an address that
    is translated on the way, may lead to any of them. Raises ConfigError for one that leads everybody to himself.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if host == "localhost" or not host.strip() or any(character in host for character in ":/, "):
            raise _wrong(host) from None
        return EVERYWHERE
    if address.is_loopback or address.is_unspecified or address.version != 4:
        raise _wrong(host)
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return EVERYWHERE
    return host


def preferred(port: int) -> int:
    """This port, or another one where somebody listens on it."""
    return port if is_free(port) else free_port()


def is_free(port: int) -> bool:
    """Whether nobody listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _wrong(host: str) -> ConfigError:
    return ConfigError(
        f"--host {host} is wrong: it takes a name or an address of IPv4 under which containers reach this machine, "
        "such as 172.17.0.1 (Docker on Linux) or host.docker.internal (Docker Desktop)"
    )
