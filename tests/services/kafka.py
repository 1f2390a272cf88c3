"""The Kafka of `hiveio.dev` with what faults and rights need: a proxy in front of it, TLS, a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from hiveio.dev import kafka
from hiveio.dev.kafka import QUICK, Listener, running_cluster
from hiveio.dev.process import HOST, free_port
from tests.process import wait_until
from tests.services.security import Security


class Kafka(kafka.Kafka):
    """With `advertised_port` there is a further listener, on `upstream_port`, that sends its clients to
    `advertised_port`: the place of a proxy. In a cluster, with `peers_proxied`, the other brokers come to
    `advertised_port` too, and controllers to the port in `voters`, the place of a proxy that leads to
    `controller_port`. With `security` there is a further listener, `secure`, that takes TLS with SASL only.
    """

    def __init__(
        self,
        port: int | None = None,
        folder: Path | str | None = None,
        *,
        advertised_port: int | None = None,
        properties: Mapping[str, str | int] | None = None,
        node: int = 1,
        voters: Mapping[int, int] | None = None,
        peers_proxied: bool = False,
        security: Security | None = None,
    ) -> None:
        self.advertised_port = advertised_port
        self.upstream_port = free_port() if advertised_port else None
        self.security = security
        self.secure_port = free_port() if security else None
        voters = voters or {node: free_port()}
        self._peers_proxied = peers_proxied
        self.controller_port = free_port() if peers_proxied else voters[node]
        own = security.listener("SECURE") if security else {}
        super().__init__(port, folder, node=node, voters=voters, properties={**own, **(properties or {})})

    @property
    def secure(self) -> str:
        """`brokers` of the listener that takes TLS with SASL only."""
        return f"{HOST}:{self.secure_port}"

    def wait(self, timeout_s: float = 60.0) -> None:
        super().wait(timeout_s)
        if self.security is not None:
            self._make_user(self.security)

    def _make_user(self, security: Security) -> None:
        """SCRAM's users are kept by the cluster: made over the plain listener, the same at every start."""
        admin = AdminClient({"bootstrap.servers": self.brokers, **QUICK})
        mechanisms = ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512
        for mechanism in mechanisms:
            credential = ScramCredentialInfo(mechanism, 4096)
            made = UserScramCredentialUpsertion(security.user, credential, security.password.encode())
            admin.alter_user_scram_credentials([made])[security.user].result(30)

        def is_known() -> bool:
            """The controller confirms it, and the broker comes to know it a moment later."""
            asked: Any = admin.describe_user_scram_credentials()  # all users: one who is not there is no failure
            user = asked.result(30).get(security.user)
            return user is not None and len(user.scram_credential_infos) == len(mechanisms)

        wait_until(is_known, 20, "the user")

    def _options(self) -> list[str]:
        return self.security.java() if self.security else []

    def _listeners(self) -> dict[str, Listener]:
        listeners = super()._listeners()
        if self.upstream_port and self.advertised_port:
            proxy = {"PROXY": Listener(HOST, self.upstream_port, HOST, self.advertised_port)}
            listeners = {**proxy, **listeners} if self._peers_proxied else {**listeners, **proxy}
        if self._peers_proxied:
            listeners["CONTROLLER"] = listeners["CONTROLLER"]._replace(listening=self.controller_port)
        if self.secure_port:
            listeners["SECURE"] = Listener(HOST, self.secure_port, HOST, self.secure_port, "SASL_SSL")
        return listeners


@contextlib.contextmanager
def kafka_cluster(count: int = 3, properties: Mapping[str, str | int] | None = None) -> Iterator[list[Kafka]]:
    """Brokers that form one cluster, all answering; raises ServiceUnavailable, ServiceFailed."""
    voters = {node: free_port() for node in range(1, count + 1)}
    with running_cluster([Kafka(properties=properties, node=node, voters=voters) for node in voters]) as brokers:
        yield brokers
