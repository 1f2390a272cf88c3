"""An image as a running container, for tests: a Role whose process is ``docker run``.

with Container(docker, "hiveio/base", {"ACTOR_MODULE": "hello"}, actor=folder) as container:
    httpx.get(container.url + "/hello/ada")
    assert container.stop() == 0

It shares the network of this machine, where the tests' Kafka and Valkey listen on the loopback address. It is given no
more rights than an operator would give it.
"""

import contextlib
import json
import os
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from tests.process import Role, wait_until
from tests.services import free_port

ROOT = Path(__file__).parents[2]
ROLES = ("base", "producer", "consumer", "stream-processor")
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


def call(
    *command: str,
    within_s: float = 60.0,
    check: bool = True,
    cwd: Path = ROOT,
    environ: Mapping[str, str] | None = None,
) -> str:
    """What a command printed to stdout; AssertionError with all it said if it failed."""
    whole = os.environ | (environ or {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, cwd=cwd, check=False, env=whole)
    assert not check or done.returncode == 0, (
        f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
    )
    return done.stdout if check else done.stdout + done.stderr


def bake(*arguments: str, within_s: float = 590.0, environ: Mapping[str, str] | None = None) -> str:
    """``docker buildx bake``, with the certificates that pip is configured to use here, if any."""
    cert = os.environ.get("PIP_CERT")
    allowed = [f"--allow=fs.read={cert}"] if cert else []
    return call(
        "docker", "buildx", "bake", "--progress=plain", *allowed, *arguments, within_s=within_s, environ=environ
    )


def inspected(docker: str, name: str) -> Any:
    """What the engine knows of a container or an image."""
    return json.loads(call(docker, "inspect", name))[0]


class Container(Role):
    """``docker run`` of an image. ``actor`` is mounted at /actor, ``options`` are more of run's."""

    def __init__(
        self,
        docker: str,
        image: str,
        environ: Mapping[str, str] | None = None,
        *,
        actor: Path | None = None,
        options: Sequence[str] = HARDENED,
        wait: bool = True,
    ) -> None:
        super().__init__(image, environ, wait=wait)
        self.docker = docker
        self.options = [*options, *(("--volume", f"{actor}:/actor:ro") if actor else ())]
        self.settings = {"PORT": str(free_port()), "CLUSTER_SIZE": "1", "PYTHONWARNINGS": "default", **(environ or {})}
        self.environ = dict(os.environ)  # of the docker command

    def command(self) -> list[str]:
        self.container = f"hiveio-test-{uuid.uuid4().hex[:12]}"
        environ = [word for name, value in self.settings.items() for word in ("--env", f"{name}={value}")]
        options = ["--name", self.container, "--network", "host", "--label", "hiveio.test", *self.options]
        return [self.docker, "run", *options, *environ, self.name]

    def ready(self, within_s: float = 120.0) -> Self:
        try:
            return super().ready(within_s)
        except AssertionError as error:
            reason = ""
            if self.port:
                with contextlib.suppress(httpx.TransportError):  # it has ended
                    reason = httpx.get(f"{self.url}/readyz?verbose", timeout=10, verify=self.trust).text
            raise AssertionError(f"{error}\n{reason}{self.text()}") from None

    def __exit__(self, *raised: Any) -> None:
        try:
            super().__exit__(*raised)
        finally:
            call(self.docker, "rm", "--force", "--volumes", self.container, check=False)

    def terminate(self, sent: signal.Signals = signal.SIGTERM) -> None:
        call(self.docker, "kill", "--signal", sent.name, self.container)

    def kill(self) -> None:
        call(self.docker, "kill", self.container, check=False)
        self.process.wait(30)
        self._join()

    def pause(self) -> None:
        call(self.docker, "pause", self.container)

    def resume(self) -> None:
        if self.inspected()["State"]["Paused"]:
            call(self.docker, "unpause", self.container)

    # -- what it shows

    def inspected(self) -> Any:
        return inspected(self.docker, self.container)

    def processes(self) -> list[tuple[str, str]]:
        """The user ids and commands of its processes."""
        lines = call(self.docker, "top", self.container, "-o", "pid,uid,args").splitlines()[1:]
        return [(uid, command) for _, uid, command in (line.split(None, 2) for line in lines)]

    def health(self) -> str:
        return str(self.inspected()["State"]["Health"]["Status"])

    def healthy(self) -> None:
        wait_until(lambda: self.health() == "healthy", 120, f"{self.name} healthy")
