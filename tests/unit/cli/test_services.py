"""``hiveio services``, without the services."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from hiveio.cli import main
from hiveio.dev import services
from hiveio.dev.process import Service
from hiveio.dev.services import ENDINGS, Addresses


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Those of the tests are kept."""
    before = {number: signal.getsignal(number) for number in ENDINGS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Ends(Service):
    """It has ended by itself."""

    def __init__(self) -> None:
        self.port = 6379

    def log_tail(self, lines: int = 30) -> str:
        return "out of memory"


class Both:
    """Kafka and Valkey, of which one has ended."""

    here, outside, brokers = Addresses("127.0.0.1:9092", "redis://127.0.0.1:6379"), None, ()

    def __init__(self, **_: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ended(self, said: Callable[[Service], None]) -> Service:
        service = Ends()
        said(service)
        return service


@pytest.mark.parametrize("option", ["--kafka-port", "--redis-port"])
def test_a_port_that_somebody_else_has_is_named_before_anything_starts(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["services", option, str(port)]) == 2
    assert f"{option}: port {port} is not free" in capsys.readouterr().err


def test_the_foreground_ends_when_a_child_dies_also_where_python_has_no_waitid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On macOS it has one since 3.13."""
    monkeypatch.setattr(services, "Services", Both)
    monkeypatch.delattr(os, "waitid")
    assert main(["services"]) == 1
    said = capsys.readouterr().out
    assert "service on port 6379 ended by itself\nout of memory" in said
    assert "--host 172.17.0.1" in said  # an option of this command, and no variable
