"""What a team builds on the images: three lines, by ``docker build`` and by bake, and packages of its own."""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hiveio.dev.services import Services
from tests.images.container import HARDENED, Container, bake, call, inspected

ACTOR = """
import tiny
from hiveio import Actor, Query

class Greet(Query):
    path = "/greetings/{name}"
    name: str

class GreetingsActor(Actor):
    def perform(self, query: Greet) -> str:
        return f"{tiny.GREETING} {query.name}"
"""
PLAIN = ACTOR.replace("import tiny\n", "").replace("{tiny.GREETING}", "hello")
DOCKERFILE = """\
FROM hiveio/base
COPY actors /actor
ENV ACTOR_MODULE=greetings
"""
REQUIRING = """\
FROM hiveio/base
COPY requirements.txt wheels/* ./
RUN pip install -r requirements.txt
COPY actors /actor
ENV ACTOR_MODULE=greetings
"""
BAKE = """
target "greetings" {
  contexts = { "hiveio/base" = "target:base" }
  context  = "%s"
  tags     = ["hiveio-test/baked"]
}
"""


def wheel(folder: Path, requires: str) -> None:
    """A package as an index has it: ``tiny``, which requires another, and brings a module of that name too."""
    folder.mkdir()
    info = "tiny-1.0.dist-info"
    files = {
        "tiny.py": "GREETING = 'good day'\n",
        "msgspec/__init__.py": "raise ImportError('this took the place of the runtime\\'s package')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nRequires-Dist: {requires}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as file:
        for name, text in files.items():
            file.writestr(name, text)


@pytest.fixture
def project(images: str, tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors/greetings.py").write_text(PLAIN)
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    yield tmp_path
    call(images, "rmi", "--force", "hiveio-test/built", "hiveio-test/baked", check=False)


def greet(docker: str, image: str) -> Any:
    with Container(docker, image) as running:
        assert not running.complaints()
        return httpx.get(f"{running.url}/greetings/ada").json()


def test_docker_build_makes_the_images_that_bake_makes(images: str) -> None:
    names = ["hiveio-test/base", "hiveio-test/producer"]
    # The layers are there, unless a build from nothing is replacing them at this moment.
    cert = os.environ.get("PIP_CERT")
    secret = ["--secret", f"id=PIP_CERT,src={cert}"] if cert else []
    try:
        call(images, "build", *secret, "--file", "images/base/Dockerfile", "--tag", names[0], ".", within_s=250)
        call(images, "build", "--build-arg", f"BASE={names[0]}", "--tag", names[1], "images/producer", within_s=150)
        built, baked = (inspected(images, name) for name in (names[1], "hiveio/producer"))
        assert built["RootFS"]["Layers"][:-1] == baked["RootFS"]["Layers"][:-1]
        for what in ("User", "Env", "Entrypoint", "WorkingDir", "Healthcheck"):
            assert built["Config"][what] == baked["Config"][what]
    finally:
        call(images, "rmi", "--force", *names, check=False)


def test_three_lines_with_docker_build(images: str, project: Path) -> None:
    call(images, "build", "--tag", "hiveio-test/built", str(project), within_s=150)
    assert greet(images, "hiveio-test/built") == "hello ada"


def test_three_lines_with_bake(images: str, project: Path) -> None:
    (project / "docker-bake.hcl").write_text(BAKE % project)
    folder = f"--allow=fs.read={project}"
    bake("--file=docker-bake.hcl", f"--file={project}/docker-bake.hcl", folder, "greetings")
    assert greet(images, "hiveio-test/baked") == "hello ada"


def test_requirements_of_its_own_in_one_line(images: str, project: Path) -> None:
    wheel(project / "wheels", "msgspec")
    (project / "requirements.txt").write_text("--no-index\n./tiny-1.0-py3-none-any.whl\n")
    (project / "Dockerfile").write_text(REQUIRING)
    (project / "actors/greetings.py").write_text(ACTOR)
    call(images, "build", "--tag", "hiveio-test/built", str(project), within_s=150)
    assert greet(images, "hiveio-test/built") == "good day ada"
    show = "import importlib.metadata, msgspec, tiny; print(msgspec.__file__, tiny.__file__)"
    inside = ("run", "--rm", "--entrypoint")
    runtime, own = call(images, *inside, "python", "hiveio-test/built", "-c", show).split()
    assert runtime.startswith("/usr/local/")
    assert own.startswith("/packages/")
    before, after = (
        call(images, *inside, "pip", image, "list", "--format=freeze").splitlines()
        for image in ("hiveio/base", "hiveio-test/built")
    )
    assert sorted({*before, "tiny==1.0"}) == sorted(after), "nothing else has changed"


def test_what_needs_another_version_of_the_runtimes_is_refused(images: str, project: Path) -> None:
    wheel(project / "wheels", "redis<6")
    (project / "requirements.txt").write_text("--no-index\n./tiny-1.0-py3-none-any.whl\n")
    (project / "Dockerfile").write_text(REQUIRING)
    with pytest.raises(AssertionError, match=r"redis<6"):
        call(images, "build", "--tag", "hiveio-test/built", str(project), within_s=150)


def test_what_hiveio_new_writes_is_built_and_runs(
    images: str, role: str, settings: dict[str, str], tmp_path: Path
) -> None:
    user = f"{os.getuid()}:{os.getgid()}"
    inside = ("--rm", "--user", user, "--volume", f"{tmp_path}:/out", "--entrypoint", "hiveio")
    call(images, "run", *inside, "hiveio/base", "new", "order-lines", "--role", role, "--into", "/out")
    (dockerfile,) = (tmp_path / "order-lines").glob("*.Dockerfile")
    try:
        call(images, "build", "--tag", "hiveio-test/new", "--file", str(dockerfile), str(dockerfile.parent))
        del settings["ACTOR_MODULE"]  # it is in the image
        with Container(images, "hiveio-test/new", settings, options=(*HARDENED, "--volume", "/data")) as running:
            assert not running.complaints()
            assert httpx.get(f"{running.url}/openapi.json").status_code == 200
    finally:
        call(images, "rmi", "--force", "hiveio-test/new", check=False)


REACH = """
import json
import os
import redis
from confluent_kafka.admin import AdminClient
found = AdminClient({"bootstrap.servers": os.environ["EVENT_STORE_BROKERS"]}).list_topics(timeout=20).brokers
print(*(f"{broker.host}:{broker.port}" for broker in found.values()))
redis.Redis.from_url(os.environ["CACHE_URL"]).ping()
"""


def test_a_container_with_a_network_of_its_own_reaches_the_services_for_development(images: str) -> None:
    """By the address of Docker's bridge, as `make services HOST=172.17.0.1` says."""
    (bridge,) = json.loads(call(images, "network", "inspect", "bridge"))
    with Services(host=bridge["IPAM"]["Config"][0]["Gateway"]) as services:
        assert services.outside is not None
        environ = [word for line in str(services.outside).splitlines() for word in ("--env", line)]
        done = call(images, "run", "--rm", *environ, "--entrypoint", "python", "hiveio/stream-processor", "-c", REACH)
        assert done.strip() == services.outside.brokers
