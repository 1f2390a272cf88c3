"""Who may see the console: whoever reaches it on loopback, or has its token. No other site may act for a browser."""

import hmac
import ipaddress
from urllib.parse import parse_qs, quote

from hiveio.types import App, Message, Receive, Scope, Send

COOKIE = "hiveio-console"
HEADERS = [
    (b"content-security-policy", b"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
     b"img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]  # fmt: skip


class Guard:
    """ASGI middleware. Without a token, only requests whose Host is loopback are served: so a page of another site,
    whose name leads to this machine, reads nothing (DNS rebinding). With one, a request needs it: as
    ``Authorization: Bearer``, in the cookie, or once as ``?token=``, which sets the cookie. A POST has to come from a
    page of the console."""

    def __init__(self, app: App, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(scope, headers):
            return await _answer(send_with_headers, *refusal)
        return await self._app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        host = headers.get(b"host", "")
        if not self._token:
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if not is_loopback(name.removeprefix("[").removesuffix("]")):
                return 421, "The console is served on loopback only: open it as http://localhost.", []
        else:
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
            if given and self._is_token(given):
                cookie = f"{COOKIE}={given}; Path=/; HttpOnly; SameSite=Strict"
                return 303, "", [(b"location", _here(scope["path"])), (b"set-cookie", cookie.encode())]
            bearer = headers.get(b"authorization", "").removeprefix("Bearer ")
            if not (self._is_token(bearer) or self._is_token(_cookie(headers.get(b"cookie", "")))):
                text = "The console needs its token: open it with ?token=… once, as it was printed at its start."
                return 401, text, [(b"www-authenticate", b'Bearer realm="hiveio console"')]
        own = (f"http://{host}", f"https://{host}") if host else ()
        if scope["method"] not in ("GET", "HEAD") and headers.get(b"origin", "") not in own:
            return 403, "This request does not come from a page of the console.", []
        return None

    def _is_token(self, given: str) -> bool:
        return bool(given) and hmac.compare_digest(given.encode(), self._token.encode())


def is_loopback(host: str) -> bool:
    """Whether it is localhost or an address of loopback. No other name is: whoever owns it says where it leads."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _here(path: str) -> bytes:
    """The path as the target of a redirect, which does not lead to another host."""
    return quote("/" + path.lstrip("/")).encode()


def _cookie(text: str) -> str:
    """The token in the cookies of a host. Those of other services on its other ports are among them, in any form."""
    pairs = (pair.strip().partition("=") for pair in text.split(";"))
    return next((value for name, _, value in pairs if name == COOKIE), "")


async def _answer(send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]]) -> None:
    common = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text.encode())).encode())]
    await send({"type": "http.response.start", "status": status, "headers": common + headers})
    await send({"type": "http.response.body", "body": text.encode()})
