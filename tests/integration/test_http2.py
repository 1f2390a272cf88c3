"""HTTP/2 from outside: curl, httpx, and a client of our own that sends what those never would."""

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.events
import h2.settings
import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

from tests.conftest import require
from tests.integration.test_base import ACTOR, JSON, LIMIT, deposit
from tests.integration.test_tls import Authority, secure_role
from tests.process import Role, wait_until

ENDING = ACTOR.replace(
    "sleep(seconds)",
    """sleep(seconds)
                logging.getLogger("bank").info("slow ends", extra={"seconds": seconds})""",
)


class State(H2Connection):
    """h2 takes GOAWAY for the end; here those under way go on."""

    goaway: list[int]

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        self.goaway.append(frame.error_code)
        return [], []


class Client:
    """One HTTP/2 connection, by hand."""

    def __init__(self, port: int | None, window: int = 65_535) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port or 0), timeout=20)
        self.state = State(H2Configuration(header_encoding=None))
        self.goaway: list[int] = []
        self.state.goaway = self.goaway
        self.state.local_settings = h2.settings.Settings(
            initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.status: dict[int, int] = {}
        self.body: dict[int, bytes] = {}
        self.done: set[int] = set()
        self.refused: dict[int, int] = {}
        self.closed = False
        self.state.initiate_connection()
        self.flush()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *about: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.state.data_to_send())

    def send(self, *frames: Frame) -> None:
        self.socket.sendall(b"".join(frame.serialize() for frame in frames))

    def request(
        self, path: str, body: bytes | None = None, *more: tuple[str, str], end: bool = True, flush: bool = True
    ) -> int:
        number = self.state.get_next_available_stream_id()
        method = "GET" if body is None else "POST"
        head = [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path), *more]
        if body is not None:
            head.append(("content-type", "application/json"))
        self.state.send_headers(number, head, end_stream=end and not body)
        if body:
            self.state.send_data(number, body, end_stream=end)
        if flush:
            self.flush()
        return number

    def read(self, until: Callable[[], bool], within_s: float = 20) -> None:
        ends = time.monotonic() + within_s
        while not (until() or self.closed):
            assert time.monotonic() < ends, "it did not come"
            self.socket.settimeout(max(0.01, ends - time.monotonic()))
            try:
                data = self.socket.recv(65_536)
            except TimeoutError:
                continue
            except ConnectionError:
                data = b""
            if not data:
                self.closed = True
                return
            for event in self.state.receive_data(data):
                self.take(event)
            try:
                self.flush()
            except OSError:
                pass

    def read_to_end(self, within_s: float = 20) -> None:
        """Whatever comes: it may be about streams that ``state`` knows nothing of."""
        self.socket.settimeout(within_s)
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionError:
            pass
        self.closed = True

    def take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.status[event.stream_id] = int(next(value for name, value in event.headers if name == b":status"))
        elif isinstance(event, h2.events.DataReceived):
            self.body[event.stream_id] = self.body.get(event.stream_id, b"") + event.data
            self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.done.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.refused[event.stream_id] = event.error_code

    def answers(self, *numbers: int) -> list[int]:
        self.read(lambda: set(numbers) <= self.done)
        return [self.status[number] for number in numbers]


def message(amount: int) -> bytes:
    return json.dumps(deposit(amount)).encode()


def slow(seconds: float) -> bytes:
    return json.dumps({"type": "Slow", "payload": {"seconds": seconds}}).encode()


@pytest.fixture(scope="module")
def base() -> Iterator[Role]:
    with Role("base", {"HTTP_VERSION": "2", "BODY_LIMIT": str(LIMIT)}, actor=ENDING) as role:
        yield role
    assert role.process.returncode == 0, role.text()
    assert not role.errors
    assert not role.complaints()


@pytest.fixture(autouse=True)
def well(base: Role) -> Iterator[None]:
    """Whatever a test does, the service answers afterwards, the same process still."""
    before = [worker.pid for worker in base.workers()]
    yield
    with Client(base.port) as client:
        assert client.answers(client.request("/accounts/1", message(1))) == [200]
    assert httpx.get(f"{base.url}/accounts/1").status_code == 200
    assert [worker.pid for worker in base.workers()] == before


