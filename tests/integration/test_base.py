# ruff: noqa: E501
"""hiveio/base as a real process: its entrypoint, its workers, its socket."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.process import ROOT, Role, wait_until
from tests.unit.test_config import SERVICES, links

ACTOR = """
import asyncio, logging, time
from hiveio import Actor, Command, Event, Query, Rejected

class Deposit(Command):
    amount: int
class Slow(Command):
    seconds: float
class Deposited(Event):
    amount: int
class Balance(Query):
    id: str

class Account(Actor):
    path = "/accounts/{id}"

    async def perform(self, message: Deposit | Slow | Balance) -> Deposited | dict[str, str] | None:
        match message:
            case Deposit(amount=13):
                raise Rejected("unlucky")
            case Deposit(amount=500):
                raise KeyError("a secret")
            case Deposit(amount=amount):
                logging.getLogger("bank").info("deposit", extra={"amount": amount})
                return Deposited(amount)
            case Slow(seconds=seconds):
                logging.getLogger("bank").info("slow begins")
                await asyncio.sleep(seconds)
                return None
            case Balance(id="stubborn"):
                while True:
                    try:
                        await asyncio.sleep(5)
                    except asyncio.CancelledError:
                        pass
            case Balance(id=id):
                return {"id": id}

    def stop(self) -> None:
        logging.getLogger("bank").info("actor stopped")
