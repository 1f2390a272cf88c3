"""What the documents name is there: each module, fault, test and link. What is generated in them is of today."""

import ast
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

import spec.check
from hiveio.cli import COMMANDS
from tests.process import ROOT
from tests.settings_page import PAGE as SETTINGS
from tests.settings_page import page as settings_page
from tests.unit.test_imports import PACKAGE, imported, room

MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"
}
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
TESTS = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "examples").rglob("test_*.py")]

# Words that we have given up, each with what is written in its place. docs/glossary.md has the words that we use.
GIVEN_UP = {
    r"told": "said, reported, logged, answered",
    r"stands|stood": "is, has, stops",
    r"wishes|guests?": "waiting instances, readers",
    r"careful|lanes?|shelf": "failures, partition, dead letters",
    r"bury|buries|buried": "write a dead letter",
    r"(?<!dead )(?<!dead-)letters?": "dead letter",
    r"nuisances?": "abuse",
    r"to be had|cannot be had": "found, reached",
    r"mends?|mended": "correct, repair",
}
# Names that no document has any more, and those that have left the code.
REPLACED = {"Told", "Begun", "Known", "Prefix", "Fact", "Taken", "Hand", "Shelf", "CarefulLane", "WorkLane", "Gone"}
OUT_OF_THE_CODE = {
    "Begun", "Fact", "Gone", "Greeting", "Held", "Judged", "Known", "MAX_MARKS", "MAX_TOLD", "Marks", "NOTED_S",
    "New", "Prefix", "Run", "Stored", "TELL_S", "Taken", "Told", "Untaken", "_barriered", "_ensure_beside", "_held",
    "_is_anew", "_leads", "_noting", "_rescue", "_saw", "_spent", "_stands", "_surely_held", "_tell", "_told",
    "_untaken", "_untold", "_visit", "_waits", "_welcome", "ahead", "anew", "ask_with", "beside", "bury", "greeting",
    "guests", "is_felt", "mended", "noted", "notes", "nuisance", "nuisances", "saw", "stands", "stood", "strangers",
    "tells", "told", "untaken", "visit", "wishes",
}  # fmt: skip
TESTS_MAY_USE = {"Marks", "New", "Stored", "Taken", "ahead", "notes"}  # where they mean something of the test's own


START = 40  # characters, by which two wordings of one entry are recognised


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_the_page_of_settings_is_of_today() -> None:
    assert SETTINGS.read_text("utf-8") == settings_page(), "run `make docs`"


def test_every_link_leads_somewhere() -> None:
    texts = {path: path.read_text("utf-8") for path in DOCUMENTS}
    anchors = {
        path.name: {_anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.M)} for path, text in texts.items()
    }
    wrong = [
        f"{path.name}: {target}#{anchor}"
        for path, text in texts.items()
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text)
        if not (path.parent / target).exists()
        or (anchor and (target.endswith(".md") or not target) and anchor not in anchors[Path(target or path).name])
    ]
    assert wrong == []


def test_every_picture_is_shown_and_every_picture_that_is_shown_is_there() -> None:
    """`make pictures` makes them. They are no larger than a page needs, because they stay in the history for good."""
    shown = {(path.parent / name).resolve() for path in DOCUMENTS
             for name in re.findall(r'(?:src|srcset)="([^"]+)"', path.read_text("utf-8"))}  # fmt: skip
    kept = set((ROOT / "docs" / "pictures").iterdir())
    assert {path for path in shown if path.parent.name == "pictures"} == kept
    assert sum(path.stat().st_size for path in kept) < 600_000


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_the_words_that_we_have_given_up_do_not_come_back() -> None:
    """In prose; code may name a test or a key of Redis that has such a word, but nothing that was replaced."""
    found = []
    for path in DOCUMENTS:
        text = re.sub(
            r"^```.*?^```$", lambda code: "\n" * code[0].count("\n"), path.read_text("utf-8"), flags=re.M | re.S
        )
        for number, line in enumerate(text.splitlines(), 1):
            names = set(re.findall(r"`([^`]+)`", line)) & REPLACED
            found += [f"{path.name}:{number}: {name} has another name now" for name in sorted(names)]
            prose = re.sub(r"`[^`]+`", "``", line)
            for word, instead in GIVEN_UP.items():
                found += [
                    f"{path.name}:{number}: instead of {match[0]!r} write: {instead}"
                    for match in re.finditer(rf"\b(?:{word})\b", prose, re.I)
                ]
    assert found == []


def test_the_names_that_we_have_given_up_do_not_come_back_in_the_code() -> None:
    found = []
    for path, given_up in [(path, OUT_OF_THE_CODE) for path in PACKAGE.rglob("*.py")] + [
        (path, OUT_OF_THE_CODE - TESTS_MAY_USE) for path in (ROOT / "tests").rglob("*.py")
    ]:
        where = path.relative_to(ROOT).as_posix()
        if path.stem in given_up:
            found.append(f"{where}: the name of the module")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = {getattr(node, field, None) for field in ("name", "id", "attr", "arg")}
            found += [f"{where}:{getattr(node, 'lineno', 0)}: {name}" for name in given_up & names]
    assert found == [], "docs/glossary.md has the words that we use"