def curl(*words: str) -> list[str]:
    command = shutil.which("curl")
    if not command or "HTTP2" not in subprocess.run([command, "-V"], capture_output=True, text=True, check=True).stdout:
        require("curl", "no curl with HTTP/2 in PATH")
    form = "%{http_version} %{http_code}"
    shown = subprocess.run(
        [command, "-sS", "-m", "20", "-o", "/dev/null", "-w", form, *words], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.split()


def test_curl_without_tls(base: Role) -> None:
    post = ("-d", message(1).decode(), "-H", "content-type: application/json", f"{base.url}/accounts/1")
    assert curl("--http2-prior-knowledge", *post) == ["2", "200"]
    assert curl("--http1.1", *post) == ["1.1", "200"]
    # It asks for an upgrade, which RFC 9113 has given up: it gets its answer over HTTP/1.1.
    assert curl("--http2", *post) == ["1.1", "200"]
    assert curl("--http2-prior-knowledge", "-I", f"{base.url}/accounts/1") == ["2", "200"]


def test_over_tls_the_client_chooses(tmp_path: Path) -> None:
    authority = Authority(tmp_path).renew()
    authority.ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with secure_role(authority, HTTP_VERSION="2") as role:
        trust = ("--cacert", str(tmp_path / "ca.pem"), f"{role.url}/ping")
        assert curl("--http2", *trust) == ["2", "200"]
        assert curl("--http1.1", *trust) == ["1.1", "200"]
        for http2, version in ((True, "HTTP/2"), (False, "HTTP/1.1")):
            with httpx.Client(http2=http2, base_url=role.url, verify=authority.trust) as client:
                answer = client.post("/accounts/1", json=deposit(5))
                assert (answer.status_code, answer.http_version) == (200, version)
                assert answer.json()["payload"] == {"amount": 5}


async def test_requests_of_one_connection_run_side_by_side(base: Role) -> None:
    async with httpx.AsyncClient(http1=False, http2=True, base_url=base.url, timeout=30) as client:
        began = time.monotonic()
        calls = [client.post("/accounts/1", content=slow(1.0), headers=JSON) for _ in range(60)]
        answers = await asyncio.gather(*calls)
        assert {(answer.status_code, answer.http_version) for answer in answers} == {(200, "HTTP/2")}
        assert time.monotonic() - began < 30  # one after the other: 60


def test_problems_are_the_same_as_over_http1(base: Role) -> None:
    with Client(base.port) as client:
        cases = [
            (400, "/accounts/1", b"hello"),
            (400, "/accounts/%zz", message(1)),
            (400, "/accounts/%ff", message(1)),
            (400, "/accounts/" + "x" * 256, message(1)),
            (404, "/nowhere", None),
            (400, "nowhere", None),
            (400, "*", None),
            (400, "/accounts/1#x", None),
            (400, "/accounts/1 2", None),
            (400, "/accounts/\x7f", None),
            (400, "http://a/accounts/1", None),
            (405, "/readyz", b"{}"),
            (400, "/accounts/1", b"[" * 16_000),
            (422, "/accounts/1", message(13)),
        ]  # fmt: skip
        for status, path, body in cases:
            number = client.request(path, body)
            assert client.answers(number) == [status], path
            assert json.loads(client.body[number])["status"] == status


def test_a_body_in_parts_and_one_that_is_too_large(base: Role) -> None:
    with httpx.Client(http1=False, http2=True, base_url=base.url, timeout=20) as client:
        long = b" " * (LIMIT - 100) + message(1)
        assert client.post("/accounts/1", content=long, headers=JSON).status_code == 200
        assert client.post("/accounts/1", content=b" " * 10 + long, headers=JSON).status_code == 200
        for _ in range(3):  # what is refused takes nothing from the window of the connection
            answer = client.post("/accounts/1", content=b" " * 3_000_000, headers=JSON)
            assert answer.status_code == 413
        assert client.get("/ping").status_code == 200


def test_an_answer_waits_for_the_window_of_its_client(base: Role) -> None:
    with Client(base.port, window=100) as client:
        number = client.request("/openapi.json")
        client.answers(number)
        assert json.loads(client.body[number])["openapi"].startswith("3.1")
        assert len(client.body[number]) > 1_000


def test_a_request_with_trailers_is_one_request(base: Role) -> None:
    with Client(base.port) as client:
        number = client.request("/accounts/1", message(77), ("trailer", "x-sum"), end=False)
        client.state.send_headers(number, [("x-sum", "1")], end_stream=True)
        client.flush()
        assert client.answers(number) == [200]
    assert len([line for line in base.logs("deposit") if line["amount"] == 77]) == 1


def test_what_runs_is_carried_out_though_its_client_gives_up(base: Role) -> None:
    with Client(base.port) as client:
        before = len(base.logs("slow begins"))
        number = client.request("/accounts/1", slow(0.55))
        wait_until(lambda: len(base.logs("slow begins")) > before)
        client.state.reset_stream(number)
        client.flush()
        assert client.answers(client.request("/accounts/1", message(1))) == [200]
        wait_until(lambda: [line for line in base.logs("slow ends") if line["seconds"] == 0.55])


def test_what_has_arrived_is_carried_out_though_its_client_gives_up_at_once(base: Role) -> None:
    with Client(base.port) as client:
        number = client.state.get_next_available_stream_id()
        client.state.send_headers(number, head(("content-type", "application/json"), method="POST"))
        client.state.send_data(number, message(78), end_stream=True)
        client.state.reset_stream(number)
        client.flush()  # in one packet
        assert client.answers(client.request("/accounts/1", message(1))) == [200]
    wait_until(lambda: [line for line in base.logs("deposit") if line["amount"] == 78])


def test_a_client_that_says_goodbye_gets_what_it_asked_for(base: Role) -> None:
    with Client(base.port) as client:
        number = client.request("/accounts/1", slow(0.3))
        client.send(GoAwayFrame(0, last_stream_id=0, error_code=0))
        assert client.answers(number) == [200]


def test_streams_beyond_the_limit_are_refused_one_by_one(base: Role) -> None:
    """Sent before our settings arrive: refused without effect, so the client may send them again; the others go on."""
    with Client(base.port) as client:
        numbers = [client.request("/accounts/1", slow(1.0), flush=False) for _ in range(120)]
        client.flush()  # at once, so that none has ended when the last one comes
        client.read(lambda: len(client.done) + len(client.refused) == 120)
        assert len(client.done) == 100
        assert set(client.refused.values()) == {ErrorCodes.REFUSED_STREAM}
        assert {client.status[number] for number in numbers[:100]} == {200}
        assert not client.goaway


def test_a_body_that_does_not_come_is_408() -> None:
    environ = {"HTTP_VERSION": "2", "REQUEST_TIMEOUT": "500"}
    with Role("base", environ, actor=ENDING) as role, Client(role.port) as client:
        number = client.request("/accounts/1", b'{"type":', end=False)
        assert client.answers(number) == [408]
        assert client.answers(client.request("/ping")) == [200]


def test_a_connection_that_stands_still_is_cut_off() -> None:
    environ = {"HTTP_VERSION": "2", "REQUEST_TIMEOUT": "1000"}
    with Role("base", environ, actor=ENDING) as role:
        beginnings = [b"", b"PRI * HTTP/2", b"GET /ping HT", b"GET /ping HTTP/1.1\r\nHost: a\r\n", Client.__name__]
        open_ones: list[socket.socket] = []
        for beginning in beginnings:
            if isinstance(beginning, bytes):
                open_ones.append(socket.create_connection(("127.0.0.1", role.port or 0), timeout=20))
                open_ones[-1].sendall(beginning)
            else:
                half = HeadersFrame(1, data=b"\x82")  # and no CONTINUATION
                open_ones.append(Client(role.port).socket)
                open_ones[-1].sendall(half.serialize())
        for connection in open_ones:
            connection.settimeout(20)
            while connection.recv(65_536):
                pass
            connection.close()


FLOODS: dict[str, Callable[[Client], list[Frame]]] = {
    "ping": lambda client: [PingFrame(0, opaque_data=b"12345678")] * 20_000,
    "settings": lambda client: [SettingsFrame(0, settings={4: 65_535 + n}) for n in range(20_000)],
    "reset": lambda client: [
        frame
        for number in range(1, 20_001, 2)
        for frame in (
            HeadersFrame(number, data=b"\x82\x86\x84\x01\x01a", flags=["END_HEADERS", "END_STREAM"]),
            RstStreamFrame(number, error_code=8),
        )
    ],
    "continuation": lambda client: [
        HeadersFrame(1, data=b"\x82"),
        *[ContinuationFrame(1, data=b"")] * 20_000,
    ],
    "empty data": lambda client: [
        HeadersFrame(1, data=b"\x83\x86\x84\x01\x01a", flags=["END_HEADERS"]),
        *[DataFrame(1, data=b"")] * 20_000,
    ],
    "headers": lambda client: [
        HeadersFrame(1, data=b"\x82\x86\x84\x01\x01a"),
        *[ContinuationFrame(1, data=b"\x00\x01x\x7f\xff\x7f" + b"y" * 16_000) for _ in range(70)],
    ],
    "bomb": lambda client: [
        HeadersFrame(1, data=b"\x82\x86\x84\x40\x01x\x7f\x81\x1e" + b"y" * 4_000 + b"\xbe" * 12_000),
        ContinuationFrame(1, data=b"\xbe" * 16_000, flags=["END_HEADERS"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_its_connection_and_no_other(base: Role, name: str) -> None:
    with Client(base.port) as friend, Client(base.port) as client:
        waiting = friend.request("/accounts/1", slow(0.5))
        flood = b"".join(frame.serialize() for frame in FLOODS[name](client))

        def pour() -> None:
            try:
                client.socket.sendall(flood)
            except OSError:
                pass

        pouring = threading.Thread(target=pour)
        pouring.start()
        client.read_to_end()
        pouring.join(20)
        assert not pouring.is_alive()
        assert friend.answers(waiting) == [200]


@pytest.mark.parametrize(
    "frames",
    [
        b"\xff" * 200,
        b"\x00\x00\x00\x05\x00\x00\x00\x00\x01",  # a push from a client
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # a window that grows by nothing
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\xff\xff",  # and one that overflows
        b"\x00\x00\x01\x00\x00\x00\x00\x00\x01x",  # data on a stream that was never opened
        b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\xff",  # no HPACK
        b"\x00\x00\x00\x01\x05\x00\x00\x00\x02",  # an even stream
    ],
    ids=range(7),
)
def test_frames_that_break_the_protocol(base: Role, frames: bytes) -> None:
    with Client(base.port) as client:
        client.socket.sendall(frames)
        client.socket.shutdown(socket.SHUT_WR)
        client.read(lambda: False)
        assert client.closed
        assert not {status for status in client.status.values() if status >= 500}


def head(*changes: tuple[str, str], method: str = "GET", without: str = "") -> list[tuple[str, str]]:
    """The headers of a request; a changed header comes where the one that it replaces was, a new one at the end."""
    fields = {":method": method, ":scheme": "http", ":authority": "a", ":path": "/accounts/1"}
    fields.pop(without, None)
    replaced = {name: value for name, value in changes if name in fields}
    return [*(fields | replaced).items(), *(change for change in changes if change[0] not in fields)]


MALFORMED = {
    "no method": head(without=":method"),
    "no scheme": head(without=":scheme"),
    "no path": head(without=":path"),
    "an empty path": head((":path", "")),
    "neither authority nor host": head(without=":authority"),
    "a host that differs": head(("host", "b")),
    "two hosts": head(("host", "a"), ("host", "a"), without=":authority"),
    "a method twice": [(":method", "GET"), *head()],
    "a path twice": [(":path", "/ping"), *head()],
    "an authority twice": [(":authority", "a"), *head()],
    "a pseudo header that is unknown": head((":cost", "1")),
    "a pseudo header of answers": head((":status", "200")),
    "a pseudo header after a field": [("x", "y"), *head()],
    "a protocol without CONNECT": head((":protocol", "websocket")),
    "CONNECT with a path": head(method="CONNECT"),
    "a name in capitals": head(("X-Y", "z")),
    "a name with a space": head(("x y", "z")),
    "a name with a colon": head(("x:y", "z")),
    "a name with a control byte": head(("x\x01", "z")),
    "no name": head(("", "z")),
    "a value with a null": head(("x", "y\0")),
    "a value with a line": head(("x", "y\r\nz: 1")),
    "a value that begins with a space": head(("x", " y")),
    "a value that ends with a tab": head(("x", "y\t")),
    "connection": head(("connection", "close")),
    "keep-alive": head(("keep-alive", "timeout=5")),
    "proxy-connection": head(("proxy-connection", "keep-alive")),
    "transfer-encoding": head(("transfer-encoding", "chunked")),
    "upgrade": head(("upgrade", "h2c")),
    "te": head(("te", "gzip")),
    "te with a list": head(("te", "trailers, gzip")),
    "a length of a body that does not come": head(("content-length", "5"), method="POST"),
    "a length of a GET without a body": head(("content-length", "1")),
    "two lengths": head(("content-length", "0"), ("content-length", "1")),
    "a length that is none": head(("content-length", "+0")),
}  # fmt: skip


def careless(client: Client) -> Client:
    """Sends what it is given."""
    client.state.config.validate_outbound_headers = client.state.config.normalize_outbound_headers = False
    return client


def test_a_malformed_request_ends_its_stream_and_no_other(base: Role) -> None:
    """A proxy has the requests of many clients on one connection."""
    with careless(Client(base.port)) as client:
        waiting = client.request("/accounts/1", slow(0.5))
        for name, headers in MALFORMED.items():
            number = client.state.get_next_available_stream_id()
            client.state.send_headers(number, headers, end_stream=True)
            client.flush()
            client.read(lambda number=number: number in client.refused or number in client.done)  # type: ignore[misc]
            assert client.refused.get(number) == ErrorCodes.PROTOCOL_ERROR, name
            assert number not in client.status, name
            assert client.answers(client.request("/ping")) == [200], name
        assert client.answers(waiting) == [200]
        assert not client.goaway


BODIES: dict[str, tuple[list[tuple[str, str]], list[bytes], list[tuple[str, str]] | None]] = {
    "longer than its length": ([("content-length", "3")], [message(31), b""], None),
    "shorter than its length": ([("content-length", "99")], [message(31), b""], None),
    "shorter, and trailers": ([("content-length", "99")], [message(31)], [("x", "y")]),
    "none, and trailers": ([("content-length", "9")], [], [("x", "y")]),
    "a pseudo header in a trailer": ([], [message(31)], [(":path", "/")]),
    "a trailer in capitals": ([], [message(31)], [("X", "y")]),
    "a connection in a trailer": ([], [message(31)], [("connection", "close")]),
    "a length in a trailer": ([], [message(31)], [("content-length", "46")]),
    "a key's header in a trailer": ([], [message(31)], [("authorization", "x")]),
}  # fmt: skip


def test_a_malformed_body_is_executed_by_nobody(base: Role) -> None:
    with careless(Client(base.port)) as client:
        waiting = client.request("/accounts/1", slow(0.5))
        for name, (fields, parts, trailers) in BODIES.items():
            number = client.state.get_next_available_stream_id()
            client.state.send_headers(number, head(*fields, ("content-type", "application/json"), method="POST"))
            for at, part in enumerate(parts, 1):
                client.state.send_data(number, part, end_stream=trailers is None and at == len(parts))
            if trailers is not None:
                client.state.send_headers(number, trailers, end_stream=True)
            client.flush()
            client.read(lambda number=number: number in client.refused or number in client.done)  # type: ignore[misc]
            assert client.refused.get(number) == ErrorCodes.PROTOCOL_ERROR, name
            assert number not in client.status, name
            assert client.answers(client.request("/ping")) == [200], name
        # What was broken off takes nothing from the window of the connection: more than it holds.
        for _ in range(200):
            number = client.state.get_next_available_stream_id()
            client.state.send_headers(number, head(("content-length", "1"), method="POST"))
            client.state.send_data(number, b" " * 16_000)
            client.flush()
            client.read(lambda number=number: number in client.refused)  # type: ignore[misc]
        assert client.answers(client.request("/accounts/1", b" " * 15_000 + message(1)), waiting) == [200, 200]
        assert not client.goaway
    assert not [line for line in base.logs("deposit") if line["amount"] == 31]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, head(("host", "a"))),
        (200, head(("host", "a"), without=":authority")),
        (200, head(("te", "trailers"))),
        (200, head((":authority", "[::1]:3000"))),
        (200, head(("content-length", "0"))),
        (200, head(method="HEAD")),
        (200, head(("cookie", "a=b"), ("cookie", "c=d"))),
        (204, head((":path", "*"), method="OPTIONS")),
        (204, head(method="OPTIONS")),
        (400, head((":authority", "u@a"))),
        (400, head((":authority", "a/b"))),
        (400, head((":path", "*"))),
        (400, head((":path", "accounts/1"), method="HEAD")),
        (400, head((":path", "*/accounts"), method="OPTIONS")),
        (400, head(method="G T")),
        (400, head(method="")),
        (405, head(method="PURGE")),
        (501, [(":method", "CONNECT"), (":authority", "a:80")]),
        (501, [*head(method="CONNECT"), (":protocol", "websocket")]),
    ],
)  # fmt: skip
def test_each_target_and_method_has_its_answer_and_the_connection_goes_on(
    base: Role, status: int, headers: list[tuple[str, str]]
) -> None:
    with careless(Client(base.port)) as client:
        number = client.state.get_next_available_stream_id()
        client.state.send_headers(number, headers, end_stream=True)
        client.flush()
        assert client.answers(number) == [status]
        assert client.answers(client.request("/ping")) == [200]
        silent = status == 204 or (":method", "HEAD") in headers
        assert (number in client.body) != silent


@pytest.mark.parametrize("pace", ["at once", "late"])
@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, head(method="HEAD")),
        (200, head()),
        (204, head(method="OPTIONS")),
        (405, head(method="DELETE")),
        (404, head((":path", "/nowhere"), method="POST")),
        (400, head((":path", "nowhere"), method="POST")),
        (415, head(("content-type", "text/plain"), method="POST")),
    ],
)
def test_a_body_that_nobody_takes_is_dropped(
    base: Role, status: int, headers: list[tuple[str, str]], pace: str
) -> None:
    with careless(Client(base.port)) as client:
        number = client.state.get_next_available_stream_id()
        client.state.send_headers(number, headers)
        if pace == "late":
            client.flush()
            client.read(lambda: number in client.status)
        client.state.send_data(number, b"x" * 10_000, end_stream=True)
        client.flush()
        assert client.answers(number) == [status]
        assert client.answers(client.request("/ping")) == [200]
        assert not client.refused


