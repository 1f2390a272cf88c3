"""TLS on our own port: the certificate and its key, and their renewal while connections are open."""

import logging
import os
import ssl

from hiveio.config import Settings
from hiveio.errors import ConfigError

# What RFC 9325 recommends for TLS 1.2, and RFC 9113 allows under HTTP/2; TLS 1.3 has its own.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
HANDSHAKE_S = 10  # a client that takes longer for its handshake is cut off
GOODBYE_S = 2  # for its close_notify

logger = logging.getLogger("hiveio")


class Certificate:
    """The pair of SSL_CERT and SSL_KEY. ``context`` is for the listener and always hands out the newest pair.

    Made before the fork: the workers then share the keys of session tickets, so a client may resume anywhere.
    """

    def __init__(self, chain: str, key: str, protocols: list[str]) -> None:
        self._chain, self._key, self._protocols = chain, key, protocols
        self._complaint = ""
        self._seen = self._signature()
        self._newest = self.context = self._load()
        # Asked in every handshake, also when the client names no server. Nothing else of the listener changes, so
        # connections that are open, or half open, do not notice.
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def renew(self) -> None:
        """Load the pair again if a file changed. One that cannot be used is logged once, and the previous one stays."""
        try:
            if (found := self._signature()) == self._seen:
                return
            # First this: a pair that is half written is loaded again when the other half changes.
            self._seen = found
            self._newest = self._load()
            self._complaint = ""
            logger.info("certificate renewed")
        except ConfigError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning("the renewed certificate cannot be used", extra={"reason": self._complaint})

    def _signature(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when a file is written, or a link turned to another, as Kubernetes does. Raises ConfigError."""
        return tuple(_stat(name, path) for name, path in (("SSL_CERT", self._chain), ("SSL_KEY", self._key)))

    def _load(self) -> ssl.SSLContext:
        """Raises ConfigError."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(self._protocols)
        try:
            context.load_cert_chain(self._chain, self._key, password=_locked)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(f"SSL_KEY={self._key!r} does not belong to SSL_CERT={self._chain!r}") from None
            detail = (error.reason or "no PEM in it").replace("_", " ").lower()
            raise ConfigError(
                f"SSL_CERT={self._chain!r} with SSL_KEY={self._key!r} cannot be used: {detail}; "
                "they must be PEM files, with the certificate first in its chain"
            ) from None
        except OSError as error:
            raise ConfigError(f"SSL_CERT={self._chain!r}, SSL_KEY={self._key!r}: {error.strerror}") from None
        return context


def certificate(settings: Settings) -> Certificate | None:
    """The certificate that the settings name, or None where they ask for none. Raises ConfigError."""
    named = {"SSL_CERT": settings.ssl_cert, "SSL_KEY": settings.ssl_key}
    for name, path in named.items():
        if settings.secure and not path:
            raise ConfigError(f"{name} is not set: SECURE=true serves HTTPS with the PEM files of SSL_CERT and SSL_KEY")
        if path and not settings.secure:
            raise ConfigError(
                f"{name}={path} is set, but SECURE is not: set SECURE=true to serve HTTPS, or remove {name}"
            )
    if not settings.secure:
        return None
    return Certificate(
        settings.ssl_cert, settings.ssl_key, ["h2", "http/1.1"] if settings.http_version == 2 else ["http/1.1"]
    )


def _stat(name: str, path: str) -> tuple[int, int, int]:
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
    except OSError as error:
        raise ConfigError(f"{name}={path!r} cannot be read: {error.strerror}") from None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _locked() -> str:
    # Without this, OpenSSL would ask for it on the terminal and wait.
    raise ConfigError("SSL_KEY is protected by a passphrase, which a service cannot ask for: store the key without one")
