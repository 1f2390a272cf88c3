"""Which events of a producer are repeats."""

from hiveio.consumer.progress import RecentKeys


def headers(
    id: bytes = b"r-1.0", actor: bytes = b"Notes", subject: bytes | None = None
) -> list[tuple[str, bytes | None]]:
    return [("hive-actor", actor), ("hive-id", id), *([("hive-subject", subject)] if subject else [])]


def test_an_event_that_a_client_sent_again_is_a_repeat() -> None:
    keys = RecentKeys(10)
    assert keys.take(b"a", b"k", headers())
    assert not keys.take(b"a", b"k", headers(b"r-2.0"))
    assert keys.take(b"a", b"k", headers(b"r-2.1"))
    assert keys.take(b"b", b"k", headers())


def test_the_same_key_of_another_caller_is_no_repeat() -> None:
    """It was answered as stored: who guesses a key must not make the event of another one disappear."""
    keys = RecentKeys(10)
    assert keys.take(b"a", b"k", headers(subject=b"ada"))
    assert keys.take(b"a", b"k", headers(b"r-2.0", subject=b"bob"))
    assert not keys.take(b"a", b"k", headers(b"r-3.0", subject=b"ada"))
