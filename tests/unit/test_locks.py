"""One place for each version: what the images install is a part of requirements.lock, and the release is named once."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import hiveio

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "runtime/pyproject.toml").read_text())


def pins(path: str) -> dict[str, str]:
    """Of a lock: ``name==version`` with its marker and hashes, by name."""
    found = re.findall(r"^([a-z][^=\n]*)==((?:.*\\\n)*.*)$", (ROOT / path).read_text(), re.MULTILINE)
    return {name: " ".join(re.findall(r"^\S+|sha256:\w+", pin)) for name, pin in found}


def needed(of: str) -> list[Requirement]:
    """``dependencies``, or the name of an extra."""
    project = PROJECT["project"]
    return [Requirement(text) for text in project.get(of) or project["optional-dependencies"][of]]


@pytest.mark.parametrize("of", ["dependencies", *PROJECT["project"]["optional-dependencies"]])
def test_each_dependency_has_bounds_and_the_version_that_is_tested_fits_in_them(of: str) -> None:
    """The lowest version is the tested one, as far as the bound names it: nothing older is promised."""
    locked = {name: pin.removeprefix("==").split()[0] for name, pin in pins("requirements.lock").items()}
    for requirement in needed(of):
        bounds = {bound.operator: bound.version for bound in requirement.specifier}
        assert bounds.keys() == {">=", "<"}, f"{requirement}: a lower and an upper bound"
        tested = locked[requirement.name]
        assert tested in requirement.specifier, f"{requirement}: {tested} is tested"
        assert f"{tested}.".startswith(f"{bounds['>=']}."), f"{requirement}: nothing older than {tested} is tested"


def test_the_images_install_what_everybody_tests_with() -> None:
    everything, runtime = pins("requirements.lock"), pins("runtime/requirements.lock")
    assert {each.name for each in needed("dependencies")} <= set(runtime)
    assert runtime == {name: pin for name, pin in everything.items() if name in runtime}, "run: make lock"
    assert not {"pytest", "mypy", "httpx"} & set(runtime)
    assert all("sha256:" in pin for pin in runtime.values())


def test_the_build_is_locked_too() -> None:
    build = pins("runtime/build.lock")
    required = {Requirement(text).name.replace("_", "-") for text in PROJECT["build-system"]["requires"]}
    assert required <= set(build)
    assert all("sha256:" in pin for pin in build.values())


def test_the_release_has_one_version() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"], "flit takes it from hiveio.__version__"
    bake = (ROOT / "docker-bake.hcl").read_text()
    assert re.search(r'variable "VERSION" {\s+default = "([^"]+)"', bake)[1] == hiveio.__version__  # type: ignore[index]


def test_the_package_has_the_license_of_the_repository() -> None:
    """A copy: an archive takes no file from outside of its folder."""
    assert (ROOT / "runtime/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
