"""`hiveio dev` in the folder that `hiveio new` has written, as a user has it: from the first start to Ctrl-C."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from hiveio.cli import main
from hiveio.roles import ROLES
from tests.conftest import require
from tests.process import NOWHERE, ROOT, Output, wait_until
from tests.services import HOST, Kafka
from tests.tutorial import Played, blocks

READY = "Each is restarted when its files change"
STARTED_S = 60.0
ENDED_S = 30.0
pytestmark = pytest.mark.redis


class Dev:
    """The process and what it has said. Nothing is a terminal here, so what it says has no colours."""

    def __init__(self, folder: Path, *words: str, **environ: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hiveio.cli", "dev", *words],
            cwd=folder,
            env={**os.environ, "COLUMNS": "200", "http_proxy": NOWHERE, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        self._output = Output(self.process.stdout)

    @property
    def lines(self) -> list[str]:
        return self._output.lines()

    def text(self) -> str:
        return "\n".join(self.lines)

    def says(self, text: str, after: int = 0, within_s: float = 20.0) -> int:
        """Waits for a line with the text behind the first ``after`` ones; the number of lines up to it."""

        def found() -> int | None:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.text()}"
            return next((at + 1 for at, line in enumerate(self.lines) if at >= after and text in line), None)

        try:
            return int(wait_until(found, within_s, text))
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.text()}") from None

    def urls(self) -> dict[str, str]:
        """Of each service by its name."""
        found = re.findall(r"^(\w+)  [a-z-]+  (http://localhost:\d+)$", self.text(), re.M)
        return dict(found)

    def calls(self) -> list[str]:
        return [line.strip() for line in self.lines if line.startswith("  curl ")]

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.ended(ENDED_S)

    def ended(self, within_s: float) -> int:
        """Its exit code, once it has ended and all that it said is read."""
        code = self.process.wait(within_s)
        self._output.close()
        return code


@contextmanager
def running(folder: Path, *words: str, **environ: str) -> Iterator[Dev]:
    dev = Dev(folder, *words, **environ)
    try:
        dev.says(READY, within_s=STARTED_S)
        yield dev
    finally:
        if dev.process.poll() is None:
            dev.end()
        dev.ended(10)
        print(dev.text())  # pytest shows it with a failure


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    words = [word for role in ROLES for word in ("--role", role)]
    assert main(["new", "shop", *words, "--into", str(tmp_path)]) == 0
    return tmp_path / "shop"


def processes_in(folder: Path) -> list[str]:
    """The command lines of processes that have to do with the folder, by their arguments, environment or place."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(each / name).read_bytes() for name in ("cmdline", "environ")]
            texts.append(os.fsencode((each / "cwd").readlink()))
            if any(os.fsencode(folder) in text for text in texts) and int(each.name) != os.getpid():
                found.append(texts[0].replace(b"\0", b" ").decode())
        except OSError:
            pass  # it has ended, or is a kernel's
    return found


def listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, int(url.rpartition(":")[2]))) == 0