"""
LIMIT = 200_000
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def base() -> Iterator[Role]:
    with Role("base", {"BODY_LIMIT": str(LIMIT), "CLUSTER_SIZE": "2"}, actor=ACTOR) as role:
        yield role
    assert role.process.returncode == 0, role.text()
    assert not role.errors


def deposit(amount: int) -> dict[str, Any]:
    return {"type": "Deposit", "payload": {"amount": amount}}


def works(role: Role) -> bool:
    return httpx.post(f"{role.url}/accounts/1", json=deposit(1)).status_code == 200


@pytest.mark.parametrize(
    ("status", "method", "path", "options"),
    [
        (400, "POST", "/accounts/1", {"content": b"hello", "headers": JSON}),
        (400, "POST", "/accounts/1", {"content": b'{"type":"\xff\xfe"}', "headers": JSON}),
        (400, "POST", "/accounts/1", {"content": b'{"meta":' + b"[" * 100_000, "headers": JSON}),
        (400, "POST", "/accounts/1", {"content": b"[" * 100_000, "headers": JSON}),
        (422, "POST", "/accounts/1", {"json": {"type": "Nope"}}),
        (422, "POST", "/accounts/1", {"json": {"type": "Deposit", "payload": {}}}),
        (422, "POST", "/accounts/1", {"json": {"type": "Deposit", "payload": {"amount": 1, "x": 2}}}),
        (422, "POST", "/accounts/1", {"json": deposit(13)}),
        (413, "POST", "/accounts/1", {"content": b"x" * (LIMIT + 1), "headers": JSON}),
        (413, "POST", "/accounts/1", {"content": (b"x" * 50_000 for _ in range(100)), "headers": JSON}),
        (413, "POST", "/accounts/1", {"content": b"x" * 10_000_000, "headers": JSON}),
        (415, "POST", "/accounts/1", {"content": b"a=1", "headers": {"content-type": "application/x-www-form-urlencoded"}}),
        (400, "POST", "/accounts/%zz", {"json": deposit(1)}),
        (400, "POST", "/accounts/%ff", {"json": deposit(1)}),
        (400, "POST", "/accounts/" + "x" * 256, {"json": deposit(1)}),
        (404, "GET", "/nowhere", {}),
        (405, "DELETE", "/accounts/1", {}),
        (405, "POST", "/readyz", {}),
        (500, "POST", "/accounts/1", {"json": deposit(500)}),
    ],
)  # fmt: skip
def test_bad_input_has_its_problem_and_the_service_stays_well(
    base: Role, status: int, method: str, path: str, options: dict[str, Any]
) -> None:
    answer = httpx.request(method, base.url + path, timeout=20, **options)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert "secret" not in answer.text
    assert works(base)


def test_what_is_logged_before_an_answer_is_there_with_it(base: Role) -> None:
    for amount in range(1_000, 1_200):
        assert httpx.post(f"{base.url}/accounts/1", json=deposit(amount)).status_code == 200
        assert base.logs("deposit")[-1]["amount"] == amount


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nBad Header\r\n\r\n",
        b"HELLO\r\n\r\n",
        b"POST /accounts/1 HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /accounts/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /accounts/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /accounts/1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_what_is_not_http_is_a_4xx(base: Role, request_bytes: bytes) -> None:
    assert base.port
    with socket.create_connection(("127.0.0.1", base.port), timeout=10) as connection:
        connection.sendall(request_bytes)
        assert re.match(rb"HTTP/1.1 4\d\d ", connection.recv(65536))
    assert works(base)


def test_a_client_that_waits_for_100_continue(base: Role) -> None:
    assert base.port
    body = json.dumps(deposit(1)).encode()
    with socket.create_connection(("127.0.0.1", base.port), timeout=10) as connection:
        head = f"POST /accounts/1 HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_answers(base: Role) -> None:
    with httpx.Client(base_url=base.url) as client:
        answer = client.post("/accounts/1", json={**deposit(5), "meta": {"a": 1}}, headers={"X-Request-Id": "test-1"})
        assert answer.json() == {"type": "Deposited", "payload": {"amount": 5}, "meta": {"a": 1}}
        assert answer.headers["x-request-id"] == "test-1"
        assert client.get("/accounts/a%2Fb").json() == {"id": "a/b"}
        assert client.head("/accounts/1").status_code == 200
        for path in ("/livez", "/readyz", "/ping", "/metrics"):
            assert client.get(path).status_code == 200
    (line,) = [line for line in base.logs("deposit") if line.get("request_id") == "test-1"]
    assert (line["amount"], line["logger"], line["level"]) == (5, "bank", "info")


def test_a_fault_is_logged_once_with_its_request(base: Role) -> None:
    httpx.post(f"{base.url}/accounts/1", json=deposit(500), headers={"X-Request-Id": "fault-1"})
    (line,) = [line for line in base.complaints() if line.get("request_id") == "fault-1"]
    assert "KeyError: 'a secret'" in line["traceback"]


def test_metrics_cover_all_workers(base: Role) -> None:
    for _ in range(40):
        assert works(base)
    expected = sum(1 for line in base.logs("deposit"))
    served = {line["pid"] for line in base.logs("deposit")}

    def counted() -> bool:
        texts = [httpx.get(f"{base.url}/metrics").text for _ in range(3)]
        found = [
            re.search(r'requests_total\{method="POST",route="/accounts/\{id\}",status="200"\} (\d+)', t) for t in texts
        ]
        return all(match and int(match[1]) >= expected for match in found)

    assert len(served) == 2
    wait_until(counted, what="the counts of both workers")


def test_openapi_is_served(base: Role) -> None:
    described = httpx.get(f"{base.url}/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert set(described["paths"]["/accounts/{id}"]) == {"post", "get"}
    for reference in re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', json.dumps(described)):
        assert reference in described["components"]["schemas"]


def test_the_fast_loop_and_the_fast_parser_are_there(base: Role) -> None:
    for worker in base.workers():
        mapped = {Path(part.path).name for part in worker.memory_maps()}
        assert any(name.startswith("loop.") for name in mapped), "uvloop"
        assert any(name.startswith("_protocol.") for name in mapped), "gunicorn_h1c"


@pytest.mark.parametrize(
    ("module", "source", "environ", "code", "line"),
    [
        ("", "", {}, 11, "ACTOR_MODULE is not set"),
        ("nowhere", "", {}, 12, "ACTOR_MODULE=nowhere: there is no module"),
        ("m", "1/0", {}, 13, "ACTOR_MODULE=m: the module raised ZeroDivisionError"),
        ("m", "x = 1", {}, 14, "ACTOR_MODULE=m: no class derived"),
        ("m", ACTOR.replace(": Deposit | Slow | Balance", ""), {}, 15, "Account.perform: the parameter message has no annotation"),
        ("m", ACTOR.replace('path = "/accounts/{id}"', ""), {}, 15, "Account takes Deposit, Slow over HTTP and has no path"),
        ("m", ACTOR + "class Other(Account): pass", {}, 16, "Other and Account both take POST /accounts/{id}"),
        ("m", ACTOR.replace("/accounts/{id}", "/livez"), {}, 17, "Account: the path /livez is reserved for the service itself"),
        ("m", ACTOR + "class Other(Account): name = 'Account'", {}, 18, "Two actors are named Account"),
        ("m", ACTOR + "    single_process = True\n", {}, 2, "CLUSTER_SIZE=2 is wrong: Account keeps its state in one"),
        ("m", ACTOR, {"PORT": "x"}, 2, "PORT='x' is wrong"),
        ("m", ACTOR + "    def start(self): 1/0\n", {}, 1, "Account.start raised ZeroDivisionError: division"),
    ],
)  # fmt: skip
def test_what_cannot_start_ends_with_one_line_and_its_code(
    tmp_path: Path, module: str, source: str, environ: dict[str, str], code: int, line: str
) -> None:
    (tmp_path / "m.py").write_text(source)
    settings = {"CLUSTER_SIZE": "2", **environ}
    with Role("base", settings, actor_path=tmp_path, module=module, wait=False) as role:
        assert role.ended() == code, role.text()
    assert role.errors[0].startswith(line)
    assert len(role.errors) == 1 or code == 13


def test_an_actor_whose_state_is_one_process_has_one_worker() -> None:
    with Role("base", {"CLUSTER_SIZE": ""}, actor=ACTOR + "    single_process = True\n") as role:
        assert [line["workers"] for line in role.logs("listening")] == [1]
    with Role("base", {"CLUSTER_SIZE": ""}, actor=ACTOR) as role:
        assert [line["workers"] for line in role.logs("listening")] == [len(os.sched_getaffinity(0))], "else by the CPU"


def test_more_workers_than_its_state_allows_are_refused_wherever_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "size").write_text("2\n")
    environ = {"CLUSTER_SIZE": "", "CLUSTER_SIZE_FILE": str(tmp_path / "size")}
    with Role("base", environ, actor=ACTOR + "    single_process = True\n", wait=False) as role:
        assert role.ended() == 2, role.text()
    assert role.errors[0].startswith("CLUSTER_SIZE=2 is wrong: Account keeps its state in one process")


def test_a_port_in_use_is_one_line(base: Role) -> None:
    with Role("base", {"PORT": str(base.port)}, actor=ACTOR, wait=False) as role:
        assert role.ended() == 2
    assert role.errors == [f"PORT={base.port} cannot be bound: Address already in use"]


async def _load(url: str, clients: int, answers: list[tuple[int, int]], unanswered: list[str]) -> None:
    """Clients that post until an answer says that the service ends; every request that was sent wants an answer.

    ``answers`` gets the number of the client and the status.
    """

    async def one(number: int, client: httpx.AsyncClient) -> None:
        while True:
            try:
                answer = await client.post(url, json={"type": "Slow", "payload": {"seconds": 0.05}})
            except httpx.ConnectError:
                return
            except httpx.TransportError as error:
                unanswered.append(repr(error))
                return
            answers.append((number, answer.status_code))
            if answer.status_code != 200 or answer.headers.get("connection") == "close":
                return

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(limits=limits, timeout=20) as client:
        await asyncio.gather(*[one(number, client) for number in range(clients)])


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_a_signal_under_load_drains(sent: signal.Signals) -> None:
    environ = {"DRAIN_TIMEOUT": "10000", "CLUSTER_SIZE": "2"}
    with Role("base", environ, actor=ACTOR) as role:
        answers: list[tuple[int, int]] = []
        unanswered: list[str] = []
        load = asyncio.create_task(_load(f"{role.url}/accounts/1", 32, answers, unanswered))
        # A client that is not served yet cannot learn that it should go.
        busy = lambda: len(answers) >= 200 and len({number for number, _ in answers}) == 32  # noqa: E731
        await asyncio.to_thread(wait_until, busy, 60)
        long = asyncio.create_task(asyncio.to_thread(_slow, role.url, 3.0, "long"))
        begun = lambda: any(line["request_id"] == "long" for line in role.logs("slow begins"))  # noqa: E731
        await asyncio.to_thread(wait_until, begun, 20)
        role.terminate(sent)
        await asyncio.to_thread(wait_until, lambda: role.logs("draining"))
        role.terminate(sent)  # a second one changes nothing
        began = time.monotonic()
        code = await asyncio.to_thread(role.ended)
        await load
        assert code == 0, role.text()
        assert time.monotonic() - began < 10
        assert not unanswered
        assert {status for _, status in answers} <= {200, 503}
        assert (await long).status_code == 200
        assert len(role.logs("actor stopped")) == 2
        assert not role.complaints()
        assert not role.errors


def _slow(url: str, seconds: float, request_id: str = "slow") -> httpx.Response:
    message = {"type": "Slow", "payload": {"seconds": seconds}}
    return httpx.post(f"{url}/accounts/1", json=message, headers={"X-Request-Id": request_id}, timeout=30)


STOPS_ITSELF = """
import os, signal, threading

