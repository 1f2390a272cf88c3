"""What the services of a folder are given."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from hiveio.config import Settings
from hiveio.dev.actors import Found, distinct
from hiveio.dev.project import Topics, environment, ordered, project_name, topics_of
from hiveio.dev.services import Addresses
from hiveio.saga.inbox import check_topics
from tests.process import ROOT

TEMPLATE = "runtime/hiveio/cli/template"
ITEMS = Found("shop.items", "stream-processor", {"Created": "", "Renamed": ""})
REPORTS = Found("reports", "producer", {"Reported": "", "Alarmed": "alarms"})
BOARD = Found("board", "consumer", takes=["Renamed", "Alarmed"])
ALONE = Found("alone", "consumer", takes=["Elsewhere"])
SHOUTS = Found("shouts", "base")
ADDRESSES = Addresses("localhost:9092", "redis://localhost:6379")


def environ(each: Found, topics: Topics) -> Mapping[str, str]:
    return environment(each, "shop", Path("/shop"), Path("/shop/.hiveio/data"), 3001, ADDRESSES, topics)


def settings(each: Found, topics: Topics) -> Settings:
    return Settings.read(environ(each, topics))


@pytest.mark.parametrize(
    ("folder", "name"), [("shop", "shop"), ("My Shop!", "my-shop"), ("ß", "dev"), (".shop", "shop")]
)
def test_topics_and_groups_begin_with_the_name_of_the_folder(folder: str, name: str) -> None:
    assert project_name(Path("/home/ada") / folder) == name


def test_a_consumer_reads_the_topics_with_the_events_that_it_takes() -> None:
    assert topics_of("shop", [ITEMS, REPORTS, BOARD, ALONE, SHOUTS]) == {
        "shop.items": Topics("shop.items", ["shop.items"], [], []),
        "reports": Topics("shop.reports", ["alarms", "shop.reports"], [], []),
        "board": Topics("shop.board", [], ["alarms", "shop.items"], []),
        "alone": Topics("shop.alone", [], ["shop.events"], []),
        "shouts": Topics("shop.shouts", [], [], []),
    }


def test_a_process_manager_reads_what_drives_it_and_those_to_which_it_sends_take_its_commands() -> None:
    """These are called as its commands name them."""
    leads = Found("leads", "stream-processor", {"Led": ""}, ["Created"], sends=["billing", "elsewhere"], process=True)
    billing = Found("billing", "stream-processor", {"Billed": ""})
    topics = topics_of("shop", [ITEMS, leads, billing])
    assert topics == {
        "shop.items": Topics("shop.items", ["shop.items"], [], []),
        "leads": Topics("shop.leads", ["shop.leads"], ["billing", "shop.items"], []),
        "billing": Topics("billing", ["billing"], [], ["shop.leads.commands"]),
    }
    assert topics["billing"].all == {"billing", "shop.leads.commands"}
    read = settings(leads, topics["leads"])
    assert (read.written_topic, read.read_topics, read.group_id, read.from_start) == (
        *("shop.leads", ("billing", "shop.items"), "shop.leads"),
        True,
    )
    check_topics(read)
    taken = settings(billing, topics["billing"])
    assert (taken.written_topic, taken.command_topics) == ("billing", ("shop.leads.commands",))
    alone = Found("alone", "stream-processor", {"Led": ""}, process=True)  # commands and deadlines alone drive it
    check_topics(settings(alone, topics_of("shop", [alone])["alone"]))


def test_modules_of_one_name_share_neither_topics_nor_files() -> None:
    both = distinct([Found("billing.service", "consumer"), Found("stock.service", "consumer"), SHOUTS])
    assert [each.short for each in both] == ["billing.service", "stock.service", "shouts"]
    topics = topics_of("shop", both)
    assert topics["billing.service"].own == "shop.billing.service"
    files = {environ(each, topics[each.name])["DATABASE"] for each in both[:2]}
    assert len(files) == 2
    assert [each.short for each in distinct([Found("a:B"), Found("a:C")])] == ["a.B", "a.C"]


def test_a_module_may_have_letters_that_a_topic_may_not() -> None:
    assert topics_of("shop", [Found("größe", "stream-processor")])["größe"].own == "shop.gr-e"


@pytest.mark.parametrize("page", ["docs/tutorial.md", *(f"{TEMPLATE}/{name}.py.in" for name in ("board", "latest"))])
def test_the_consumers_that_we_show_take_the_file_that_they_are_given(page: str) -> None:
    """Else one would go on with rows and positions of events of another Kafka."""
    assert 'os.environ.get("DATABASE", ' in (ROOT / page).read_text("utf-8")


def test_who_writes_comes_before_who_reads() -> None:
    assert ordered([SHOUTS, BOARD, REPORTS, ALONE, ITEMS]) == [ITEMS, REPORTS, ALONE, BOARD, SHOUTS]


def test_the_environment_of_a_service_has_the_settings_of_its_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENT_STORE_PARTITIONS", "4")
    for name, value in {
        "PORT": "1",
        "ADMIN_PORT": "2",
        "EVENT_STORE_PRODUCER_TOPIC": "elsewhere",
        "LOCK_URLS": "redis://elsewhere",
    }.items():  # as in the environment of a service that runs elsewhere
        monkeypatch.setenv(name, value)

    topics = topics_of("shop", [ITEMS, REPORTS, BOARD, SHOUTS])

    def read(each: Found) -> tuple[Settings, str]:
        return settings(each, topics[each.name]), environ(each, topics[each.name]).get("DATABASE", "")

    items, database = read(ITEMS)
    assert (items.actor_path, items.actor_module, items.port, items.bind) == ("/shop", "shop.items", 3001, "127.0.0.1")
    assert (items.written_topic, items.cache_url, items.partitions, database) == ("shop.items", ADDRESSES.cache, 4, "")
    assert (items.probes_port, items.lock_nodes) == (3001, (ADDRESSES.cache,))
    board, database = read(BOARD)
    assert (board.read_topics, board.group_id, board.from_start) == (("alarms", "shop.items"), "shop.board", True)
    assert database == "/shop/.hiveio/data/board.sqlite"
    monkeypatch.setenv("DATABASE", "/elsewhere.sqlite")
    assert read(BOARD)[1] == "/elsewhere.sqlite"
    assert read(SHOUTS)[0].brokers == ""
    assert board.drain_timeout_ms == 1_000  # for quick restarts, unless somebody wants another time
    monkeypatch.setenv("DRAIN_TIMEOUT", "7000")
    assert read(BOARD)[0].drain_timeout_ms == 7_000