def test_a_command_in_a_new_container_takes_the_place_of_the_service() -> None:
    """The entrypoint of an image is its role, which takes no arguments."""
    lines = [line for path in DOCUMENTS for line in re.findall(r"^docker run .*$", path.read_text("utf-8"), re.M)]
    assert any("--entrypoint hiveio" in line for line in lines)
    assert [line for line in lines if re.search(rf" hiveio ({'|'.join(COMMANDS)})\b", line)] == []


def test_each_fault_of_the_table_has_a_test_and_each_test_a_row() -> None:
    rows = set(re.findall(r"^\| (\d+) \|.*`(test_\w+\.py)` test_\d+ \|$", page("faults.md"), re.M))
    marked: set[tuple[str, str]] = set()
    for path in (ROOT / "tests" / "faults").glob("test_*.py"):
        for number, name in re.findall(
            r"@pytest\.mark\.fault\((\d+)\)(?:\n@.*)*\n(?:async )?def test_(?:fault_)?(\d+)_", path.read_text()
        ):
            assert int(number) == int(name), f"{path.name}: test_{name} is marked as {number}"
            marked.add((number, path.name))
    assert rows == marked


def test_a_page_names_tests_that_exist() -> None:
    functions = {name for path in TESTS for name in re.findall(r"\bdef (test_\w+)", path.read_text())}
    files = {path.relative_to(ROOT).as_posix() for path in TESTS}
    files |= {Path(name).name for name in files}
    files |= set(re.findall(r"^# (test_\w+\.py)$", page("tutorial.md"), re.M))  # what its reader writes
    unknown = [
        f"{path.name}: {name}"
        for path in sorted((ROOT / "docs").glob("*.md"))
        for name in re.findall(r"`((?:tests/\w+/)?test_\w+(?:\.py)?)`", path.read_text())
        if name not in (files if name.endswith(".py") else functions)
    ]
    assert unknown == []


def test_each_bug_of_the_track_record_has_one_row_of_three_cells() -> None:
    rows = [line for line in page("track-record.md").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    wrong = [row for row, found in zip(rows, cells, strict=True) if len(found) != 3 or not all(found)]
    assert wrong == []
    bugs = [found for found in cells if found[0] not in ("what happened", "---")]
    assert twice((found[0], "") for found in bugs) == []
    assert twice((found[0][:START], found[2]) for found in bugs) == [], "two rows of one bug and its test"


def test_each_fault_and_each_point_of_the_checker_has_one_row() -> None:
    points, faults = page("faults.md").split("## The faults")
    assert twice((number, "") for number in re.findall(r"^\| (\d+) \|", points, re.M)) == []
    assert twice(re.findall(r"^\| (\d+) \|.*`(test_\w+\.py)` test_\w+ \|$", faults, re.M)) == []


def test_each_change_is_in_the_changelog_once() -> None:
    """A merge keeps the entries of both branches, so an entry that both have edited would be there twice."""
    entries = re.findall(r"^- (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert twice((entry[:START], "") for entry in entries) == []
    titles = re.findall(r"^- \*\*([^*]+)\.\*\*", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert twice((title, "") for title in titles) == []


def twice(things: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [thing for thing, times in Counter(things).items() if times > 1]


def rows_of_modules(text: str) -> list[tuple[list[str], str]]:
    """The names in the first cell of a row, and what the other cell says of them."""
    rows = re.findall(r"^\| ((?:`[\w/]+`(?:, )?)+) \| (.*) \|$", text, re.M)
    return [(re.findall(r"`([\w/]+)`", names), said) for names, said in rows]


def test_the_architecture_lists_each_module_and_no_other() -> None:
    """The modules of a package are named in what its row says; those of transaction/ have a table of their own."""
    everywhere, transaction = page("architecture.md").split("In `transaction/`:")
    listed = [f"transaction/{name}" for names, _ in rows_of_modules(transaction) for name in names if name != "lua/"]
    for names, said in rows_of_modules(everywhere):
        for name in names:
            inside = re.findall(r"`(\w+)`", said) if name.endswith("/") else [""]
            listed += [name + module for module in inside]
    assert sorted(listed) == sorted(MODULES)


def test_the_architecture_says_where_to_change_what() -> None:
    """Each file that it names is there, and has in it what it is named for."""
    text = page("architecture.md").split("## Where to change what")[1]
    files = {name: [path for path in (PACKAGE / name, ROOT / name) if path.exists()] for name in _files(text)}
    assert [name for name, found in files.items() if not found] == []
    named = re.findall(r"`(\w+)` (?:in|of) `([\w/]+\.(?:py|lua))`", text)
    assert len(named) > 3
    assert [pair for pair in named if pair[0] not in files[pair[1]][0].read_text("utf-8")] == []


def _files(text: str) -> list[str]:
    return re.findall(r"`([\w/-]+(?:\.py|\.lua|/))`", text)


def test_the_model_checker_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        spec.check.main(["--help"])
    assert ended.value.code == 0
    assert "--short" in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        spec.check.main(["no such scenario"])
    assert refused.value.code == 2


def test_the_modules_of_the_architecture_import_from_the_rows_above() -> None:
    rows = rows_of_modules(page("architecture.md").split("In `transaction/`:")[0])
    row = {name.rstrip("/"): number for number, (names, _) in enumerate(rows) for name in names}
    wrong = [
        f"{own} imports {other}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (own := room(path)) != "__init__"
        for name in imported(path)
        if name.startswith("hiveio.") and (other := name.split(".")[1]) in row and row[other] > row[own]
    ]
    assert wrong == []
