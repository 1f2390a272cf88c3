"""Plays a page: its files are written, its commands run, and what it shows is compared with what is printed.

docs/tutorial.md is one, and the README.md that `hiveio new` writes another.

The word behind the language of a block says what its commands are: ``setup`` is what a test has already, ``service``
and ``container`` run until the end, ``image`` belongs to the images, and a command without a word runs where it is.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.process import ROOT, wait_until
from tests.services import Kafka, Redis, free_port

PAGE = ROOT / "docs" / "tutorial.md"
FILE = re.compile(r"# (\S+)\n")  # the first line of a block that is a file
WITHIN_S = 60.0
STARTED_S = 60.0


class Block(NamedTuple):
    language: str
    word: str
    text: str


def blocks(page: Path = PAGE) -> list[Block]:
    return [
        Block(*found) for found in re.findall(r"^```(\w+) ?(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    ]


class Played:
    """A page in a folder, with the commands of `.venv`. ``replaced`` are texts of it, and what is run instead."""

    def __init__(self, folder: Path, replaced: Mapping[str, str], **environ: str) -> None:
        self.folder = folder
        self._replaced = dict(replaced)
        path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
        self._environ = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environ}

    def write(self, block: Block) -> None:
        """The file that the block is, named in its first line."""
        found = FILE.match(block.text)
        assert found, f"no name of a file in the first line of {block.text!r}"
        (self.folder / found[1]).write_text(block.text.removeprefix(found[0]))

    def run(self, block: Block, within_s: float = WITHIN_S) -> None:
        self._call(f"set -e\n{block.text}", within_s)

    def show(self, block: Block) -> None:
        """Each command behind a ``$`` prints what is below it."""
        steps = [step.partition("\n") for step in block.text.removeprefix("$ ").split("\n$ ")]
        script = "".join(f"{command}\nprintf '\\0'\n" for command, _, _ in steps)
        printed = self._call(script).split("\0")[:-1]
        found, shown = [text.strip() for text in printed], [shown.strip() for _, _, shown in steps]
        assert found == shown, f"{found} instead of {shown}"

    def _call(self, script: str, within_s: float = WITHIN_S) -> str:
        done = subprocess.run(
            ["bash", "-c", self._here(script)],
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _here(self, text: str) -> str:
        # In one pass: a port that is put in may have the digits of one that is shown.
        shown = sorted(map(re.escape, self._replaced), key=len, reverse=True)
        return re.sub("|".join(shown), lambda found: self._replaced[found[0]], text)


class Tutorial(Played):
    """docs/tutorial.md on these servers: its ports, its topic and its volume are replaced by free ones."""

    def __init__(self, folder: Path, kafka: Kafka, redis: Redis, topic: str) -> None:
        self.volume = f"tickets-{topic}"
        self._ports = {"3001": str(free_port()), "3002": str(free_port())}
        replaced = {
            "localhost:9092": kafka.brokers,
            "redis://localhost:6379": redis.url,
            "EVENT_STORE_TOPIC=tickets": f"EVENT_STORE_TOPIC={topic}",
            "tickets-sales": self.volume,
            **self._ports,
        }
        super().__init__(folder, replaced)

    @contextmanager
    def serving(self, block: Block) -> Iterator[None]:
        """What the block starts, ready; at the end it is drained."""
        text = self._here(block.text)
        port = next(port for port in self._ports.values() if f"PORT={port}" in text)
        with subprocess.Popen(
            ["bash", "-c", text],
            cwd=self.folder,
            env=self._environ,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                wait_until(lambda: _is_ready(process, port), STARTED_S, f"{text!r} ready")
                yield
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                said, _ = process.communicate(timeout=30)
                print(said)  # pytest shows it with a failure


def _is_ready(process: subprocess.Popen[str], port: str) -> bool:
    assert process.poll() is None, f"it ended with {process.returncode}: {process.stdout and process.stdout.read()}"
    try:
        return httpx.get(f"http://localhost:{port}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def play(tutorial: Tutorial, *, images: bool) -> None:
    """From the empty folder to the end: with processes, or with the images that it builds."""
    served = "container" if images else "service"
    shown: list[Block] = []
    with ExitStack() as stack:
        for block in blocks():
            match block.language, block.word:
                case (("python" | "dockerfile"), _):
                    tutorial.write(block)
                case "sh", word if word == served:
                    stack.enter_context(tutorial.serving(block))
                case "sh", "" if "pytest" not in block.text or not images:
                    tutorial.run(block)
                case "sh", "image" if images:
                    tutorial.run(block)
                case "console", _ if images:
                    shown.append(block)  # the containers come last
                case "console", "":
                    tutorial.show(block)
        for block in shown:
            tutorial.show(block)
