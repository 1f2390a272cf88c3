"""What a terminal shows while Kafka and Valkey are started."""

import io
import socket

import pytest
from rich.console import Console

from hiveio.dev import services
from hiveio.dev.jars import Progress
from hiveio.dev.process import ServiceUnavailable
from hiveio.dev.services import Services
from tests.process import wait_until


def test_the_port_for_containers_is_another_one_where_somebody_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        both = Services(kafka_port=taken - 1, host="machine")
    try:
        assert both.brokers[0].host_port != taken
    finally:
        for each in (*both.brokers, both.redis):
            each.close()  # of folders too


def test_the_first_start_shows_how_far_the_download_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(services, "console", Console(file=terminal, force_terminal=True, width=80))

    def home(progress: Progress) -> None:
        progress("3 of 80")
        wait_until(lambda: "(43 MB, fetched once): 3 of 80" in terminal.getvalue(), 5, "the progress on the terminal")
        raise ServiceUnavailable("jars cannot be downloaded")

    monkeypatch.setattr(services, "kafka_home", home)
    with pytest.raises(ServiceUnavailable, match="cannot be downloaded"), Services():
        pass
