"""The project that `hiveio new` writes, in containers: its README line by line, and a restart."""

import re
import uuid
from pathlib import Path

import httpx
import yaml  # type: ignore[import-untyped]

from hiveio.cli import main
from hiveio.roles import ROLES
from tests.images.container import call
from tests.process import wait_until
from tests.services import free_port
from tests.tutorial import Played, blocks

STARTED_S = 200.0
PROJECT = f"shop-test-{uuid.uuid4().hex[:8]}"  # what a run that was killed has left is not this one's


def test_a_new_project_runs_in_containers_and_survives_a_restart(images: str, servers: None, tmp_path: Path) -> None:
    words = [word for role in ROLES for word in ("--role", role)]
    assert main(["new", "shop", *words, "--into", str(tmp_path)]) == 0
    shop = tmp_path / "shop"
    services = [*yaml.safe_load((shop / "compose.yaml").read_text())["services"]]
    ports = {f"{service.upper()}_PORT": str(free_port()) for service in services}
    shown = {f"localhost:{3001 + at}": f"localhost:{port}" for at, port in enumerate(list(ports.values())[:4])}
    environ = {"COMPOSE_PROJECT_NAME": PROJECT, **ports}
    page = Played(shop, shown, **environ)
    by_word = {block.word or block.language: block for block in blocks(shop / "README.md")}
    try:
        page.run(by_word["compose"], STARTED_S)
        page.show(by_word["console"])
        the_console_is_where_its_log_says(images, shop, environ)
        call(images, "compose", "restart", cwd=shop, environ=environ, within_s=STARTED_S)
        page.run(by_word["compose"], STARTED_S)  # which waits until all are ready
        titled = httpx.get(f"http://127.0.0.1:{ports['BOARD_PORT']}/board/7", timeout=20).json()
        assert titled["payload"] == {"title": "Book", "changes": 1}
    except BaseException:
        print(call(images, "compose", "logs", cwd=shop, environ=environ, check=False))
        raise
    finally:
        page.run(by_word["down"], STARTED_S)
        tags = [f"shop/{service}" for service in services if service not in ("kafka", "valkey", "console")]
        call(images, "rmi", "--force", *tags, check=False)
    assert call(images, "volume", "ls", "--quiet", "--filter", f"name={PROJECT}") == ""


def the_console_is_where_its_log_says(docker: str, shop: Path, environ: dict[str, str]) -> None:
    said = call(docker, "compose", "logs", "--no-log-prefix", "console", cwd=shop, environ=environ)
    (path,) = re.findall(r"http://localhost:3030(/\S+)", said)
    url = f"http://localhost:{environ['CONSOLE_PORT']}"
    with httpx.Client(base_url=url, follow_redirects=True, timeout=30) as browser:
        assert browser.get("/").status_code == 401
        assert "Overview" in browser.get(path).text
        # Each service is asked, again and again: the first time it may not have listened yet.
        wait_until(lambda: "not answer" not in browser.get("/").text, 60, "each service answers")
        shown = "&quot;title&quot;: &quot;Book&quot;"
        wait_until(lambda: shown in browser.get("/aggregate?name=ItemsActor/7").text, 60, "the states of the item")
