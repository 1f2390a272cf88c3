"""What the services of a folder are given."""

from pathlib import Path

import pytest

from hiveio.config import Settings
from hiveio.dev.actors import Found
from hiveio.dev.project import environment, ordered, project_name, topics_of
from hiveio.dev.services import Addresses
from tests.process import ROOT

TEMPLATE = "runtime/hiveio/cli/template"
ITEMS = Found("shop.items", "stream-processor", {"Created": "", "Renamed": ""})
REPORTS = Found("reports", "producer", {"Reported": "", "Alarmed": "alarms"})
BOARD = Found("board", "consumer", takes=["Renamed", "Alarmed"])
ALONE = Found("alone", "consumer", takes=["Elsewhere"])
SHOUTS = Found("shouts", "base")
ADDRESSES = Addresses("localhost:9092", "redis://localhost:6379")


@pytest.mark.parametrize(
    ("folder", "name"), [("shop", "shop"), ("My Shop!", "my-shop"), ("ß", "dev"), (".shop", "shop")]
)
def test_topics_and_groups_begin_with_the_name_of_the_folder(folder: str, name: str) -> None:
    assert project_name(Path("/home/ada") / folder) == name


def test_a_consumer_reads_the_topics_with_the_events_that_it_takes() -> None:
    assert topics_of("shop", [ITEMS, REPORTS, BOARD, ALONE, SHOUTS]) == {
        "shop.items": ["shop.items"],
        "reports": ["alarms", "shop.reports"],
        "board": ["alarms", "shop.items"],
        "alone": ["shop.events"],
    }


@pytest.mark.parametrize("page", ["docs/tutorial.md", *(f"{TEMPLATE}/{name}.py.in" for name in ("board", "latest"))])
def test_the_consumers_that_we_show_take_the_file_that_they_are_given(page: str) -> None:
    """Else one would go on with rows and positions of events of another Kafka."""
    assert 'os.environ.get("DATABASE", ' in (ROOT / page).read_text("utf-8")


def test_who_writes_comes_before_who_reads() -> None:
    assert ordered([SHOUTS, BOARD, REPORTS, ALONE, ITEMS]) == [ITEMS, REPORTS, ALONE, BOARD, SHOUTS]


def test_the_environment_of_a_service_has_the_settings_of_its_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENT_STORE_PARTITIONS", "4")
    monkeypatch.setenv("PORT", "1")

    def read(each: Found, *topics: str) -> tuple[Settings, str]:
        environ = environment(each, "shop", Path("/shop"), Path("/shop/.hiveio/data"), 3001, ADDRESSES, topics)
        return Settings.read(environ), environ.get("DATABASE", "")

    items, database = read(ITEMS, "shop.items")
    assert (items.actor_path, items.actor_module, items.port, items.bind) == ("/shop", "shop.items", 3001, "127.0.0.1")
    assert (items.written_topic, items.cache_url, items.partitions, database) == ("shop.items", ADDRESSES.cache, 4, "")
    board, database = read(BOARD, "alarms", "shop.items")
    assert (board.read_topics, board.group_id, board.from_start) == (("alarms", "shop.items"), "shop.board", True)
    assert database == "/shop/.hiveio/data/board.sqlite"
    monkeypatch.setenv("DATABASE", "/elsewhere.sqlite")
    assert read(BOARD, "shop.items")[1] == "/elsewhere.sqlite"
    assert read(SHOUTS)[0].brokers == ""
    assert board.drain_timeout_ms == 1_000  # for quick restarts, unless somebody wants another time
    monkeypatch.setenv("DRAIN_TIMEOUT", "7000")
    assert read(BOARD, "shop.items")[0].drain_timeout_ms == 7_000
