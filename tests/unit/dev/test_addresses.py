"""Where Kafka and Valkey listen, so that containers reach them."""

import socket

import pytest

from hiveio.dev.addresses import EVERYWHERE, bound, preferred
from hiveio.errors import ConfigError
from tests.services import free_port


def own_address() -> str:
    """One of this machine that is not its loopback: where a packet to the outside would come from. None is sent."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but its loopback")
        return str(probe.getsockname()[0])


def test_an_address_of_this_machine_is_listened_on_alone() -> None:
    assert bound(own_address()) == own_address()


@pytest.mark.parametrize("host", ["host.docker.internal", "machine", "192.0.2.1"])
def test_a_name_or_a_translated_address_may_lead_to_any(host: str) -> None:
    assert bound(host) == EVERYWHERE


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0", "::1", "fd00::1", "a:9092", "a,b", " "])
def test_where_no_container_gets_to_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=f"^--host {host} is wrong: .*172.17.0.1"):
        bound(host)


def test_a_port_is_kept_unless_somebody_has_it() -> None:
    taken = free_port()
    with socket.create_server(("127.0.0.1", taken)):
        assert preferred(taken) != taken
    assert preferred(taken) == taken
