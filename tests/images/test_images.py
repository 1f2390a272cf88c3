"""What holds for each of the four images: how it is made, how it starts, fails, works and ends."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

import hiveio
from tests.images.container import HARDENED, ROLES, ROOT, Container, bake, call, inspected
from tests.integration.topics import make_topic, read_all
from tests.issuer import Issuer, Key
from tests.process import wait_until
from tests.services import Kafka, Redis, free_port

UID = 10001


def send(role: str, url: str, number: int) -> tuple[str, str, Any]:
    """A request that the role's actor of the bank takes: method, URL, body."""
    return {
        "base": ("GET", f"{url}/quotes/{number + 1}", None),
        "producer": ("POST", f"{url}/visits", {"page": f"/{number}"}),
        "consumer": ("GET", f"{url}/statements/nobody", None),
        "stream-processor": ("POST", f"{url}/accounts/{number}", {"type": "Open", "payload": {"owner": "Ada"}}),
    }[role]


# The consumer has nobody's statement: its actor refuses, which is an answer.
ANSWER = {"base": 200, "producer": 200, "consumer": 422, "stream-processor": 200}


def works(role: str, url: str, number: int = 0) -> bool:
    method, address, body = send(role, url, number)
    answer = httpx.request(method, address, json=body, timeout=20)
    assert answer.status_code == ANSWER[role], f"{answer.status_code} {answer.text}"
    return True


def test_the_checks_of_docker_build_find_nothing(images: str) -> None:
    bake("validate")
    call(images, "compose", "config", "--quiet")


def test_both_platforms_are_released_with_sbom_and_provenance(images: str) -> None:
    printed = call(images, "buildx", "bake", "--print", environ={"RELEASE": "true"})
    targets = json.loads(printed)["target"]
    assert set(targets) == {*ROLES}
    for target in targets.values():
        assert target["platforms"] == ["linux/amd64", "linux/arm64"]
        assert sorted(attestation["type"] for attestation in target["attest"]) == ["provenance", "sbom"]


def test_how_it_is_made(images: str, role: str) -> None:
    made = inspected(images, f"hiveio/{role}:{hiveio.__version__}")
    assert made["Id"] == inspected(images, f"hiveio/{role}:latest")["Id"]
    config = made["Config"]
    assert config["User"] == f"{UID}:{UID}", "numeric, or Kubernetes cannot tell that it is not root"
    assert config["Entrypoint"] == ["python", "-P", "/hiveio/entrypoint.py"]
    assert not config.get("Cmd")
    assert config["Healthcheck"]["Test"] == ["CMD", "hiveio", "health"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["title"] == f"hiveio/{role}"
    assert labels["version"] == hiveio.__version__
    assert labels["description"]
    assert labels["licenses"] == "Apache-2.0"
    base = inspected(images, "hiveio/base")["RootFS"]["Layers"]
    assert made["RootFS"]["Layers"][: len(base)] == base, "its parent is base"


@pytest.mark.parametrize(("size", "user"), [("1", f"{UID}:{UID}"), ("2", "4711:0")])
def test_it_serves_from_a_mounted_actor_and_ends(
    container: Callable[..., Container], role: str, size: str, user: str
) -> None:
    with container(CLUSTER_SIZE=size, options=[*HARDENED, "--user", user]) as running:
        assert works(role, running.url)
        assert [line["workers"] for line in running.logs("listening")] == [int(size)]
        uids = [user.partition(":")[0]] * (1 + int(size))
        wait_until(lambda: [u for u, command in running.processes() if "entrypoint" in command] == uids, 60, str(uids))
        running.healthy()
        license_text = call(running.docker, "exec", running.container, "cat", "/licenses/LICENSE")
        assert license_text == (ROOT / "LICENSE").read_text()
        assert running.stop(within_s=60) == 0
        assert not running.complaints()
        assert not running.errors
        assert [line["message"] for line in running.logs()][-1] == "stopped"
        assert call(running.docker, "diff", running.container) == "", "nothing is written to the file system"


ACTOR = """\
from hiveio import Actor, Command, Event, Model, Query
class State(Model): ...
class Happened(Event): ...
class M({kind}): ...
class N({kind}): ...
class A(Actor):
    path = "{path}"
    def perform(self, message{annotation}) -> None: ...
    def replay(self, state: State | None, event: Happened) -> State: ...
class B(Actor):
    path = "/b/{{id}}"
    def perform(self, message: N{more}) -> None: ...
    def replay(self, state: State | None, event: Happened) -> State: ...
"""
# exit code; the module, or path and annotation in ACTOR; the line
FAILURES: list[tuple[int, str | tuple[str, str], str]] = [
    (11, "", "ACTOR_MODULE is not set: name the module of your actor, as in ACTOR_MODULE=accounts"),
    (12, "", "ACTOR_MODULE=m12: there is no module 'm12' in /actor"),
    (13, "import nowhere", "ACTOR_MODULE=m13: the module raised ModuleNotFoundError: No module named 'nowhere'"),
    (14, "x = 1", "ACTOR_MODULE=m14: no class derived from hiveio.Actor is defined in that module"),
    (15, ("/a/{id}", ""), "A.perform: the parameter message has no annotation"),
    (16, ("/b/{id}", ": M"), "B and A both take "),
    (17, ("/livez", ": M"), "A: the path /livez is reserved for the service itself; choose another path"),
    (18, ('/a/{id}"\n    name = "B', ": M"), "Two actors are named B"),
]


def test_an_actor_that_cannot_be_loaded_ends_it_with_one_line(images: str, tmp_path: Path, role: str) -> None:
    # all at once: most of it is the start of Python
    tmp_path.chmod(0o755)
    kind, more = ("Query", " | Happened") if role == "consumer" else ("Command", "")
    for code, source, _ in FAILURES:
        if code != 12:
            if not isinstance(source, str):
                source = ACTOR.format(kind=kind, more=more, path=source[0], annotation=source[1])
            (tmp_path / f"m{code}.py").write_text(source)
    services = {"EVENT_STORE_BROKERS": "127.0.0.1:1", "EVENT_STORE_TOPIC": "t", "EVENT_STORE_GROUP_ID": "g"}
    settings = {"CACHE_URL": "redis://127.0.0.1:1", **services}
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                Container(
                    images,
                    f"hiveio/{role}",
                    settings | {"ACTOR_MODULE": "" if code == 11 else f"m{code}"},
                    actor=tmp_path,
                    wait=False,
                )
            )
            for code, _, _ in FAILURES
        ]
        for ended, (code, _, line) in zip(started, FAILURES, strict=True):
            assert ended.ended(120) == code, ended.text()
            assert ended.errors[0].startswith(line)
            assert len(ended.errors) == 1 or code == 13, "the traceback of the module itself, and no other"
            assert not ended.complaints()


