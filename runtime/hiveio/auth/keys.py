"""The public keys of an issuer, from its JSON Web Key Set (RFC 7517).

A key serves the algorithms of its type, and those alone: a public key is never the secret of an HMAC.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from jwt import PyJWK

MAX_KEYS = 100  # of a document; further ones are ignored
RSA_BITS = range(2_048, 16_385)
_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS = frozenset((*_RSA, *_CURVES.values(), "EdDSA"))
_MEMBER_LIMIT = 4_096  # characters: an RSA key of 16,384 bits has 2,731; the time that a longer one takes grows faster
_MEMBERS = ("kty", "n", "e", "crv", "x", "y")  # of a public key; nothing else of it is passed on

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class NoKeys(Exception):
    """The document has no key that can be used; the text says why."""


class KeySet:
    """The keys of one document, by id and algorithm. Two sets are equal if they verify the same signatures."""

    def __init__(self, document: bytes) -> None:
        """Raises NoKeys."""
        self._keys: dict[tuple[str | None, str], PyJWK] = {}
        self._made_of: set[tuple[Any, ...]] = set()
        for jwk in _listed(document):
            kid = jwk.get("kid")
            if not isinstance(kid, str | None):
                continue
            for algorithm in _algorithms(jwk):
                if (kid, algorithm) not in self._keys and (key := _key(jwk, algorithm)) is not None:
                    self._keys[kid, algorithm] = key
                    self._made_of.add((kid, algorithm, *(str(jwk.get(name)) for name in _MEMBERS)))
        if not self._keys:
            raise NoKeys(
                "no key in it can be used: there must be RSA keys of 2048 bits, P-256 and the like, or Ed25519"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySet) and other._made_of == self._made_of

    __hash__ = None  # type: ignore[assignment]

    @property
    def ids(self) -> list[str]:
        return sorted({kid or "(none)" for kid, _ in self._keys})

    def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """The key that a token names. A token that names none is taken where just one key has its algorithm."""
        if kid is not None:
            return self._keys.get((kid, algorithm))
        fitting = [key for (_, known), key in self._keys.items() if known == algorithm]
        return fitting[0] if len(fitting) == 1 else None


def _listed(document: bytes) -> list[dict[str, Any]]:
    try:
        keys = _decode(document).get("keys")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NoKeys(f"it is no JSON Web Key Set: {error}") from None
    if not isinstance(keys, list):
        raise NoKeys("it is no JSON Web Key Set: it has no list of keys")
    return [jwk for jwk in keys[:MAX_KEYS] if isinstance(jwk, dict)]


def _algorithms(jwk: Mapping[str, Any]) -> Iterator[str]:
    """The algorithms that this key may verify. None of a key that is for something else."""
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return
    match jwk.get("kty"), jwk.get("crv"):
        case "RSA", _:
            able: tuple[str, ...] = _RSA
        case "EC", str(curve) if curve in _CURVES:
            able = (_CURVES[curve],)
        case "OKP", "Ed25519":
            able = ("EdDSA",)
        case _:
            return
    stated = jwk.get("alg")
    yield from (each for each in able if stated in (None, each))


def _key(jwk: Mapping[str, Any], algorithm: str) -> PyJWK | None:
    members = {name: jwk[name] for name in _MEMBERS if name in jwk}
    if any(isinstance(value, str) and len(value) > _MEMBER_LIMIT for value in members.values()):
        return None
    try:
        made = PyJWK(members, algorithm)
    except Exception:  # whatever the libraries make of a wrong key, it does not spoil the others
        return None
    return made if jwk["kty"] != "RSA" or made.key.key_size in RSA_BITS else None
