"""One place for each version: what the images install is a part of requirements.lock, and the release is named once."""

import re
import tomllib
from pathlib import Path
from typing import Any

import hiveio

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "runtime/pyproject.toml").read_text())


def pins(path: str) -> dict[str, str]:
    """Of a lock: ``name==version`` with its marker and hashes, by name."""
    found = re.findall(r"^([a-z][^=\n]*)==((?:.*\\\n)*.*)$", (ROOT / path).read_text(), re.MULTILINE)
    return {name: " ".join(re.findall(r"^\S+|sha256:\w+", pin)) for name, pin in found}


def test_the_images_install_what_everybody_tests_with() -> None:
    everything, runtime = pins("requirements.lock"), pins("runtime/requirements.lock")
    assert set(PROJECT["project"]["dependencies"]) <= set(runtime)
    assert runtime == {name: pin for name, pin in everything.items() if name in runtime}, "run: make lock"
    assert not {"pytest", "mypy", "httpx"} & set(runtime)
    assert all("sha256:" in pin for pin in runtime.values())


def test_the_build_is_locked_too() -> None:
    build = pins("runtime/build.lock")
    assert {name.partition(" ")[0].replace("_", "-") for name in PROJECT["build-system"]["requires"]} <= set(build)
    assert all("sha256:" in pin for pin in build.values())


def test_the_release_has_one_version() -> None:
    version = PROJECT["project"]["version"]
    assert hiveio.__version__ == version
    bake = (ROOT / "docker-bake.hcl").read_text()
    assert re.search(r'variable "VERSION" {\s+default = "([^"]+)"', bake)[1] == version  # type: ignore[index]