@pytest.mark.parametrize("role", ["base"], indirect=True)
def test_the_cpu_quota_is_the_number_of_workers(images: str, container: Callable[..., Container], role: str) -> None:
    cores = len(os.sched_getaffinity(0))
    for quota, workers in (("0.5", 1), ("1", 1), ("2", min(2, cores))):
        with container(CLUSTER_SIZE="", options=[*HARDENED, "--cpus", quota], wait=False) as running:
            running.ready()
            assert [line["workers"] for line in running.logs("listening")] == [workers]


def test_sigkill_ends_it_and_a_new_one_goes_on(container: Callable[..., Container], role: str) -> None:
    with container() as running:
        assert works(role, running.url, 1)
        running.kill()
        assert running.process.returncode == 128 + signal.SIGKILL
    with container() as running:
        assert works(role, running.url, 2)


@pytest.fixture(scope="module")
def own_kafka(kafka: Kafka) -> Iterator[Kafka]:
    """A broker that a test may stop, and starts again."""
    with Kafka() as service:
        yield service


@pytest.mark.parametrize("role", ["producer", "consumer", "stream-processor"], indirect=True)
def test_without_kafka_it_is_alive_and_not_ready(
    container: Callable[..., Container], role: str, topic: str, own_kafka: Kafka
) -> None:
    own = own_kafka
    with container(EVENT_STORE_BROKERS=own.brokers, wait=False) as running:
        if role == "consumer":
            make_topic(own.brokers, topic)
        running.ready()
        running.healthy()
        own.stop()
        wait_until(lambda: httpx.get(running.url + "/readyz").status_code == 503, 60, "not ready")
        assert httpx.get(running.url + "/livez").status_code == 200
        assert health(running) == 0
        assert health(running, "--ready") == 1
        own.start()
        running.ready()
        wait_until(lambda: health(running, "--ready") == 0, 60, "ready by its health check too")
        assert works(role, running.url)


@pytest.mark.parametrize("role", ["stream-processor"], indirect=True)
def test_without_redis_it_is_alive_and_not_ready(container: Callable[..., Container], role: str, redis: Redis) -> None:
    with Redis() as own, container(CACHE_URL=own.url) as running:
        assert works(role, running.url, 1)
        own.stop()
        wait_until(lambda: httpx.get(running.url + "/readyz").status_code == 503, 60, "not ready")
        assert httpx.get(running.url + "/livez").status_code == 200
        own.restart(empty=True)
        running.rebuilt(1)
        assert works(role, running.url, 2)


