"""HTTPS on our own port, from outside: a real client, real certificates, renewal and drain under load."""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.integration.test_base import ACTOR, JSON, deposit
from tests.process import Role, wait_until


def first(chain: bytes) -> bytes:
    """The certificate of a chain that a client is shown first, as it compares it."""
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(chain.decode().partition(end)[0] + end)


class Authority:
    """A certificate authority, and the files in which a service finds what it issued last."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.chain, self.key = folder / "tls.crt", folder / "tls.key"
        self.trust = ssl.create_default_context()
        self.ca.configure_trust(self.trust)

    def issue(self) -> tuple[bytes, bytes]:
        issued = self.ca.issue_cert("127.0.0.1")
        return b"".join(part.bytes() for part in issued.cert_chain_pems), issued.private_key_pem.bytes()

    def renew(self) -> "Authority":
        """As Kubernetes mounts a secret: links to a link to a folder, and one rename turns it to another."""
        folder = self.chain.parent
        data = Path(tempfile.mkdtemp(dir=folder))
        chain, key = self.issue()
        self.shown = first(chain)
        for path, content in ((self.chain, chain), (self.key, key)):
            (data / path.name).write_bytes(content)
            if not path.is_symlink():
                path.symlink_to(f"..data/{path.name}")
        (folder / "..new").symlink_to(data.name)
        (folder / "..new").replace(folder / "..data")
        return self

    @property
    def environ(self) -> dict[str, str]:
        return {"SECURE": "true", "SSL_CERT": str(self.chain), "SSL_KEY": str(self.key)}


def secure_role(authority: Authority, **environ: str) -> Role:
    role = Role("base", {**authority.environ, **environ}, actor=ACTOR)
    role.trust = authority.trust
    return role


def served(role: Role) -> bytes | None:
    """The certificate that a new client is shown."""
    with (
        socket.create_connection(("127.0.0.1", role.port or 0), timeout=10) as plain,
        authority_trust(role).wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.getpeercert(binary_form=True)


def authority_trust(role: Role) -> ssl.SSLContext:
    assert isinstance(role.trust, ssl.SSLContext)
    return role.trust


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls")).renew()


@pytest.fixture(scope="module")
def base(authority: Authority) -> Iterator[Role]:
    with secure_role(authority) as role:
        yield role
    assert role.process.returncode == 0, role.text()
    assert not role.errors
    assert not role.complaints()


def test_it_answers_over_tls(base: Role) -> None:
    with httpx.Client(base_url=base.url, verify=base.trust) as client:
        answer = client.post("/accounts/1", json=deposit(5))
        assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")
        assert answer.json()["payload"] == {"amount": 5}
        stream = answer.extensions["network_stream"].get_extra_info("ssl_object")
        assert stream.version() == "TLSv1.3"
        long = b" " * 900_000 + json.dumps(deposit(1)).encode()  # many records of TLS
        assert client.post("/accounts/1", content=long, headers=JSON).status_code == 200


@pytest.mark.parametrize("question", [[], ["--ready"]])
def test_the_health_check_of_the_images_speaks_tls(base: Role, question: list[str]) -> None:
    environ = {**base.environ, "PORT": str(base.port)}
    command = [str(Path(sys.executable).parent / "hiveio"), "health", *question]
    answer = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=30)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_who_speaks_no_tls_gets_no_answer_and_hurts_nobody(base: Role) -> None:
    for sent in (b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x00", os.urandom(2000), b""):
        with socket.create_connection(("127.0.0.1", base.port or 0), timeout=20) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            try:
                assert b"HTTP" not in connection.recv(65536)
            except ConnectionResetError:
                pass
    assert httpx.get(f"{base.url}/ping", verify=base.trust).status_code == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_of_tls(base: Role, authority: Authority, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context()
    authority.ca.configure_trust(context)
    context.minimum_version = context.maximum_version = version
    assert httpx.get(f"{base.url}/ping", verify=context).status_code == 200


def test_a_version_that_is_not_safe_is_refused(base: Role) -> None:
    answer = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{base.port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert answer.returncode != 0
    assert "Cipher is (NONE)" in answer.stdout


def encrypted(key: Path, to: Path) -> Path:
    subprocess.run(["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", to], check=True, timeout=20)
    return to


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"SSL_CERT": ""}, "SSL_CERT is not set: SECURE=true serves HTTPS"),
        ({"SSL_KEY": ""}, "SSL_KEY is not set: SECURE=true serves HTTPS"),
        (
            {"SECURE": "false"},
            "SSL_CERT={chain} is set, but SECURE is not: set SECURE=true to serve HTTPS, or remove SSL_CERT",
        ),
        ({"SSL_CERT": "/nowhere"}, "SSL_CERT='/nowhere' cannot be read: No such file or directory"),
        ({"SSL_KEY": "/nowhere"}, "SSL_KEY='/nowhere' cannot be read: No such file or directory"),
        ({"SSL_KEY": "{other}"}, "SSL_KEY='{other}' does not belong to SSL_CERT='{chain}'"),
        ({"SSL_KEY": "{locked}"}, "SSL_KEY is protected by a passphrase"),
        ({"SSL_CERT": "{key}"}, "SSL_CERT='{key}' with SSL_KEY='{key}' cannot be used: "),
        ({"SSL_KEY": "{chain}"}, "SSL_CERT='{chain}' with SSL_KEY='{chain}' cannot be used: "),
        ({"SSL_CERT": "{text}"}, "SSL_CERT='{text}' with SSL_KEY='{key}' cannot be used: "),
        ({"SSL_CERT": "{folder}"}, "SSL_CERT='{folder}' cannot be read: Is a directory"),
        ({"SECURE": "maybe"}, "SECURE='maybe' is wrong: it takes true or false"),
    ],
)  # fmt: skip
def test_wrong_settings_end_with_one_line(
    authority: Authority, tmp_path: Path, changed: dict[str, str], line: str
) -> None:
    files = {
        "chain": authority.chain,
        "key": authority.key,
        "other": tmp_path / "other.key",
        "locked": encrypted(authority.key, tmp_path / "locked.key"),
        "text": tmp_path / "text.crt",
        "folder": tmp_path,
    }
    files["other"].write_bytes(authority.issue()[1])
    files["text"].write_text("hello")
    environ = {**authority.environ, **{name: value.format(**files) for name, value in changed.items()}}
    with Role("base", environ, actor=ACTOR, wait=False) as role:
        assert role.ended() == 2, role.text()
    assert role.errors[0].startswith(line.format(**files))
    assert len(role.errors) == 1


async def test_a_renewal_under_load_loses_no_request(tmp_path: Path) -> None:
    """One client keeps its connection, one makes a new one for each request; the certificate changes five times."""
    authority = Authority(tmp_path).renew()
    with secure_role(authority, CLUSTER_SIZE="2") as role:
        over = False
        kept = fresh = 0

        async def keeper() -> None:
            nonlocal kept
            async with httpx.AsyncClient(base_url=role.url, verify=role.trust, timeout=20) as client:
                while not over:
                    assert (await client.post("/accounts/1", json=deposit(1))).status_code == 200
                    kept += 1

        async def newcomer() -> None:
            nonlocal fresh
            while not over:
                async with httpx.AsyncClient(base_url=role.url, verify=role.trust, timeout=20) as client:
                    assert (await client.post("/accounts/1", json=deposit(1))).status_code == 200
                    fresh += 1

        def shown_by_all() -> bool:
            return all(served(role) == authority.shown for _ in range(20))

        def complained(times: int) -> bool:
            return all(len([line for line in complaints() if line["pid"] == pid]) >= times for pid in workers)

        def complaints() -> list[dict[str, Any]]:
            return role.logs("the renewed certificate cannot be used")

        workers = [worker.pid for worker in role.workers()]
        async with asyncio.TaskGroup() as group:
            group.create_task(keeper())
            group.create_task(newcomer())
            for _ in range(5):
                authority.renew()
                await asyncio.to_thread(wait_until, shown_by_all, 30)
            over = True
        assert kept > 20
        assert fresh > 20
        # Half of a pair, and then what is no pair at all: the one before stays, and a line says so.
        chain, key = authority.issue()
        authority.chain.write_bytes(chain)
        await asyncio.to_thread(wait_until, lambda: complained(1))
        assert await asyncio.to_thread(shown_by_all)
        authority.key.write_bytes(key)
        authority.shown = first(chain)
        await asyncio.to_thread(wait_until, shown_by_all, 30)
        before = len(complaints())
        authority.key.unlink()
        await asyncio.to_thread(wait_until, lambda: len(complaints()) >= before + 2)
        assert await asyncio.to_thread(shown_by_all)
        authority.renew()
        await asyncio.to_thread(wait_until, shown_by_all, 30)
        assert role.complaints() == complaints()


async def test_a_signal_under_load_drains_over_tls(authority: Authority) -> None:
    with secure_role(authority, DRAIN_TIMEOUT="10000", CLUSTER_SIZE="2") as role:
        answers: list[int] = []
        unanswered: list[str] = []

        async def client() -> None:
            async with httpx.AsyncClient(base_url=role.url, verify=role.trust, timeout=20) as http:
                while True:
                    try:
                        answer = await http.post("/accounts/1", json={"type": "Slow", "payload": {"seconds": 0.05}})
                    except httpx.ConnectError:
                        return
                    except httpx.TransportError as error:
                        unanswered.append(repr(error))
                        return
                    answers.append(answer.status_code)
                    if answer.status_code != 200 or answer.headers.get("connection") == "close":
                        return

        load = asyncio.gather(*[client() for _ in range(16)])
        await asyncio.to_thread(wait_until, lambda: len(answers) >= 100, 30)
        role.terminate()
        assert await asyncio.to_thread(role.ended) == 0
        await load
        assert not unanswered
        assert set(answers) <= {200, 503}
        assert not role.complaints()
