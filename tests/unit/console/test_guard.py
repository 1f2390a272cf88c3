"""Who may see the console, and from where it may be changed."""

from typing import Any

import pytest

from hiveio.console.guard import COOKIE, Guard

TOKEN = "a-token-of-the-test"


async def answer(
    token: str, path: str = "/", query: str = "", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "localhost:3030"} | headers
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }
    await Guard(page, token)(scope, None, send)  # type: ignore[arg-type]
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, sent[1]["body"]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:3030",
        "127.0.0.1:3030",
        "127.0.0.2:3030",
        "127.9.9.9",
        "[::1]:3030",
        "[::1]",
        "LOCALHOST",
    ],
)
async def test_on_loopback_it_is_open(host: str) -> None:
    status, headers, body = await answer("", host=host)
    assert (status, body) == (200, b"page")
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; script-src 'self'")
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:3030", "localhost.evil.example", "", "127.0.0.1.evil", "10.0.0.7"]
)
async def test_a_name_that_leads_to_this_machine_is_refused(host: str) -> None:
    status, headers, body = await answer("", host=host)
    assert status == 421
    assert b"page" not in body
    assert "content-security-policy" in headers


async def test_with_a_token_nobody_else_sees_it() -> None:
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": TOKEN[:-1]},
        {"cookie": f"{COOKIE}=wrong"},
    ]
    for headers in wrong:
        status, found, _ = await answer(TOKEN, host="10.0.0.7:3030", **headers)
        assert (status, found["www-authenticate"]) == (401, 'Bearer realm="hiveio console"')
    assert (await answer(TOKEN, query="token=wrong"))[0] == 401
    assert (await answer(TOKEN, authorization=f"Bearer {TOKEN}"))[0] == 200
    assert (await answer(TOKEN, host="10.0.0.7:3030", cookie=f"a=b; {COOKIE}={TOKEN}"))[0] == 200


@pytest.mark.parametrize("other", ['seen={"a": 1}', "flag", "a[b]=1", "name=\xfc", "=", "a b=c"])
async def test_cookies_of_other_services_on_the_host_do_not_hide_the_token(other: str) -> None:
    for cookies in (f"{other}; {COOKIE}={TOKEN}", f"{COOKIE}={TOKEN}; {other}"):
        assert (await answer(TOKEN, host="10.0.0.7:3030", cookie=cookies))[0] == 200
    assert (await answer(TOKEN, host="10.0.0.7:3030", cookie=other))[0] == 401


async def test_the_token_of_the_url_becomes_a_cookie_and_leaves_the_url() -> None:
    status, headers, _ = await answer(TOKEN, path="/log/0", query=f"token={TOKEN}")
    assert (status, headers["location"]) == (303, "/log/0")
    assert headers["set-cookie"] == f"{COOKIE}={TOKEN}; Path=/; HttpOnly; SameSite=Strict"


@pytest.mark.parametrize("path", ["//evil.example/", "/\r\nset-cookie: a=b", "///evil.example"])
async def test_the_redirect_stays_here(path: str) -> None:
    _, headers, _ = await answer(TOKEN, path=path, query=f"token={TOKEN}")
    assert not headers["location"].startswith("//")
    assert "\r" not in headers["location"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3030", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://localhost", 403),
        ("http://[", 403),
        ("ftp://localhost:3030", 403),
        ("https://localhost:3030", 200),
    ],
)
async def test_a_change_comes_from_a_page_of_the_console(origin: str, status: int) -> None:
    assert (await answer("", method="POST", origin=origin))[0] == status
