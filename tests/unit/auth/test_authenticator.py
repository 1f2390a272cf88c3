"""The keys are fetched in time and not too often, and a token that is verified is verified once."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hiveio.auth import authenticator
from hiveio.auth.authenticator import Authenticator
from hiveio.auth.fetching import FetchFailed
from hiveio.auth.tokens import BadToken, verified
from hiveio.config import Settings
from hiveio.errors import Unauthorized, Unavailable
from tests.issuer import AUDIENCE, ISSUER, Key, document

OLD, NEW = Key("old"), Key("new")
SETTINGS = Settings(auth_jwks_url="http://localhost/keys", auth_issuer=ISSUER, auth_audience=AUDIENCE)


class Source:
    """What the issuer answers: a document, an error, or nothing before ``released``."""

    def __init__(self, *keys: Key) -> None:
        self.answer: bytes | Exception = document(*keys)
        self.asked = 0
        self.released = asyncio.Event()
        self.released.set()

    async def __call__(self) -> bytes:
        self.asked += 1
        await self.released.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@asynccontextmanager
async def started(source: Source) -> AsyncIterator[Authenticator]:
    made = Authenticator(SETTINGS, source)
    await made.start()
    try:
        await asyncio.sleep(0.01)
        yield made
    finally:
        await made.stop()


async def answer(made: Authenticator, token: str | None, scheme: str = "Bearer") -> Any:
    """The subject, or the status of the refusal."""
    try:
        return (await made.identify(None if token is None else f"{scheme} {token}".encode())).subject
    except (Unauthorized, Unavailable) as problem:
        return problem.status


@pytest.fixture
def again_s(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda seconds: monkeypatch.setattr(authenticator, "AGAIN_S", seconds)


async def test_a_caller_is_known_by_the_token() -> None:
    async with started(Source(OLD)) as made:
        assert await made.ready() is None
        token = OLD.token()
        assert [await answer(made, token), await answer(made, token, "bEARER"), await answer(made, f" {token} ")] == [
            "ada",
            "ada",
            "ada",
        ]


@pytest.mark.parametrize("sent", [None, b"", b"Bearer", b"Basic YWRhOnNlY3JldA==", b"Digest x"])
async def test_without_a_token_the_challenge_names_no_error(sent: bytes | None) -> None:
    async with started(Source(OLD)) as made:
        with pytest.raises(Unauthorized) as caught:
            await made.identify(sent)
        expected = "Bearer" if sent != b"Bearer" else 'Bearer error="invalid_token"'
        assert caught.value.headers["WWW-Authenticate"].startswith(expected)


async def test_without_keys_it_is_not_ready_and_nobody_is_let_in() -> None:
    source = Source(OLD)
    source.answer = FetchFailed("the answer is 500")
    async with started(source) as made:
        assert "the answer is 500" in str(await made.ready())
        assert await answer(made, OLD.token()) == 503
        assert await answer(made, None) == 401
        source.answer = document(OLD)
        async with asyncio.timeout(5):
            while await made.ready() is not None:
                await asyncio.sleep(0.01)
        assert await answer(made, OLD.token()) == "ada"


async def test_an_unknown_key_is_asked_for_once_in_a_while_whatever_clients_send() -> None:
    source = Source(OLD)
    async with started(source) as made:
        asked = source.asked
        unknown = [Key(f"k{number}").token() for number in range(3)]
        assert [await answer(made, token) for token in unknown * 20] == [401] * 60
        assert source.asked == asked  # AGAIN_S is counted from the look at the start too


async def test_a_rotated_key_is_taken_and_the_old_one_counts_no_longer(again_s: Callable[[float], None]) -> None:
    source = Source(OLD)
    async with started(source) as made:
        assert await answer(made, token := OLD.token()) == "ada"
        again_s(0.0)
        source.answer = document(OLD, NEW)
        assert [await answer(made, NEW.token()), await answer(made, token)] == ["ada", "ada"]
        source.answer = document(NEW)
        assert await answer(made, Key("third").token()) == 401  # it causes a look at the keys
        assert [await answer(made, token), await answer(made, OLD.token())] == [401, 401]


async def test_a_key_that_is_replaced_under_its_id_counts_no_longer(again_s: Callable[[float], None]) -> None:
    source = Source(OLD)
    async with started(source) as made:
        assert await answer(made, token := OLD.token()) == "ada"
        again_s(0.0)
        source.answer = document(Key("old"))
        assert await answer(made, Key("any").token()) == 401
        assert await answer(made, token) == 401


async def test_while_the_issuer_is_away_known_keys_go_on_and_unknown_ones_are_503(
    again_s: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(OLD)
    async with started(source) as made:
        again_s(0.0)
        source.answer = FetchFailed("no answer within 5 s")
        assert await answer(made, NEW.token()) == 503
        assert await answer(made, token := OLD.token()) == "ada"
        assert await made.ready() is None
        monkeypatch.setattr(authenticator, "MAX_AGE_S", 0.0)
        assert [await answer(made, token), await answer(made, OLD.token(sub="bob"))] == [503, 503]
        assert "no answer" in str(await made.ready())


async def test_a_document_without_keys_does_not_replace_the_known_ones(again_s: Callable[[float], None]) -> None:
    source = Source(OLD)
    async with started(source) as made:
        again_s(0.0)
        source.answer = b'{"keys": []}'
        assert await answer(made, NEW.token()) == 503
        assert await answer(made, OLD.token()) == "ada"


async def test_a_look_that_fails_in_an_unforeseen_way_is_followed_by_another(
    again_s: Callable[[float], None],
) -> None:
    source = Source(OLD)
    async with started(source) as made:
        again_s(0.0)
        source.answer = RuntimeError("can't start new thread")
        assert await answer(made, NEW.token()) == 503
        assert (await answer(made, OLD.token()), made.alive()) == ("ada", True)
        source.answer = document(OLD, NEW)
        assert await answer(made, NEW.token()) == "ada"


async def test_few_requests_wait_for_a_slow_issuer(
    again_s: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authenticator, "MAX_WAITING", 3)
    source = Source(OLD)
    async with started(source) as made:
        again_s(0.0)
        asked = source.asked
        source.released.clear()
        source.answer = document(OLD, NEW)
        waiting = [asyncio.create_task(answer(made, NEW.token())) for _ in range(10)]
        await asyncio.sleep(0.05)
        assert [task.result() for task in waiting if task.done()] == [503] * 7
        assert await answer(made, OLD.token()) == "ada"  # others are not held up
        source.released.set()
        assert [await task for task in waiting].count("ada") == 3
        assert source.asked == asked + 1


async def test_a_request_is_answered_before_its_own_time_is_over(again_s: Callable[[float], None]) -> None:
    source = Source(OLD)
    made = Authenticator(dataclasses.replace(SETTINGS, request_timeout_ms=4_000), source)
    await made.start()
    await asyncio.sleep(0.01)
    again_s(0.0)
    source.released.clear()
    async with asyncio.timeout(3.6):
        assert await answer(made, NEW.token()) == 503
    await made.stop()


async def test_a_request_that_is_cancelled_does_not_end_the_look(again_s: Callable[[float], None]) -> None:
    source = Source(OLD)
    async with started(source) as made:
        again_s(0.0)
        source.released.clear()
        source.answer = document(OLD, NEW)
        waiting = asyncio.create_task(answer(made, NEW.token()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        source.released.set()
        await asyncio.sleep(0.01)
        again_s(60.0)
        assert await answer(made, NEW.token()) == "ada"


async def test_a_token_that_was_verified_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(Source(OLD)) as made:
        token = OLD.token(exp=int(time.time()) + 100)
        assert await answer(made, token) == "ada"
        now = time.time() + 170
        monkeypatch.setattr(time, "time", lambda: now)
        # PyJWT has a clock of its own, so only a token that is remembered would count here.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(authenticator, "verified", _expired)
            assert await answer(made, token) == 401


def _expired(*arguments: Any) -> Any:
    raise BadToken("expired", "The token has expired.")


async def test_so_many_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticator, "MAX_VERIFIED", 2)
    seen: list[bytes] = []

    def counted(token: bytes, *rest: Any) -> Any:
        seen.append(token)
        return verified(token, *rest)

    monkeypatch.setattr(authenticator, "verified", counted)
    async with started(Source(OLD)) as made:
        tokens = [OLD.token(sub=name) for name in ("a", "b", "c")]
        assert [await answer(made, token) for token in [*tokens, tokens[2], tokens[0]]] == ["a", "b", "c", "c", "a"]
        assert len(seen) == 4


async def test_a_token_without_an_id_after_a_rotation(again_s: Callable[[float], None]) -> None:
    before, after = Key(None), Key(None)
    source = Source(before)
    async with started(source) as made:
        assert await answer(made, before.token()) == "ada"
        again_s(0.0)
        source.answer = document(after)
        assert await answer(made, after.token()) == "ada"
        assert await answer(made, before.token()) == 401
