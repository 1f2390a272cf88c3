"""Whether requests are authenticated, and whether the settings and the actors agree about it."""

import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.errors import ConfigError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

logger = logging.getLogger("hiveio.auth")


def check(settings: Settings, contracts: Iterable[Contract]) -> None:
    """Write to the log whether requests are authenticated. Raises ConfigError for what would only seem to be."""
    if settings.auth_jwks_url:
        reason = "AUTH_JWKS_URL is set, and a token for another service, or of another issuer, must not count here"
        settings.need(auth_issuer=reason, auth_audience=reason)
        url = urlsplit(settings.auth_jwks_url)
        if url.scheme == "http" and url.hostname not in _LOOPBACK:
            logger.warning("AUTH_JWKS_URL is not https: whoever is on the way to %s can make tokens", url.hostname)
        return
    for name in ("auth_issuer", "auth_audience"):
        if getattr(settings, name):
            raise ConfigError(f"{name.upper()} is set and AUTH_JWKS_URL is not: nothing would be verified; set it too")
    for contract in contracts:
        if contract.requires:
            raise ConfigError(
                f"{contract.kind.__name__}.requires is {contract.kind.requires!r}, and AUTH_JWKS_URL is not set: "
                "nobody would ask for it; set AUTH_JWKS_URL, AUTH_ISSUER and AUTH_AUDIENCE"
            )
    logger.info(
        "requests are not authenticated, because AUTH_JWKS_URL is not set: whoever reaches this service is served"
    )
