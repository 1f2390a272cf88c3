"""Behind a real nginx that forbids POST: nothing that it lets through may do what it does not."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.integration.test_base import ACTOR, deposit
from tests.integration.test_hostile import statuses
from tests.process import Role
from tests.proxies import nginx
from tests.services import free_port

HTTP = """
    upstream service { server 127.0.0.1:%(service)d; keepalive 1; }
    server {
        listen 127.0.0.1:%(port)d;
        location / {
            if ($request_method = POST) { return 403; }
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering %(buffering)s;
        }
    }
"""
BODY = json.dumps(deposit(666666)).encode()
SMUGGLED = b"POST /accounts/1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def base() -> Iterator[Role]:
    with Role("base", actor=ACTOR) as role:
        yield role
    assert role.process.returncode == 0, role.text()
    assert not role.complaints()


@pytest.fixture(scope="module", params=["on", "off"])
def proxy(request: pytest.FixtureRequest, base: Role, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that keeps one connection to the service; with its buffering of requests on and off."""
    port = free_port()
    about = {"service": base.port, "port": port, "buffering": request.param}
    with nginx(tmp_path_factory.mktemp("nginx"), port, HTTP % about):
        yield port


@pytest.mark.parametrize("method", ["HEAD", "GET", "OPTIONS", "DELETE", "PURGE"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_carries_no_request_past_a_proxy(base: Role, proxy: int, method: str, framing: str) -> None:
    url = f"http://127.0.0.1:{proxy}/accounts"
    body = SMUGGLED if framing == "length" else iter([SMUGGLED])
    expected = {"HEAD": 200, "GET": 200, "OPTIONS": 204}.get(method, 405)
    with httpx.Client(timeout=20) as client:
        assert client.post(f"{url}/1", json=deposit(1)).status_code == 403
        for number in range(3):
            assert client.request(method, f"{url}/1", content=body).status_code == expected
            # Each answer is to its own request, also on the proxy's connection.
            assert client.get(f"{url}/{number}").json() == {"id": str(number)}
            body = SMUGGLED if framing == "length" else iter([SMUGGLED])
    assert not base.logs("deposit")


def test_what_nginx_passes_on_is_taken(base: Role, proxy: int) -> None:
    """Its way of writing a request is none of those that are refused."""
    sent = [
        b"GET http://a/accounts/1 HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET /accounts/%20%23%3F HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET  /accounts/1 HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET /accounts/1 HTTP/1.0\r\n\r\n",
    ]
    for request in sent:
        with socket.create_connection(("127.0.0.1", proxy), timeout=20) as connection:
            connection.sendall(request)
            assert statuses(connection.recv(65_536)) == [200], request