@pytest.mark.timeout(240, func_only=True)
def test_the_readme_of_a_new_project_and_the_services_through_changes(shop: Path, kafka: Kafka) -> None:
    """One start for all of it: each costs seconds."""
    if shutil.which("curl") is None:
        require("curl", "no curl in PATH")
    with running(shop) as dev:
        urls = dev.urls()
        assert urls.keys() == {"items", "reports", "board", "shouts"}
        each_line_of_the_readme(shop, urls)
        each_line_of_curl(dev)
        shown = the_console_shows_what_is_there(dev)
        one_at_a_time(shop)
        a_change_restarts_whom_it_concerns(dev, urls)
        a_fault_waits_for_its_correction(dev, urls)
        a_new_module_is_a_new_service(dev)
        urls = dev.urls()
        assert dev.end() == 0
        assert "Traceback" not in dev.text().rpartition(READY)[2].rpartition("restarted in")[2]
    wait_until(lambda: not processes_in(shop), 10, "the end of all processes")
    assert not any(listens(url) for url in (*urls.values(), shown))
    assert {path.name for path in shop.iterdir() if path.is_dir()} <= {".hiveio"}

    started = time.monotonic()
    with running(shop) as dev:  # what it has is still there
        print(f"the second start took {time.monotonic() - started:.1f} s")
        assert httpx.get(f"{dev.urls()['items']}/items/7").json()["payload"] == {"title": "text"}
        answer = httpx.get(f"{dev.urls()['board']}/board/7", timeout=20)
        assert answer.json()["payload"] == {"title": "text", "changes": 2}  # by the README, and by a line of curl
        assert dev.end(signal.SIGTERM) == 0

    with running(shop, "--fresh", "board:consumer", "items") as dev:
        assert dev.urls().keys() == {"items", "board"}
        assert httpx.get(f"{dev.urls()['items']}/items/7").status_code == 404
        assert httpx.get(f"{dev.urls()['board']}/board/7").status_code == 404
        assert "Overview" in httpx.get(the_console(dev), timeout=30).text
        with stopped_workers(dev):
            dev.process.kill()  # nothing of it is left in this case either
            wait_until(lambda: not processes_in(shop), 10, "the end of all processes")


@contextmanager
def stopped_workers(dev: Dev) -> Iterator[None]:
    """None of them can notice anything by itself: as where an actor blocks, or each waits for a Kafka that is gone."""
    pid = dev.process.pid
    workers = [each for each in psutil.Process(pid).children(recursive=True) if each.ppid() != pid]
    assert len(workers) == 3  # of items, board, and the console
    for each in workers:
        each.suspend()
    try:
        yield
    finally:
        for each in workers:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def each_line_of_the_readme(shop: Path, urls: dict[str, str]) -> None:
    """But what is installed here already, runs already, or needs an engine (tests/images)."""
    ports = dict(zip(("3001", "3002", "3003", "3004"), map(port_of, urls.values()), strict=True))
    page = Played(shop, {f"localhost:{shown}": f"localhost:{own}" for shown, own in ports.items()})
    words = []
    for block in blocks(shop / "README.md"):
        words.append(block.word)
        if (block.language, block.word) == ("sh", ""):
            page.run(block)
        elif block.language == "console":
            page.show(block)
    assert words == ["setup", "", "dev", "", "compose", "down"]
    for name in (".mypy_cache", ".pytest_cache"):
        shutil.rmtree(shop / name, ignore_errors=True)


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


def each_line_of_curl(dev: Dev) -> None:
    """Each is a request that the service takes: what is refused, is refused by the actor."""
    calls = dev.calls()
    assert len(calls) == 7  # Create, Rename and the state; Report; Entry; Shout and ShoutAll
    for call in calls:
        done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, timeout=20, check=True)
        assert '"type":' in done.stdout, call
        for wrong in ("invalid", "malformed", "about:blank", "unavailable"):
            assert f'"{wrong}"' not in done.stdout.replace("urn:hiveio:problem:", ""), f"{call}: {done.stdout}"


def the_console_shows_what_is_there(dev: Dev) -> str:
    """Its URL."""
    url = the_console(dev)
    title = "&quot;title&quot;: &quot;text&quot;"  # folded by the actor of this folder
    wait_until(lambda: title in httpx.get(f"{url}/aggregate?name=ItemsActor/7", timeout=30).text, 30, "the title")
    assert "not answer" not in httpx.get(url, timeout=30).text  # the others are asked
    return url


def the_console(dev: Dev) -> str:
    """Its URL, which is printed when it answers."""
    found = re.search(r"^items console  (http://localhost:\d+)$", dev.text(), re.M)
    assert found is not None
    assert httpx.get(f"{found[1]}/console.css", timeout=30).status_code == 200
    return found[1]


def one_at_a_time(shop: Path) -> None:
    second = Dev(shop)
    assert second.ended(20) == 2
    assert "hiveio dev runs in" in second.text()
    assert "already" in second.text()