@pytest.mark.parametrize("role", ["base"], indirect=True)
@pytest.mark.parametrize("version", ["1", "2"])
def test_it_is_healthy_behind_its_own_certificate(images: str, tmp_path: Path, role: str, version: str) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "tls.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    (tmp_path / "m.py").write_text(ACTOR.format(kind="Command", more="", path="/a/{id}", annotation=": M"))
    tmp_path.chmod(0o755)
    secure = {"SECURE": "true", "SSL_CERT": "/actor/tls.crt", "SSL_KEY": "/actor/tls.key", "HTTP_VERSION": version}
    running = Container(images, "hiveio/base", {"ACTOR_MODULE": "m", **secure}, actor=tmp_path)
    running.trust = ssl.create_default_context()
    authority.configure_trust(running.trust)
    with running:
        running.healthy()
        assert health(running, "--ready") == 0
        assert not running.complaints()


@pytest.mark.parametrize("role", ["stream-processor"], indirect=True)
def test_status_and_console_are_in_the_image_and_probes_may_have_a_port_of_their_own(
    container: Callable[..., Container], role: str
) -> None:
    own, port = free_port(), free_port()
    with container(ADMIN_PORT=str(own), wait=False) as running:
        wait_until(lambda: running.logs("worker serves"), 120, "serving")
        running.healthy()
        wait_until(lambda: health(running, "--ready") == 0, 60, "ready")
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{own}/readyz").status_code == 200, 60, "ready on its own port")
        assert httpx.get(running.url + "/readyz").status_code == 404
        assert works(role, running.url, 1)
        inside = [running.docker, "exec", running.container, "hiveio"]
        shown = wait_until(lambda: "ready" in (text := call(*inside, "status", check=False)) and text, 60, "its status")
        assert f":{own}" in shown
        console = subprocess.Popen([*inside, "console", "--port", str(port)], stderr=subprocess.PIPE, text=True)
        with console:
            assert console.stderr is not None
            assert f"http://localhost:{port}/" in console.stderr.readline()
            url = f"http://127.0.0.1:{port}"

            def served() -> bool:
                try:
                    return "ready" in httpx.get(url, timeout=30).text
                except httpx.TransportError:
                    return False

            wait_until(served, 60, "the console")
            assert httpx.get(f"{url}/console.js").status_code == 200

            def folded() -> bool:
                """By the actor of the image. The page shows how far it is where the log takes longer than a second."""
                states = httpx.get(f"{url}/aggregate?name=AccountActor/1", timeout=30).text
                return "&quot;owner&quot;: &quot;Ada&quot;" in states

            wait_until(folded, 60, "the states of the account")
            running.stop()  # and what was started in it


@pytest.mark.parametrize("role", ["base"], indirect=True)
def test_it_verifies_tokens_with_keys_that_it_fetches_over_https(images: str, tmp_path: Path, role: str) -> None:
    authority, key = trustme.CA(), Key("first")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "issuer.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    (tmp_path / "m.py").write_text(ACTOR.format(kind="Command", more="", path="/a", annotation=": M"))
    tmp_path.chmod(0o755)
    with Issuer(key, pem=tmp_path / "issuer.pem", authority=tmp_path / "authority.pem") as issuer:
        settings = {"ACTOR_MODULE": "m", "SSL_CERT_FILE": "/actor/authority.pem", **issuer.settings}
        with Container(images, "hiveio/base", {**settings, "PYTHONVERBOSE": "1"}, actor=tmp_path) as running:
            body = {"type": "M", "payload": {}}
            tokens = (None, "Bearer x", f"Bearer {Key('first').token()}", f"Bearer {key.token()}")
            answers = [
                httpx.post(f"{running.url}/a", json=body, headers={"authorization": each} if each else {}, timeout=20)
                for each in tokens
            ]
            assert [answer.status_code for answer in answers] == [401, 401, 401, 200]
            assert not running.complaints()
            # Without SSL_CERT_FILE it trusts the public authorities; and it has what the lock names.
            about = (
                "import ssl, importlib.metadata as m, os; del os.environ['SSL_CERT_FILE']\n"
                "print(len(ssl.create_default_context().get_ca_certs()) > 100)\n"
                "print(*(f'{name}=={m.version(name)}' for name in ('pyjwt', 'cryptography')))"
            )
            found = call(images, "exec", running.container, "python", "-c", about).split()
            assert found[0] == "True"
            locked = (ROOT / "runtime" / "requirements.lock").read_text("utf-8")
            assert all(f"{each} \\\n" in locked for each in found[1:]), found
            running.stop()
            compiled = [line for line in running.errors if line.startswith("# code object from") and ".pyc" not in line]
            assert [line for line in compiled if "/actor/" not in line] == []


