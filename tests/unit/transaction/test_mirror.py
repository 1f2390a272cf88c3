"""The watermark of the cache that was last seen: what is further on, what came late, and what is another cache."""

import pytest

from hiveio.transaction.entry import Watermark
from hiveio.transaction.mirror import Mirror


def at(offset: int, topic: str = "topic id", generation: str = "g") -> Watermark | None:
    """As a reply brings it."""
    return Watermark.parse(Watermark(offset, 0, topic, generation).text.encode())


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def mirror(calls: list[str]) -> Mirror:
    made = Mirror("log/0", "topic id")
    made.subscribe(on_move=lambda: calls.append("moved"))
    made.subscribe(on_move=lambda: calls.append(f"at {made.watermark.offset}"), on_loss=lambda: calls.append("lost"))
    made.anchor(Watermark(5, 0, "topic id", "g"))
    return made


def test_a_later_watermark_is_told_to_all_who_subscribed(mirror: Mirror, calls: list[str]) -> None:
    assert mirror.observe_watermark(at(5))
    assert calls == []
    assert mirror.observe_watermark(at(7))
    assert mirror.observe_watermark(at(7))
    assert calls == ["moved", "at 7"]


def test_a_reply_that_an_apply_has_overtaken_is_no_loss(mirror: Mirror, calls: list[str]) -> None:
    assert mirror.observe_watermark(at(7))
    assert mirror.observe_watermark(at(6), asked=5)
    assert (mirror.watermark.offset, mirror.lost, calls) == (7, False, ["moved", "at 7"])
    assert not mirror.observe_watermark(at(6)), "a reply that is looked at as it comes is of now"


@pytest.mark.parametrize("other", [None, at(4), at(9, "another log"), at(9, generation="h")])
def test_a_cache_that_fell_back_or_is_another_one_is_lost_once(
    mirror: Mirror, calls: list[str], caplog: pytest.LogCaptureFixture, other: Watermark | None
) -> None:
    assert not mirror.observe_watermark(other)
    assert not mirror.observe_watermark(other)
    assert mirror.lost
    assert calls == ["lost"]
    assert len(caplog.records) == 1
    mirror.anchor(Watermark(0, 0, "topic id", "new"))
    assert mirror.observe_watermark(at(1, generation="new"))
    assert not mirror.lost


@pytest.mark.parametrize("text", [b"", b"5|0|topic id|g", b"by hand"])
def test_what_is_no_watermark_is_none(text: bytes) -> None:
    assert Watermark.parse(text) is None
