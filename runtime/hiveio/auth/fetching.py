"""Fetches a document over HTTP on a thread of its own, within bounds of time and size, and without redirects.

A redirect of the issuer's keys is an answer that nobody has configured. HTTPS_PROXY and NO_PROXY hold, as they do for
the export of telemetry.
"""

import asyncio
import threading
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from hiveio.abortable import Abortable

FETCH_S = 5.0  # for the whole of it
LIMIT = 1 << 20  # bytes
_HEADERS = {"Accept": "application/jwk-set+json, application/json", "User-Agent": "hiveio"}


class FetchFailed(Exception):
    """There is no document; the text says why."""


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None  # then the redirect is an error like others


class Fetcher:
    """Fetches one document after the other from a URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._thread: threading.Thread | None = None

    async def fetch(self) -> bytes:
        """The document. Raises FetchFailed, within FETCH_S."""
        if self._thread is not None and self._thread.is_alive():
            raise FetchFailed("the request before has not ended yet")  # it resolves a name, and cannot be cut off there
        loop, attempt = asyncio.get_running_loop(), _Attempt(self._url)
        done: asyncio.Future[bytes] = loop.create_future()

        def deliver(body: bytes, error: Exception | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(body)
            else:
                done.set_exception(error)

        def run() -> None:
            body, error = b"", None
            try:
                body = attempt.get()
            except Exception as raised:
                error = raised if isinstance(raised, FetchFailed) else FetchFailed(_reason(raised))
            try:
                loop.call_soon_threadsafe(deliver, body, error)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

        self._thread = threading.Thread(target=run, name="issuer's keys", daemon=True)
        self._thread.start()
        try:
            async with asyncio.timeout(FETCH_S):
                return await done
        except TimeoutError:
            raise FetchFailed(f"no answer within {FETCH_S:g} s") from None
        finally:
            attempt.abort()


class _Attempt(Abortable):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def get(self) -> bytes:
        opener = build_opener(_Http(self), _Https(self), _NoRedirects)
        with opener.open(Request(self._url, headers=_HEADERS), timeout=FETCH_S) as response:
            if response.status != 200:
                raise FetchFailed(f"the answer is {response.status}")
            body: bytes = response.read(LIMIT + 1)
            if len(body) > LIMIT:
                raise FetchFailed(f"the document has more than {LIMIT} bytes")
            if response.length:  # http.client raises no error where a bounded read ends early
                raise FetchFailed(f"the answer ended {response.length} bytes too early")
        return body


class _Http(HTTPHandler):
    def __init__(self, attempt: _Attempt) -> None:
        super().__init__()
        self._attempt = attempt

    def http_open(self, request: Request) -> HTTPResponse:
        attempt = self._attempt

        class Connection(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                attempt.opened(self.sock)

        return self.do_open(Connection, request)


class _Https(HTTPSHandler):
    def __init__(self, attempt: _Attempt) -> None:
        super().__init__()
        self._attempt = attempt

    def https_open(self, request: Request) -> HTTPResponse:
        attempt = self._attempt

        class Connection(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                attempt.opened(self.sock)

        return self.do_open(Connection, request)


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the answer is {error.code}"
    if isinstance(error, URLError):
        return str(error.reason)
    if isinstance(error, TimeoutError):
        return f"no answer within {FETCH_S:g} s"
    if isinstance(error, HTTPException | OSError | ValueError):
        return f"{type(error).__name__}: {error}"
    return f"it failed: {type(error).__name__}: {error}"
