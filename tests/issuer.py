"""An issuer of tokens for tests: its keys, the tokens that it signs and those of attackers, and a server for its keys.

``python -m tests.issuer PORT [PEM]`` is the server: a process of its own, which is told over HTTP how to behave (over
HTTPS where PEM has its key and certificates).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.process import ROOT
from tests.services import free_port

ISSUER, AUDIENCE = "https://issuer.example/", "accounts"
PATH = "/keys"
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Key:
    """A key of the issuer. ``alg`` says which kind of key it is."""

    def __init__(self, kid: str | None, alg: str = "ES256") -> None:
        self.kid, self.alg = kid, alg
        self.private: Private
        if alg.startswith("ES"):
            self.private = ec.generate_private_key({"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1()}[alg])
        elif alg == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
        else:
            self.private = rsa.generate_private_key(65537, 2048)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as it stands in the document."""
        public = self.private.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            found = RSAAlgorithm.to_jwk(public, as_dict=True)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            found = ECAlgorithm.to_jwk(public, as_dict=True)
        else:
            found = OKPAlgorithm.to_jwk(public, as_dict=True)
        return {**found, "use": "sig", **({"kid": self.kid} if self.kid is not None else {})}

    @property
    def pem(self) -> bytes:
        """The public key as it can be had by anybody, in the form that an attacker uses as the secret of an HMAC."""
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def token(self, head: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that counts, but for what is given here; a claim or a member of the head that is None is left out."""
        now = int(time.time())
        payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600, **claims}
        signed = {name: value for name, value in payload.items() if value is not None}
        headers = {"kid": self.kid, **(head or {})}
        return jwt.encode(
            signed, self.private, self.alg, {name: value for name, value in headers.items() if value is not None}
        )


def document(*keys: Key) -> bytes:
    return json.dumps({"keys": [key.jwk for key in keys]}).encode()


def part(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def forged(head: Any, payload: Any, secret: bytes = b"", signature: str | None = None) -> str:
    """A token with this head and payload, signed by an HMAC with this secret."""
    signed = f"{part(head)}.{part(payload)}"
    if signature is None:
        signature = part(hmac.new(secret, signed.encode(), hashlib.sha256).digest())
    return f"{signed}.{signature}"


def hostile(key: Key, other: Key) -> dict[str, str]:
    """Tokens of attackers, none of which counts. ``other`` is a key that the issuer does not have."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "root", "exp": now + 600}
    good = key.token()
    head, payload, signature = good.split(".")
    nested = b'{"alg":"ES256","x":' + b"[" * 3_000
    return {
        "none": forged({"alg": "none", "kid": key.kid}, claims, signature=""),
        "None with a signature": forged({"alg": "None", "kid": key.kid}, claims),
        "nOnE without a dot": f"{part({'alg': 'nOnE'})}.{part(claims)}",
        "hmac with the public key": forged({"alg": "HS256", "kid": key.kid}, claims, key.pem),
        "hmac with the public jwk": forged({"alg": "HS256", "kid": key.kid}, claims, json.dumps(key.jwk).encode()),
        "hmac with nothing": forged({"alg": "HS256", "kid": key.kid}, claims, b""),
        "hmac that says it is no hmac": forged({"alg": key.alg, "kid": key.kid}, claims, key.pem),
        "another key under a known id": other.token({"kid": key.kid}),
        "another key that the token brings": other.token({"kid": key.kid, "jwk": other.jwk}),
        "another key at a URL that the token names": other.token({"jku": "http://127.0.0.1:1/keys", "kid": "evil"}),
        "an id that is a path": key.token({"kid": "../../../../dev/null"}),
        "an id that is SQL": key.token({"kid": "x' UNION SELECT 'secret"}),
        "an id of 4,000 characters": key.token({"kid": "k" * 4_000}),
        "an id that is a number": forged({"alg": key.alg, "kid": 7}, claims),
        "an id that is an object": forged({"alg": key.alg, "kid": {"$ne": ""}}, claims),
        "no id, and another key": other.token({"kid": None}),
        "another payload": f"{head}.{part(claims)}.{signature}",
        "no signature": f"{head}.{payload}.",
        "half a signature": good[: -len(signature) // 2],
        "a signature of zeros": f"{head}.{payload}.{part(bytes(64))}",
        "expired": key.token(exp=now - 120),
        "never expires": key.token(exp=None),
        "expires at infinity": forged({"alg": key.alg, "kid": key.kid}, b'{"exp": 1e999}'),
        "not valid yet": key.token(nbf=now + 600),
        "made in the future": key.token(iat=now + 600),
        "another audience": key.token(aud="billing"),
        "an audience that contains ours": key.token(aud="accounts-admin"),
        "no audience": key.token(aud=None),
        "another issuer": key.token(iss="https://issuer.example.evil/"),
        "the issuer without its slash": key.token(iss=ISSUER.rstrip("/")),
        "no issuer": key.token(iss=None),
        "no subject": key.token(sub=None),
        "an empty subject": key.token(sub=""),
        "a subject with a line break": key.token(sub="ada\nx"),
        "a subject that is too long": key.token(sub="a" * 256),
        "a critical extension": key.token({"crit": ["exp2"], "exp2": 1}),
        "a detached payload": key.token({"crit": ["b64"], "b64": False}),
        "a logout token": key.token({"typ": "logout+jwt"}),
        "a nested head": f"{part(b'[' * 3_000)}.{payload}.{signature}",
        "a nested member of the head": f"{part(nested)}.{payload}.{signature}",
        "a head that is a list": f"{part([])}.{payload}.{signature}",
        "a head that is not UTF-8": f"{part(bytes((0xFF, 0xFE)))}.{payload}.{signature}",
        "four parts": f"{good}.{signature}",
        "five parts, as if encrypted": f"{good}.{signature}.{signature}",
        "one part": "token",
        "other characters": good.replace(".", "!"),
        "a huge one": f"{head}.{'A' * 7_900}.{signature}",
    }


class Issuer:
    """The server, as a context manager. ``keys`` sets what it answers from now on.

    It has a certificate where ``pem``, with it and its key, and ``authority``, with who has issued it, are given.
    """

    def __init__(self, *keys: Key, pem: Path | None = None, authority: Path | None = None) -> None:
        self._first, self._pem = keys, pem
        trust = ssl.create_default_context(cafile=authority) if authority else True
        self._client = httpx.Client(verify=trust, timeout=10)
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self, port: int = 0) -> None:
        place = [str(port or free_port()), *([str(self._pem)] if self._pem else ())]
        command = [sys.executable, "-m", "tests.issuer", *place]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http{'s' if self._pem else ''}://127.0.0.1:{int(self._process.stdout.readline())}"
        self.keys(*self._first)

    @property
    def settings(self) -> dict[str, str]:
        return {"AUTH_JWKS_URL": self.url + PATH, "AUTH_ISSUER": ISSUER, "AUTH_AUDIENCE": AUDIENCE}

    def keys(self, *keys: Key) -> None:
        self._first = keys
        self.answer(body=document(*keys).decode())

    def answer(self, **behaviour: Any) -> None:
        """How it answers from now on: ``status``, ``body``, ``location``; ``drip_s`` is the pause after each byte of a
        head without end, and ``missing`` the number of bytes that it announces and does not send."""
        self._client.post(f"{self.url}/behave", json=behaviour).raise_for_status()

    @property
    def asked(self) -> int:
        """How often its keys were asked for."""
        return int(self._client.get(f"{self.url}/asked").text)

    def stop(self) -> int:
        """Ends it, and returns its port."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return int(self.url.rpartition(":")[2])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._client.close()


def main(port: int, pem: str = "") -> None:
    behaviour: dict[str, Any] = {}
    asked = 0
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal asked
            if self.path == "/asked":
                self._send(200, str(asked).encode())
                return
            with lock:
                asked += 1
            if location := behaviour.get("location"):
                self.send_response(302)
                self.send_header("location", location)
                self.end_headers()
                return
            body = str(behaviour.get("body", "")).encode() if self.path == PATH else b""
            if drip_s := behaviour.get("drip_s"):
                for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * 10_000:
                    self.wfile.write(bytes((byte,)))
                    time.sleep(drip_s)
            self._send(behaviour.get("status", 200) if self.path == PATH else 404, body, behaviour.get("missing", 0))

        def do_POST(self) -> None:
            behaviour.clear()
            behaviour.update(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._send(200, b"")

        def _send(self, status: int, body: bytes, missing: int = 0) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body) + missing))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the client has hung up, as a slow answer makes it

    with Server(("127.0.0.1", port), Handler) as server:
        if pem:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
