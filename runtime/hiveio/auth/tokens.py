"""A token, from its bytes to an identity: RFC 7519, by the advice of RFC 8725 and RFC 9068.

What is read before the signature is verified is bounded, and decides nothing but which key is asked.
"""

import base64
import re
from typing import Any

import jwt
import msgspec
from jwt import PyJWK
from msgspec import UNSET, Raw, Struct, UnsetType

from hiveio.auth.keys import ALGORITHMS
from hiveio.errors import Unauthorized
from hiveio.identity import Identity, readable

TOKEN_LIMIT = 8_192  # bytes
SKEW_S = 60  # by which the clocks of the issuer and of this machine may differ
SUBJECT_LIMIT = 255  # bytes
# Without a type, or with one of these, it may be an access token; what has another one is not (a logout token, say).
_TYPES = (None, "jwt", "at+jwt", "application/jwt", "application/at+jwt")
_SHAPE = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_REASONS: dict[type[Exception], tuple[str, str]] = {
    jwt.ExpiredSignatureError: ("expired", "The token has expired."),
    jwt.ImmatureSignatureError: ("not yet valid", "The token is not valid yet."),
    jwt.InvalidAudienceError: ("audience", "The token is for another audience."),
    jwt.InvalidIssuerError: ("issuer", "The token is of another issuer."),
    jwt.InvalidSignatureError: ("signature", "The signature of the token is not valid."),
}


class BadToken(Unauthorized):
    """The token does not count. ``reason`` is a label for metrics."""

    urn = "urn:hiveio:problem:unauthorized"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail, challenge=f'Bearer error="invalid_token", error_description="{detail}"')
        self.reason = reason


class Head(Struct):
    """What the head of a token says about its signature."""

    alg: str
    kid: str | None = None
    typ: str | None = None
    crit: Raw | UnsetType = UNSET


_head = msgspec.json.Decoder(Head).decode
_UNREADABLE = "The token cannot be read: it must be a signed JWT."


def head_of(token: bytes) -> Head:
    """The head of a token, nothing of which is verified. Raises BadToken for a token that cannot count."""
    if len(token) > TOKEN_LIMIT:
        raise BadToken("malformed", f"The token has more than {TOKEN_LIMIT} bytes.")
    if not _SHAPE.fullmatch(token):
        raise BadToken("malformed", _UNREADABLE)
    try:
        head = _head(_part(token, 0))
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise BadToken("malformed", _UNREADABLE) from None
    if head.alg not in ALGORITHMS:
        raise BadToken("algorithm", f"The token is signed in a way that is not accepted; use one of {_ACCEPTED}.")
    if head.crit is not UNSET:
        raise BadToken("malformed", "The token asks for an extension of JWT that is not supported.")
    if (head.typ and head.typ.lower()) not in _TYPES:
        raise BadToken("type", "The token is not an access token.")
    return head


_ACCEPTED = ", ".join(sorted(ALGORITHMS))


def verified(token: bytes, head: Head, key: PyJWK, issuer: str, audience: str) -> tuple[Identity, float]:
    """The identity, and the time until which the token counts, in seconds since the epoch. Raises BadToken."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[head.alg],
            audience=audience,
            issuer=issuer,
            leeway=SKEW_S,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        until = float(claims["exp"]) + SKEW_S
        payload = _part(token, 1)
        readable(payload)
    except jwt.MissingRequiredClaimError as error:
        raise BadToken("claims", f"The token has no {error.claim}.") from None
    except jwt.PyJWTError as error:
        raise BadToken(*_REASONS.get(type(error), ("malformed", _UNREADABLE))) from None
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError):  # what its issuer has signed
        raise BadToken("malformed", _UNREADABLE) from None
    subject = claims["sub"]
    # It becomes a header of records and a part of command ids, in which a line break is the end of it.
    if not (isinstance(subject, str) and subject.isprintable() and 1 <= len(subject.encode()) <= SUBJECT_LIMIT):
        raise BadToken("claims", f"The sub of the token must be a printable text of 1 to {SUBJECT_LIMIT} bytes.")
    return Identity(subject, issuer, _scopes(claims), payload), until


def _part(token: bytes, index: int) -> bytes:
    part = token.split(b".")[index]
    return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """From ``scope`` (RFC 8693: a text with spaces), or ``scp``, which some issuers write, also as a list."""
    found: list[str] = []
    for name in ("scope", "scp"):
        value = claims.get(name)
        if isinstance(value, str):
            found += value.split(" ")
        elif isinstance(value, list):
            found += [each for each in value if isinstance(each, str)]
    return frozenset(found) - {""}