def stops(record):
    if record.getMessage() == "draining":  # a thread stops it while the loop waits: then timers come first
        threading.Timer(0.07, os.kill, (os.getpid(), signal.SIGSTOP)).start()
    return True

logging.getLogger("hiveio").addFilter(stops)
"""


def test_what_came_while_a_draining_service_had_no_cpu_is_answered() -> None:
    """On an open connection, and on a new one: timers that are due then must not close them under the requests.

    The worker stops itself: a signal from here might come when it no longer waits for new requests.
    """
    with Role("base", actor=ACTOR + STOPS_ITSELF) as role:
        (worker,) = role.workers()
        request = b"GET /accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n"
        with socket.create_connection(("127.0.0.1", role.port)) as known:
            known.settimeout(10)
            known.sendall(request)
            assert known.recv(4096).startswith(b"HTTP/1.1 200 ")
            role.terminate()
            wait_until(lambda: worker.status() == psutil.STATUS_STOPPED, what="the worker has stopped itself")
            known.sendall(request)
            with socket.create_connection(("127.0.0.1", role.port)) as new:
                new.settimeout(10)
                new.sendall(request)
                time.sleep(1.6)  # longer than it waits for clients that pause, or never do
                role.resume()
                for connection in (known, new):
                    answer = connection.recv(4096)
                    assert answer.startswith(b"HTTP/1.1 503 "), answer
                    assert b"connection: close" in answer
        assert role.ended() == 0
        assert not role.complaints()


def test_a_start_that_catches_its_cancellation_does_not_keep_a_process_from_ending() -> None:
    actor = ACTOR + (
        "    async def start(self):\n"
        "        logging.getLogger('bank').info('start begins')\n"
        "        while True:\n"
        "            try:\n"
        "                await asyncio.sleep(5)\n"
        "            except asyncio.CancelledError:\n"
        "                pass\n"
    )
    with Role("base", {"DRAIN_TIMEOUT": "5000"}, actor=actor, wait=False) as role:
        wait_until(lambda: role.logs("start begins"))
        assert role.stop() == 0
        assert role.logs("actor stopped")
        assert [line["message"] for line in role.complaints()] == [
            "the start did not end within 3 s after its cancellation"
        ]
        assert not role.errors


async def test_a_request_that_outlives_the_drain_does_not_keep_components_from_stopping() -> None:
    with Role("base", {"DRAIN_TIMEOUT": "5000"}, actor=ACTOR) as role:
        request = asyncio.create_task(asyncio.to_thread(_slow, role.url, 8.0))
        await asyncio.to_thread(wait_until, lambda: role.logs("slow begins"))
        began = time.monotonic()
        assert await asyncio.to_thread(role.stop) == 0
        assert time.monotonic() - began < 7
        assert role.logs("actor stopped")
        assert [line["message"] for line in role.complaints()] == [
            "requests were still running when their share of DRAIN_TIMEOUT ended"
        ]
        with pytest.raises(httpx.TransportError):
            await request


def test_an_idle_service_stops_at_once_without_a_warning() -> None:
    with Role("base", actor=ACTOR) as role, httpx.Client(base_url=role.url) as client:
        client.get("/ping")  # and keeps the connection
        began = time.monotonic()
        assert role.stop() == 0
        assert time.monotonic() - began < 5  # of 20, the default of DRAIN_TIMEOUT
        assert not role.complaints()
        assert not role.errors
        assert role.logs("listening")
        assert role.logs()[-1]["message"] == "stopped"


def test_a_slow_actor_is_504() -> None:
    environ = {"REQUEST_TIMEOUT": "1500", "HTTP_VERSION": "2", "DRAIN_TIMEOUT": "2000"}
    with Role("base", environ, actor=ACTOR) as role, ThreadPoolExecutor() as pool:

        def query(http2: bool) -> httpx.Response:
            with httpx.Client(http1=not http2, http2=http2, timeout=20) as client:
                return client.get(f"{role.url}/accounts/stubborn")

        stubborn = [pool.submit(query, http2) for http2 in (False, True)]
        assert _slow(role.url, 5).status_code == 504
        assert works(role)
        # An actor that catches every cancellation goes on; its client is answered all the same.
        for answer in [future.result() for future in stubborn]:
            assert (answer.status_code, answer.json()["title"]) == (504, "Outcome Unknown")
        assert answer.http_version == "HTTP/2"
        assert len([line for line in role.complaints() if "caught its cancellation" in line["message"]]) == 2
        assert works(role)
        began = time.monotonic()
        assert role.stop() == 0
        assert time.monotonic() - began < 4


def test_a_worker_that_dies_is_replaced_and_the_counts_stay() -> None:
    with Role("base", actor=ACTOR) as role:
        assert works(role)
        (worker,) = role.workers()
        wait_until(lambda: 'status="200"} 1.0' in httpx.get(f"{role.url}/metrics").text)
        worker.kill()
        wait_until(lambda: len(role.logs("worker serves")) == 2)
        assert works(role)
        pattern = r'method="POST",route="/accounts/\{id\}",status="200"\} 2.0'
        wait_until(lambda: re.search(pattern, httpx.get(f"{role.url}/metrics").text))


HESITANT = """\
import os
from hiveio import Actor, Query

