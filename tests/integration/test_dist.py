"""What `make dist` makes, installed into an environment of its own, as a user has it."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import hiveio
from hiveio.roles import ROLES
from tests.conftest import require
from tests.process import ROOT
from tests.services import jars

VERSION = hiveio.__version__
INSTALLED_S = 300
UV = str(Path(sys.executable).with_name("uv"))
# An actor whose types are those that a checker has to know, and one wrong line for it to find.
ACTOR = """\
from hiveio import Actor, Command, Context, Event, Model
from hiveio.testing import given


class Add(Command):
    amount: int


class Added(Event):
    amount: int


class Sum(Model):
    amount: int = 0


class SumActor(Actor):
    path = "/sums/{id}"

    def perform(self, state: Sum | None, command: Add, context: Context) -> Added:
        return Added(command.amount)

    def replay(self, state: Sum | None, event: Added) -> Sum:
        return Sum((state.amount if state else 0) + event.amount)


def test_it_is_added() -> None:
    given(SumActor).when(Add(2)).then(Added(2)).then_state(Sum(2))
"""
WRONG = 'Added(amount="two")  # wrong\n'


def call(*command: str | Path, at: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """With nothing of this environment in its way."""
    own = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(at), "PYTHONDONTWRITEBYTECODE": "1", **environ}
    return subprocess.run(
        [str(word) for word in command], cwd=at, env=own, capture_output=True, text=True, timeout=100, check=False
    )


def made(folder: Path) -> Path:
    done = subprocess.run(
        ["make", "dist", f"DIST={folder}"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def installed() -> Path:
    """The Python of an environment with the wheel and hiveio[dev], as pip resolves them today. It is made anew when
    what is installed into it has changed."""
    origin = (ROOT / "runtime/pyproject.toml").read_bytes() + sys.version.encode()
    home = jars.cache() / f"installed-{hashlib.sha256(origin).hexdigest()[:12]}"
    python = home / "bin" / "python"
    with jars.exclusive(jars.cache() / "installed.making"), jars.scratch(jars.cache() / "installed.dist") as folder:
        wheel = made(folder) / f"hiveio-{VERSION}-py3-none-any.whl"
        install = [UV, "pip", "install", "--quiet", "--python", str(python)]
        words = [
            *(
                [[UV, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)]]
                if not python.exists()
                else []
            ),
            [*install, f"hiveio[dev] @ {wheel.as_uri()}", "mypy", "pyright", "pytest"],
            [*install, "--reinstall-package", "hiveio", "--no-deps", str(wheel)],  # of today's source
        ]
        for command in words:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALLED_S, check=False)
            if done.returncode:
                shutil.rmtree(home, ignore_errors=True)
                raise RuntimeError(f"{command} failed: {done.stderr}")
    return python


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return installed()
    except RuntimeError as error:
        require("index", error)


def test_wheel_and_sdist_have_what_they_need_and_nothing_of_this_machine(tmp_path: Path) -> None:
    folder = made(tmp_path / "dist")
    wheel, sdist = folder / f"hiveio-{VERSION}-py3-none-any.whl", folder / f"hiveio-{VERSION}.tar.gz"
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [wheel.name, sdist.name]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"hiveio-{VERSION}.dist-info/METADATA").decode()
    package = ROOT / "runtime" / "hiveio"
    files = {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("hiveio/")} == files
    assert {"hiveio/py.typed", f"hiveio-{VERSION}.dist-info/licenses/LICENSE"} <= names
    assert f"\nVersion: {VERSION}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "\nDescription-Content-Type: text/markdown\n" in metadata
    assert {"dev", "postgres"} == {line.split()[1] for line in metadata.splitlines() if line.startswith("Provides-Ext")}
    with tarfile.open(sdist) as archive:
        assert {f"hiveio-{VERSION}/{name}" for name in (*files, "pyproject.toml", "LICENSE", "README.md")} <= set(
            archive.getnames()
        )
    again = made(tmp_path / "again")
    assert (again / wheel.name).read_bytes() == wheel.read_bytes()
    assert (again / sdist.name).read_bytes() == sdist.read_bytes()


@pytest.mark.timeout(INSTALLED_S + 120)
def test_an_installed_package_has_its_command_types_and_tests(python: Path, tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(ACTOR)
    said = call(python.with_name("hiveio"), "--version", at=tmp_path)
    assert said.stdout == f"hiveio {VERSION}\n"
    where = call(python, "-c", "import hiveio; print(hiveio.__file__)", at=tmp_path).stdout
    assert "site-packages" in where
    tests = call(python, "-m", "pytest", "-q", "-W", "error", "sums.py", at=tmp_path)
    assert tests.returncode == 0, tests.stdout + tests.stderr
    for checker in (["mypy", "--strict"], ["pyright", "--pythonpath", str(python)]):
        good = call(python, "-m", *checker, "sums.py", at=tmp_path)
        assert good.returncode == 0, good.stdout + good.stderr
        (tmp_path / "wrong.py").write_text(ACTOR + WRONG)
        wrong = call(python, "-m", *checker, "wrong.py", at=tmp_path)
        assert wrong.returncode == 1, wrong.stdout + wrong.stderr
        assert f"wrong.py:{len((ACTOR + WRONG).splitlines())}:" in wrong.stdout


@pytest.mark.timeout(INSTALLED_S + 120)
def test_a_new_project_is_tested_and_checked_by_what_its_readme_installs(python: Path, tmp_path: Path) -> None:
    roles = [word for role in ROLES for word in ("--role", role)]
    written = call(python.with_name("hiveio"), "new", "shop", *roles, at=tmp_path)
    assert written.returncode == 0, written.stderr
    shop = tmp_path / "shop"
    # Nothing is missing, so nothing is asked of an index.
    missing = call(
        UV, "pip", "install", "--offline", "--dry-run", "--python", python, "-r", "requirements.txt", at=shop
    )
    assert missing.returncode == 0, missing.stderr
    assert "Would make no changes" in missing.stderr
    for command in (["pytest", "-q", "-W", "error"], ["mypy"], ["pyright", "--pythonpath", str(python)]):
        done = call(python, "-m", *command, at=shop)
        assert done.returncode == 0, done.stdout + done.stderr


def test_an_installed_package_serves(python: Path, tmp_path: Path) -> None:
    (tmp_path / "quotes.py").write_text('raise RuntimeError("the actor is loaded")')
    served = call(python.with_name("hiveio"), "serve", "base", at=tmp_path, ACTOR_MODULE="quotes", PORT="0")
    assert served.returncode != 0
    assert "the actor is loaded" in served.stderr
