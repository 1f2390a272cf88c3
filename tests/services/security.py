"""TLS and SASL for a listener: certificates of an authority of our own, users with random passwords, a token issuer."""

from __future__ import annotations

import base64
import json
import ssl
import time
import uuid
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hiveio.dev.process import HOST

AUDIENCE, ISSUER = "kafka", "https://issuer.test"
_OAUTH = "org.apache.kafka.common.security.oauthbearer"


class Security:
    """What servers and clients of one test need, written into `folder`.

    `user` with `password` may log in by PLAIN and, once `Kafka` has made it, by SCRAM; `token()` is a token that the
    broker takes for OAUTHBEARER. Every secret is random, so that a test can look for it in what a process says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user, self.password = "ada", f"secret-{uuid.uuid4().hex}"
        authority = trustme.CA()
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        server = authority.issue_cert(HOST, key_type=trustme.KeyType.RSA)
        self.server = folder / "server.pem"  # key and certificates
        key_pem = serialization.load_pem_private_key(server.private_key_pem.bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,  # Kafka reads no other
            serialization.NoEncryption(),
        )
        self.server.write_bytes(key_pem + b"".join(pem.bytes() for pem in server.cert_chain_pems))
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "RSA",
            "kid": "one",
            "use": "sig",
            "alg": "RS256",
            "n": _number(numbers.n),
            "e": _number(numbers.e),
        }
        self.jwks = folder / "jwks.json"
        self.jwks.write_text(json.dumps({"keys": [key]}))

    def server_context(self) -> ssl.SSLContext:
        """For a server written in Python."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        return context

    def token(self, *, valid_s: float = 600) -> str:
        """A signed JSON Web Token for this broker."""
        now = int(time.time())
        claims = {"sub": self.user, "aud": AUDIENCE, "iss": ISSUER, "iat": now - 1, "exp": now + int(valid_s)}
        header = {"alg": "RS256", "typ": "JWT", "kid": "one"}
        signed = f"{_text(json.dumps(header).encode())}.{_text(json.dumps(claims).encode())}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_text(signature)}"

    def listener(self, name: str) -> dict[str, str]:
        """The properties of a Kafka listener that takes TLS with PLAIN, SCRAM and OAUTHBEARER."""
        prefix = f"listener.name.{name.lower()}"
        login = "org.apache.kafka.common.security"
        user = f'user_{self.user}="{self.password}"'
        return {
            f"{prefix}.ssl.keystore.type": "PEM",
            f"{prefix}.ssl.keystore.location": str(self.server),
            f"{prefix}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            f"{prefix}.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required {user};",
            f"{prefix}.scram-sha-256.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            f"{prefix}.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            f"{prefix}.oauthbearer.sasl.jaas.config": f"{_OAUTH}.OAuthBearerLoginModule required;",
            f"{prefix}.oauthbearer.sasl.server.callback.handler.class": f"{_OAUTH}.OAuthBearerValidatorCallbackHandler",
            f"{prefix}.oauthbearer.sasl.oauthbearer.jwks.endpoint.url": self.jwks.as_uri(),
            f"{prefix}.oauthbearer.sasl.oauthbearer.expected.audience": AUDIENCE,
            f"{prefix}.oauthbearer.sasl.oauthbearer.expected.issuer": ISSUER,
        }

    def java(self) -> list[str]:
        """Options of the broker's Java."""
        return [f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={self.jwks.as_uri()}"]


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _text(value.to_bytes((value.bit_length() + 7) // 8, "big"))