class Ask(Query):
    pass

class Hesitant(Actor):
    path = "/ask"

    def start(self) -> None:
        try:
            os.mkdir("FOLDER/first")
            self.waits = False
        except FileExistsError:
            self.waits = True

    def ready(self) -> bool:
        return not self.waits or os.path.exists("FOLDER/go")

    def perform(self, query: Ask) -> None: ...
"""


def test_it_is_ready_when_all_its_workers_are(tmp_path: Path) -> None:
    with Role("base", {"CLUSTER_SIZE": "2"}, actor=HESITANT.replace("FOLDER", str(tmp_path)), wait=False) as role:
        wait_until(lambda: len(role.logs("worker serves")) == 2)
        own, other = "not ready", "1 of the other 1 are not ready; the log says why"
        answers: set[tuple[str, ...]] = set()  # the reasons of each

        def from_both() -> bool:
            """Which of the two takes a connection is up to the kernel."""
            answer = httpx.get(f"{role.url}/readyz?verbose")
            assert answer.status_code == 503
            answers.add(tuple(check["reason"] for check in answer.json()["checks"] if check["reason"]))
            return {(own,), (other,)} <= answers

        wait_until(from_both, 30, "an answer of each worker")
        assert {reason for reasons in answers for reason in reasons} == {own, other}
        assert httpx.get(f"{role.url}/livez").status_code == 200
        (tmp_path / "go").touch()
        role.ready()
        for worker in role.workers():
            worker.kill()
        wait_until(lambda: len(role.logs("worker serves")) == 4, what="two new workers")
        role.ready()


def test_other_signals_change_nothing() -> None:
    with Role("base", {"CLUSTER_SIZE": "2"}, actor=ACTOR) as role:
        workers = role.workers()
        for sent in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
            role.terminate(sent)
        workers[0].kill()  # what comes after them was seen to
        wait_until(lambda: len(role.logs("worker serves")) == 3)
        role.ready()
        assert works(role)
        assert workers[1] in role.workers()
        assert len(role.workers()) == 2


def test_workers_end_when_their_master_was_killed() -> None:
    with Role("base", {"CLUSTER_SIZE": "2"}, actor=ACTOR) as role:
        workers = role.workers()
        role.process.kill()
        _, left = psutil.wait_procs(workers, timeout=10)
        assert not left


def test_nothing_is_left_behind() -> None:
    with Role("base", actor=ACTOR) as role:
        assert works(role)
        maps = psutil.Process(role.workers()[0].pid).memory_maps()
        shared = {Path(part.path).parent for part in maps if "hiveio-metrics-" in part.path}
        assert len(shared) == 1
    assert not shared.pop().exists()


def test_it_reaps_children_as_pid_1() -> None:
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no right to make a process namespace here")
    role = Role("base", actor=ACTOR)
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, str(ROOT / "images/base/entrypoint.py")]
    with subprocess.Popen(command, env=role.environ, stdout=subprocess.PIPE, text=True) as outer:
        try:
            assert outer.stdout
            port = next(filter(None, (json.loads(line).get("port") for line in outer.stdout)))
            assert httpx.post(f"http://127.0.0.1:{port}/accounts/1", json=deposit(1), timeout=20).status_code == 200
            (inner,) = psutil.Process(outer.pid).children()
            inner.terminate()
            assert outer.wait(10) == 0
            assert json.loads(outer.stdout.read().splitlines()[-1])["message"] == "stopped"
        finally:
            outer.kill()  # and with it, by --kill-child, everything inside


def test_it_starts_among_services_of_kubernetes_with_any_name_and_without_looking_at_kafka() -> None:
    environ = {name: value for service in SERVICES for name, value in links(service, {"web": 80, "file": 81}).items()}
    environ |= {"KAFKA_SASL_PASSWORD_FILE": "/nowhere", "KAFKA_NO_SUCH_PROPERTY": "x"}
    with Role("base", environ, actor=ACTOR) as role:
        answer = httpx.post(role.url + "/accounts/1", json={"type": "Deposit", "payload": {"amount": 1}})
        assert answer.status_code == 200
        assert role.complaints() == []
