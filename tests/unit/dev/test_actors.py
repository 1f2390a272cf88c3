"""Which actors a folder has, and in which role."""

from pathlib import Path

import pytest

from hiveio.dev.actors import Found, Look, candidates
from hiveio.errors import ConfigError
from tests.process import ROOT

MESSAGES = """
from hiveio import Actor, Command, Event, Model, Query, Tombstone
class Add(Command): pass
class Added(Event): pass
class Sum(Model): pass
class Ask(Query):
    path = "/sums"
"""
DECIDES = """
class Decides(Actor):
    path = "/sums/{id}"
    def perform(self, state: Sum | None, command: Add) -> Added: return Added()
    def replay(self, state: Sum | None, event: Added) -> Sum: return Sum()
"""
WRITES = """
class Writes(Actor):
    path = "/adds/{id}"
    topic = "adds"
    def perform(self, command: Add) -> Added: return Added()
"""
READS = """
class Reads(Actor):
    def perform(self, message: Added | Ask) -> Sum | None: return None
"""
CLEARS = """
class Clears(Actor):
    def perform(self, message: Tombstone) -> None: return None
"""
ANSWERS = """
class Answers(Actor):
    path = "/answers"
    def perform(self, message: Add) -> Sum: return Sum()
"""


def write(folder: Path, **modules: str) -> None:
    for name, text in modules.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_each_module_is_found_in_the_role_that_its_actors_are_written_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        tmp_path,
        decides=MESSAGES + DECIDES,
        writes="print('imported')\n" + MESSAGES + WRITES,
        shop__init="",
        shop__reads=MESSAGES + READS,
        clears=MESSAGES + CLEARS,
        answers=MESSAGES + ANSWERS,
        messages=MESSAGES,
        both=MESSAGES + WRITES + READS,
        broken=MESSAGES + "def",
        helpers="def help(): pass",
        test_decides=MESSAGES + DECIDES,
    )
    (tmp_path / "shop" / "init.py").rename(tmp_path / "shop" / "__init__.py")
    (tmp_path / "tests").mkdir()
    write(tmp_path / "tests", __init__="", helper=MESSAGES + DECIDES)
    found = {each.name: each for each in Look(tmp_path, []).result()}
    assert {name: each.role for name, each in found.items()} == {
        "answers": "base",
        "both": "",
        "broken": "",
        "clears": "consumer",
        "decides": "stream-processor",
        "shop.reads": "consumer",
        "writes": "producer",
    }
    assert found["decides"].gives == {"Added": ""}
    assert found["writes"].gives == {"Added": "adds"}
    assert (found["shop.reads"].takes, found["shop.reads"].gives, found["shop.reads"].short) == (["Added"], {}, "reads")
    assert "both has actors of several roles: Writes (producer), Reads (consumer)" in found["both"].fault
    assert "SyntaxError" in found["broken"].fault
    assert "imported" in capsys.readouterr().err  # what a module prints is shown, and is no part of what was found


def test_a_process_manager_is_found_with_the_services_to_which_it_sends() -> None:
    (found,) = Look(ROOT / "examples", ["orders.fulfilment"]).result()
    assert (found.role, found.process, found.sends) == ("stream-processor", True, ["orders", "payments", "stock"])
    assert found.takes == ["OrderPlaced", "PaymentReserved", "GoodsPicked"]


def test_words_name_a_module_a_class_and_a_role(tmp_path: Path) -> None:
    write(tmp_path, both=MESSAGES + WRITES + READS, messages=MESSAGES)
    found = Look(tmp_path, ["both:Writes", "both:Reads:base", "messages", "nowhere"]).result()
    assert found[:2] == [
        Found("both:Writes", "producer", {"Added": "adds"}),
        Found("both:Reads", "base", {}, ["Added"]),
    ]
    assert "no class derived from hiveio.Actor" in found[2].fault
    assert "there is no module 'nowhere'" in found[3].fault


@pytest.mark.parametrize("word", ["accounts:streamprocessor-x", "accounts:A:B:consumer:x"])
def test_a_word_that_names_nothing_is_refused_before_anything_is_imported(word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{word} is wrong: it takes MODULE or MODULE:ROLE"):
        Look(tmp_path, [word])


def test_a_folder_without_modules_has_no_candidates(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    write(tmp_path / ".venv", hidden=MESSAGES + DECIDES)
    assert [*candidates(tmp_path)] == []
