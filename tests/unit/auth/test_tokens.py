"""Tokens that count, and tokens of attackers, which do not."""

import json
import time
from typing import Any

import jwt
import pytest

from hiveio.auth.keys import KeySet
from hiveio.auth.tokens import SKEW_S, TOKEN_LIMIT, BadToken, head_of, verified
from hiveio.identity import Identity
from tests.issuer import AUDIENCE, ISSUER, Key, document, hostile

KEY, STRANGER = Key("k1"), Key("k1")
KEYS = KeySet(document(KEY))
HOSTILE = hostile(KEY, STRANGER)


def identity(token: str, keys: KeySet = KEYS) -> Identity:
    raw = token.encode()
    head = head_of(raw)
    key = keys.find(head.kid, head.alg)
    if key is None:
        raise BadToken("unknown key", "There is no such key.")
    return verified(raw, head, key, ISSUER, AUDIENCE)[0]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_token_of_an_attacker_does_not_count(name: str) -> None:
    with pytest.raises(BadToken) as caught:
        identity(HOSTILE[name])
    assert caught.value.status == 401
    assert caught.value.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
    assert "root" not in caught.value.detail


@pytest.mark.parametrize("alg", ["ES256", "ES384", "EdDSA", "RS256", "PS512"])
def test_each_algorithm_that_is_accepted(alg: str) -> None:
    key = Key("mine", alg)
    assert identity(key.token(), KeySet(document(key))).subject == "ada"


def test_the_identity_has_what_the_token_says() -> None:
    found = identity(KEY.token(scope="accounts:read accounts:write", tenant="north", sub="ßeta"))
    assert (found.subject, found.issuer) == ("ßeta", ISSUER)
    assert found.scopes == {"accounts:read", "accounts:write"}
    assert found.claims["tenant"] == "north"
    found.claims["tenant"] = "south"
    assert found.claims["tenant"] == "north"  # nothing of it can be changed for others


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({}, set()),
        ({"scope": ""}, set()),
        ({"scope": "a  b"}, {"a", "b"}),
        ({"scp": "a b"}, {"a", "b"}),
        ({"scp": ["a", "b", 7]}, {"a", "b"}),
        ({"scope": "a", "scp": ["b"]}, {"a", "b"}),
        ({"scope": 7}, set()),
        ({"scope": "a\nb"}, {"a\nb"}),
    ],
)
def test_scopes(claims: dict[str, Any], scopes: set[str]) -> None:
    assert identity(KEY.token(**claims)).scopes == scopes


def test_clocks_may_differ_a_little() -> None:
    now = time.time()
    assert identity(KEY.token(exp=int(now - SKEW_S + 10), nbf=int(now + SKEW_S - 10), iat=int(now + SKEW_S - 10)))
    with pytest.raises(BadToken, match="expired"):
        identity(KEY.token(exp=int(now - SKEW_S - 10)))


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "AT+JWT", "application/at+jwt", None])
def test_types_of_access_tokens(typ: str | None) -> None:
    assert identity(KEY.token({"typ": typ}))


def test_several_audiences() -> None:
    assert identity(KEY.token(aud=["billing", AUDIENCE]))


@pytest.mark.parametrize("aud", [["billing"], [AUDIENCE, 7], {AUDIENCE: 1}, [[AUDIENCE]], [], 7, f"{AUDIENCE} billing"])
def test_an_audience_that_is_not_ours_or_of_another_form(aud: Any) -> None:
    with pytest.raises(BadToken) as caught:
        identity(KEY.token(aud=aud))
    assert caught.value.reason in ("audience", "claims")


@pytest.mark.parametrize("more", [b'"x": NaN', b'"x": -Infinity', b'"x": "\\ud800"', b'"x": "\xff"'])
def test_claims_that_an_actor_could_not_read_are_none(more: bytes) -> None:
    """PyJWT reads more than JSON has; an actor that looks at such a claim would fail, and with it the command."""
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": int(time.time()) + 600}
    payload = json.dumps(claims).encode()[:-1] + b", " + more + b"}"
    token = jwt.api_jws.encode(payload, KEY.private, KEY.alg, {"kid": KEY.kid})
    with pytest.raises(BadToken, match="cannot be read"):
        identity(token)


def test_a_token_has_a_largest_size() -> None:
    with pytest.raises(BadToken, match=str(TOKEN_LIMIT)):
        head_of(KEY.token(x="x" * TOKEN_LIMIT).encode())
