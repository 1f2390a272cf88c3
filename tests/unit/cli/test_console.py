"""Who may reach the console: without a token only this machine."""

from pathlib import Path

import pytest

from hiveio.cli.console import SHORTEST, is_loopback, token_of
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
