"""The key set of an issuer: which of its keys serve which algorithm."""

import json
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt import PyJWK
from jwt.algorithms import RSAAlgorithm

from hiveio.auth.keys import ALGORITHMS, MAX_KEYS, KeySet, NoKeys
from tests.issuer import Key, document

EC, ED, RSA = Key("ec"), Key("ed", "EdDSA"), Key("rsa", "RS256")


def keys(*jwks: Any) -> KeySet:
    return KeySet(json.dumps({"keys": jwks}).encode())


def test_a_key_serves_the_algorithms_of_its_type_and_no_others() -> None:
    found = KeySet(document(EC, ED, RSA))
    serves = {key.kid: {each for each in ALGORITHMS if found.find(key.kid, each)} for key in (EC, ED, RSA)}
    assert serves == {
        "ec": {"ES256"},
        "ed": {"EdDSA"},
        "rsa": {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
    }
    assert not any(found.find(key.kid, each) for key in (EC, ED, RSA) for each in ("HS256", "none", "ES256K"))
    assert found.ids == ["ec", "ed", "rsa"]


def test_a_key_that_states_its_algorithm_serves_no_other() -> None:
    found = keys(RSA.jwk | {"alg": "PS256"})
    assert {each for each in ALGORITHMS if found.find("rsa", each)} == {"PS256"}


@pytest.mark.parametrize(
    "jwk",
    [
        EC.jwk | {"use": "enc"},
        EC.jwk | {"key_ops": ["sign"]},
        EC.jwk | {"key_ops": "verify"},
        EC.jwk | {"alg": "HS256"},
        EC.jwk | {"crv": "secp256k1"},
        EC.jwk | {"kid": 7},
        EC.jwk | {"x": "AAAA"},
        RSA.jwk | {"n": "A" * 4_097},
        RSA.jwk | {"e": "A" * 4_097},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "HS256"},
        {"kty": "RSA"},
        {},
        None,
        "key",
        RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True),
    ],
)
def test_what_cannot_verify_is_passed_over(jwk: Any) -> None:
    assert keys(jwk, ED.jwk).ids == ["ed"]
    with pytest.raises(NoKeys, match="no key in it can be used"):
        keys(jwk)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"<html>", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"\xff"),
        pytest.param(b'{"keys":' + b"[" * 100_000, id="deep"),
    ],
)
def test_a_document_without_keys_is_none(text: bytes) -> None:
    with pytest.raises(NoKeys):
        KeySet(text)


def test_a_token_without_an_id_is_for_the_only_key_that_fits() -> None:
    assert KeySet(document(EC, RSA)).find(None, "ES256") is not None
    assert KeySet(document(EC, Key("second"))).find(None, "ES256") is None


def test_a_key_that_a_library_fails_on_does_not_spoil_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(jwk: dict[str, Any], algorithm: str) -> PyJWK:
        if algorithm == "EdDSA":  # as in a build of OpenSSL without it
            raise UnsupportedAlgorithm("Ed25519 is not supported by this version of OpenSSL")
        return PyJWK(jwk, algorithm)

    monkeypatch.setattr("hiveio.auth.keys.PyJWK", fails)
    assert KeySet(document(ED, EC)).ids == ["ec"]


def test_only_so_many_keys_are_taken() -> None:
    found = keys(*[EC.jwk | {"kid": f"k{number}"} for number in range(MAX_KEYS + 5)])
    assert len(found.ids) == MAX_KEYS


def test_sets_that_verify_the_same_are_equal() -> None:
    assert KeySet(document(EC, RSA)) == KeySet(document(RSA, EC))
    assert KeySet(document(EC)) != KeySet(document(EC, RSA))
    assert KeySet(document(EC)) != KeySet(document(Key("ec")))  # another key under the same id


def test_a_private_key_in_the_document_is_used_as_the_public_one() -> None:
    assert isinstance(RSA.private, rsa.RSAPrivateKey)
    private = RSAAlgorithm.to_jwk(RSA.private, as_dict=True)
    found = keys(private | {"kid": "leaked", "key_ops": ["verify"]}).find("leaked", "RS256")
    assert found is not None
    assert isinstance(found.key, rsa.RSAPublicKey)
