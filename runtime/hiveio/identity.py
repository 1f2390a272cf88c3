"""Who sent a request, as a verified token says."""

from typing import Any, Self

import msgspec
from msgspec import Struct

from hiveio.errors import Forbidden

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


def readable(payload: bytes) -> None:
    """Raises MsgspecError, ValueError or RecursionError for claims that an actor could not read."""
    _decode(payload)


class Identity(Struct, frozen=True):
    """Who sent a request. ``context.identity`` has it where AUTH_JWKS_URL is set, and else None.

    ``subject`` is the ``sub`` of the token: 1 to 255 bytes, unique within its ``issuer``. ``scopes`` are what the token
    allows, from ``scope`` or ``scp``. ``claims`` are all of its claims; each look decodes them anew, so what an actor
    does to them reaches nobody else.
    """

    subject: str
    issuer: str = ""
    scopes: frozenset[str] = frozenset()
    payload: bytes = b"{}"

    @property
    def claims(self) -> dict[str, Any]:
        return _decode(self.payload)

    @classmethod
    def of(cls, subject: str, scopes: str = "", *, issuer: str = "", **claims: Any) -> Self:
        """An identity for tests: ``Identity.of("ada", "accounts:write", tenant="north")``."""
        payload = _encode({"sub": subject, "iss": issuer, "scope": scopes, **claims})
        return cls(subject, issuer, frozenset(scopes.split()), payload)


def check_scopes(required: frozenset[str], identity: Identity) -> None:
    """Raises Forbidden (403) with the challenge of RFC 6750 for an identity that lacks one of the scopes."""
    if missing := required - identity.scopes:
        named = " ".join(sorted(required))
        raise Forbidden(
            f"The token does not allow this: it lacks the scope {' '.join(sorted(missing))}.",
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{named}"'},
        )
