"""The notes of a release come from CHANGELOG.md, and the workflows name what is there."""

import re
import tomllib
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

import hiveio
from tests.process import ROOT
from tests.release import Wrong, notes, sections, version

CHANGELOG = """\
# Changelog
All notable changes.

## Unreleased

## 0.2.0 - 2026-12-01
### Added
- One.

## 0.1.0 - 2026-11-01
- Two.
"""
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def test_the_notes_are_the_section_of_the_version() -> None:
    assert notes("v0.2.0", CHANGELOG, "0.2.0") == "### Added\n- One."
    assert notes("v0.1.0", CHANGELOG, "0.1.0") == "- Two."


@pytest.mark.parametrize(
    ("tag", "changelog", "said"),
    [
        ("v0.2.1", CHANGELOG, "the tag v0.2.1 does not fit the version 0.2.0"),
        ("v0.2.0", CHANGELOG.replace("## Unreleased\n", "## Unreleased\n- Three.\n"), "entries under Unreleased"),
        ("v0.2.0", CHANGELOG.replace(" - 2026-12-01", ""), "no heading ## 0.2.0 - YYYY-MM-DD"),
        ("v0.2.0", CHANGELOG.replace("### Added\n- One.\n", ""), "says nothing about 0.2.0"),
        ("v0.2.0", CHANGELOG.replace("0.2.0", "0.3.0"), "no heading ## 0.2.0"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_published(tag: str, changelog: str, said: str) -> None:
    with pytest.raises(Wrong, match=re.escape(said)):
        notes(tag, changelog, "0.2.0")


def test_the_changelog_and_the_code_can_be_read() -> None:
    assert version() == hiveio.__version__
    assert "Unreleased" in sections((ROOT / "CHANGELOG.md").read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_names_actions_by_their_commit_and_targets_that_exist(path: Any) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}  # a job that needs more says so itself
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, job in workflow["jobs"].items():
        if "uses" in job:  # another of our workflows
            assert (ROOT / job["uses"]).exists()
            continue
        assert job["timeout-minutes"] <= 90, name
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step
            for target in re.findall(r"^make ([a-z]+)", step.get("run", ""), re.MULTILINE):
                assert target in targets, step


def test_the_pythons_that_are_promised_are_tested() -> None:
    (ci,) = [yaml.safe_load(path.read_text()) for path in WORKFLOWS if path.name == "ci.yml"]
    tested = ci["jobs"]["quick"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "runtime/pyproject.toml").read_text())["project"]
    promised = [text.rpartition(" ")[2] for text in project["classifiers"] if re.search(r":: 3\.\d+$", text)]
    assert tested == promised
    assert project["requires-python"] == f">={tested[0]}"
    table = (ROOT / "docs/releasing.md").read_text()
    assert f"| Python | {', '.join(tested)} |" in table