def health(container: Container, *arguments: str) -> int:
    """The exit code of ``hiveio health`` inside."""
    command = [container.docker, "exec", container.container, "hiveio", "health", *arguments]
    try:
        call(*command)
    except AssertionError:
        return 1
    return 0


async def test_sigterm_under_load_loses_nothing_and_ends_within_its_bound(
    container: Callable[..., Container], role: str, kafka: Kafka, topic: str
) -> None:
    answered: dict[int, Any] = {}
    statuses: Counter[int] = Counter()
    numbers = iter(range(10**9))
    stopping = asyncio.Event()

    async def client(http: httpx.AsyncClient, url: str) -> None:
        while True:
            number = next(numbers)
            method, address, body = send(role, url, number)
            try:
                answer = await http.request(method, address, json=body)
            except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
                assert stopping.is_set(), "cut off while it served"
                return
            statuses[answer.status_code] += 1
            if answer.status_code == ANSWER[role]:
                answered[number] = answer.json()

    running = await asyncio.to_thread(container(CLUSTER_SIZE="2", DRAIN_TIMEOUT="10000").__enter__)
    try:
        async with httpx.AsyncClient(timeout=30) as http, asyncio.TaskGroup() as clients:
            for _ in range(16):
                clients.create_task(client(http, running.url))
            while len(answered) < 200:
                await asyncio.sleep(0.01)
            stopping.set()
            assert await asyncio.to_thread(running.stop, 20) == 0
        assert set(statuses) <= {ANSWER[role], 503}, statuses
        assert not running.complaints()
        assert not running.errors
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)
    if role == "producer":
        pages = Counter(
            json.loads(record.value() or b"")["payload"]["page"] for record in read_all(kafka.brokers, topic)
        )
        assert {f"/{number}" for number in answered} <= pages.keys(), "answered and not there"
        assert max(pages.values()) == 1, "there twice"
    if role == "stream-processor":
        again = await asyncio.to_thread(container().__enter__)
        try:
            async with httpx.AsyncClient(timeout=30) as http:
                for number in answered:
                    account = await http.get(f"{again.url}/accounts/{number}")
                    assert (account.status_code, account.headers["etag"]) == (200, '"1"'), number
        finally:
            await asyncio.to_thread(again.__exit__, None, None, None)


@pytest.mark.parametrize("role", ["base"], indirect=True)
def test_orphans_are_reaped(images: str, tmp_path: Path, role: str) -> None:
    (tmp_path / "orphans.py").write_text(
        "import subprocess\n"
        "from hiveio import Actor, Command\n"
        "class Leave(Command): ...\n"
        "class Orphans(Actor):\n"
        "    path = '/orphans'\n"
        "    def perform(self, message: Leave) -> None:\n"
        "        subprocess.run(['sh', '-c', 'sleep 0.1 & sleep 0.2 &'], check=True)\n"
    )
    tmp_path.chmod(0o755)
    with Container(images, "hiveio/base", {"ACTOR_MODULE": "orphans"}, actor=tmp_path) as running:
        for _ in range(5):
            assert httpx.post(running.url + "/orphans", json={}).status_code == 200
        wait_until(lambda: all("entrypoint" in command for _, command in running.processes()), 30, "orphans gone")
        assert not running.complaints()


def test_all_that_it_imports_is_compiled(container: Callable[..., Container], role: str) -> None:
    # A module without bytecode would be compiled at every start, since nothing can be kept.
    with container(PYTHONVERBOSE="1", wait=False) as running:
        wait_until(lambda: any('"message":"worker serves"' in line for line in running.lines), 120, "serving")
        running.stop()
        compiled = [line for line in running.errors if line.startswith("# code object from") and ".pyc" not in line]
        # what the actor imports for itself stays its own: the statements' sqlite3
        assert [line for line in compiled if "/actor/" not in line and "/sqlite3/" not in line] == []
        assert any("/actor/" in line for line in compiled)


@pytest.mark.parametrize("role", ["base"], indirect=True)
def test_bytecode_holds_whichever_time_stamps_its_source_gets(images: str, role: str) -> None:
    # PEP 552: the second word of the header is 1 for "by hash, unchecked"; 0, "by time stamp", would be thrown away.
    unchecked = (
        "import pathlib, sys\n"
        "for path in pathlib.Path('/usr/local/lib').rglob('*.pyc'):\n"
        "    if path.read_bytes()[4:8] != b'\\1\\0\\0\\0': print(path)\n"
    )
    assert call(images, "run", "--rm", "--entrypoint", "python", f"hiveio/{role}", "-c", unchecked) == ""
