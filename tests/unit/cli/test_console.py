"""Who may reach the console: without a token only this machine."""

from pathlib import Path

import pytest

from hiveio.cli import main
from hiveio.cli.console import SHORTEST, token_of, url_of
from hiveio.console.guard import is_loopback
from hiveio.errors import ConfigError


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_this_machine_needs_no_token_unless_one_is_given(host: str, tmp_path: Path) -> None:
    assert is_loopback(host)
    assert token_of(host, None) == ""
    (tmp_path / "token").write_text(f"{'t' * SHORTEST}\n")
    assert token_of(host, tmp_path / "token") == "t" * SHORTEST


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
def test_what_others_reach_has_a_token_of_its_own(host: str) -> None:
    first, second = token_of(host, None), token_of(host, None)
    assert first != second
    assert len(first) >= 32


@pytest.mark.parametrize("text", ["", "short", "t" * (SHORTEST - 1), "a token with blanks in it", "ü" * 20])
def test_a_token_that_is_weak_or_cannot_be_in_a_url_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(ConfigError, match=f"a token has at least {SHORTEST} characters"):
        token_of("127.0.0.1", tmp_path / "token")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="--token-file /nowhere cannot be read: No such file"):
        token_of("::", Path("/nowhere"))


def test_a_file_of_other_bytes_holds_no_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff" * SHORTEST)
    with pytest.raises(ConfigError, match=f"a token has at least {SHORTEST} characters"):
        token_of("::", tmp_path / "token")


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.0.0.1", "localhost"), ("::", "localhost"), ("127.0.0.2", "127.0.0.2"), ("fd00::7", "[fd00::7]")],
)
def test_the_url_is_where_it_listens(host: str, name: str) -> None:
    assert url_of(host, 3030) == f"http://{name}:3030/"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "99999"], "--port 99999 is wrong: it takes a number from 0 to 65535"),
        (["--port", "-1"], "--port -1 is wrong"),
        (["--host", "192.0.2.1"], "--host=192.0.2.1 cannot be bound: "),
    ],
)
def test_an_address_that_cannot_be_had_is_named_by_its_option(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"EVENT_STORE_BROKERS": "127.0.0.1:1", "EVENT_STORE_TOPIC": "bank", "ACTOR_MODULE": ""}.items():
        monkeypatch.setenv(name, value)
    served: list[object] = []
    monkeypatch.setattr("hiveio.cli.console.serve_application", lambda *given: served.append(given))
    assert main(["console", *words]) != 0
    assert said in capsys.readouterr().err
    assert served == []