def test_a_client_that_gives_up_at_the_limit_takes_nobody_along(base: Role) -> None:
    """Its request is refused, and gone already: both came in one packet, with the next one."""
    with Client(base.port) as client:
        numbers = [client.request("/accounts/1", slow(1.0)) for _ in range(100)]
        for _ in range(3):
            number = client.state.get_next_available_stream_id()
            client.state.send_headers(number, head(), end_stream=True)
            client.state.reset_stream(number)
        client.flush()
        assert client.answers(*numbers) == [200] * 100
        assert not client.goaway


def test_a_drain_loses_no_stream() -> None:
    """GOAWAY first, then the answers to all that was on its way, then the end."""
    environ = {"HTTP_VERSION": "2", "DRAIN_TIMEOUT": "20000"}
    with Role("base", environ, actor=ENDING) as role:
        clients = [Client(role.port) for _ in range(4)]
        numbers = {client: [client.request("/accounts/1", slow(4.0)) for _ in range(50)] for client in clients}
        wait_until(lambda: len(role.logs("slow begins")) == 200)
        role.terminate()
        for client in clients:
            client.read(lambda client=client: bool(client.goaway))  # type: ignore[misc]
            numbers[client].append(client.request("/accounts/1", message(1)))
        for client in clients:
            assert client.answers(*numbers[client]) == [200] * 50 + [503]
            client.read(lambda: False)
            assert client.goaway == [ErrorCodes.NO_ERROR] * 2
            client.socket.close()
        assert role.ended() == 0
        assert not role.complaints()


def test_a_drain_waits_for_a_client_that_fetches_its_answer_slowly() -> None:
    size = 4_000_000  # bytes, more than the system keeps for a client
    actor = ACTOR.replace('return {"id": id}', f'return {{"text": "x" * {size}}}')
    environ = {"HTTP_VERSION": "2", "DRAIN_TIMEOUT": "10000"}
    with Role("base", environ, actor=actor) as role, Client(role.port, window=2 * size) as client:
        client.state.increment_flow_control_window(2 * size)
        number = client.request("/accounts/1")
        client.read(lambda: number in client.status)
        role.terminate()
        time.sleep(2)
        assert client.answers(number) == [200]
        assert len(client.body[number]) > size
        client.socket.close()
        assert role.ended() == 0
        assert not role.complaints()