def a_change_restarts_whom_it_concerns(dev: Dev, urls: dict[str, str]) -> None:
    before = len(dev.lines)
    module = dev.folder / "shouts.py"
    module.write_text(module.read_text().replace("title.upper()] * times", "title.upper() + '!'] * times"))
    changed = time.monotonic()
    dev.says("shouts  │ restarted in", before)
    took = time.monotonic() - changed
    print(f"a changed file was answered by after {took:.2f} s")
    assert took < 5  # 1.5 on an idle machine
    assert httpx.get(f"{urls['shouts']}/shouts/hello").json()["payload"] == {"texts": ["HELLO!"]}
    assert [line for line in dev.lines[before:] if "restarted in" in line and "shouts" not in line] == []
    before = len(dev.lines)
    (dev.folder / "events.py").touch()  # which the others share
    for name in ("items  ", "board  ", "reports"):
        dev.says(f"{name} │ restarted in", before)
    assert not [line for line in dev.lines[before:] if line.startswith("shouts  │ restarted in")]
    (dev.folder / "test_items.py").touch()


def a_fault_waits_for_its_correction(dev: Dev, urls: dict[str, str]) -> None:
    module, before = dev.folder / "shouts.py", len(dev.lines)
    right = module.read_text()
    module.write_text(right + "\nraise RuntimeError('half written')\n")
    dev.says("half written", before)
    dev.says("ended with exit code", before)
    before = len(dev.lines)
    module.write_text(right)
    dev.says("shouts  │ restarted in", before)
    assert httpx.get(f"{urls['shouts']}/shouts/hello").status_code == 200


def a_new_module_is_a_new_service(dev: Dev) -> None:
    before = len(dev.lines)
    text = (dev.folder / "shouts.py").read_text().replace("ShoutsActor", "CallsActor").replace("/shouts", "/calls")
    (dev.folder / "calls.py").write_text(text)
    dev.says("calls  base  http://localhost:", before)
    wait_until(lambda: "calls" in dev.urls(), 5)
    assert httpx.get(f"{dev.urls()['calls']}/calls/hello").json()["payload"] == {"texts": ["HELLO!"]}
    before = len(dev.lines)
    (dev.folder / "calls.py").unlink()
    wait_until(lambda: not listens(dev.urls()["calls"]), 15, "the end of a service whose module is gone")


@pytest.mark.timeout(120, func_only=True)
def test_a_process_manager_leads_the_services_of_its_folder(tmp_path: Path, kafka: Kafka) -> None:
    """Payments refuses its command, and orders takes the one that cancels the order."""
    package = tmp_path / "shop" / "orders"
    shutil.copytree(ROOT / "examples" / "orders", package, ignore=shutil.ignore_patterns("*.Dockerfile", "__pycache__"))
    modules = ("orders", "payments", "fulfilment")
    with running(package.parent, *(f"orders.{name}" for name in modules), EVENT_STORE_PARTITIONS="2") as dev:
        urls = dev.urls()
        order = {"customer": "ada", "sku": "tea", "quantity": 1, "amount": 5}
        placed = httpx.post(f"{urls['orders']}/orders/1", json={"type": "Place", "payload": order}, timeout=20)
        assert placed.status_code == 200, placed.text
        wait_until(lambda: httpx.get(f"{urls['orders']}/orders/1").json()["payload"]["status"] == "cancelled", 30)
        reason = httpx.get(f"{urls['orders']}/orders/1").json()["payload"]["reason"]
        assert reason == "payments: this customer has no wallet"
        before, module = len(dev.lines), package / "fulfilment.py"
        right = module.read_text()
        module.write_text("half written")
        dev.says("orders.fulfilment │", before)
        module.write_text(right)
        dev.says("fulfilment │ restarted in", before)
        # It is what it was meanwhile.
        assert not [line for line in dev.lines[before:] if line.startswith("orders ") and "draining" in line]


def test_a_folder_without_an_actor_is_named(tmp_path: Path, kafka: Kafka) -> None:
    dev = Dev(tmp_path)
    assert dev.ended(STARTED_S) == 2
    assert "has no actor" in dev.text()
    assert not processes_in(tmp_path)
