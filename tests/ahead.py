"""Work that takes long and disturbs no test is done ahead: while the tests run that come before the one that needs it.

@pytest.mark.ahead(function, "argument")
def test_something(ahead: Ahead) -> None:
    assert ahead.result(function, "argument") == ...

The marks of the tests that are going to run are the jobs, in the order of the tests. A process of its own does one
after the other, with less of a claim to the processor than the tests have, whose patches and clocks it does not share.
``function`` is one of a module; its arguments and its result can be pickled. It has at least one argument, since a mark
with a function alone would decorate it.

Where several processes run the tests, one process does the jobs for all of them.
"""

import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
WITHIN_S = 1200.0  # for all jobs before it, too; each job has a bound of its own
NICE = 10

Job = tuple[Callable[..., Any], tuple[Any, ...]]


class Ahead:
    """The jobs that the process ``pid`` does in ``folder``, and what they returned."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder = folder
        self.pid = pid

    def ask(self, jobs: Sequence[Job]) -> None:
        """Have these jobs done, each once. All who run the same tests ask for the same, and the first one counts."""
        making = self.folder / f"jobs.{os.getpid()}.making"
        making.write_bytes(pickle.dumps([*{_name(*job): job for job in jobs}.items()]))
        making.rename(self.folder / "jobs")

    def result(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the job returned, once it has. AssertionError if it raised, or is not done in time."""
        file = self.folder / _name(function, arguments)
        until = time.monotonic() + WITHIN_S
        while not file.exists():
            ended = self._has_ended() and not file.exists()
            if ended or time.monotonic() > until:
                said = (self.folder / "console").read_text("utf-8", "replace")
                raise AssertionError(f"{function.__qualname__}{arguments} was not done ahead: {said[-4000:]}")
            time.sleep(0.05)
        result, error = pickle.loads(file.read_bytes())
        assert not error, error
        return result

    def _has_ended(self) -> bool:
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True


@contextmanager
def working_ahead() -> Iterator[Ahead]:
    """A process that does what it is asked for; at the end, what is not done is left."""
    with tempfile.TemporaryDirectory(prefix="hiveio-ahead-", ignore_cleanup_errors=True) as folder:
        with Path(folder, "console").open("wb") as console:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.ahead", folder],
                cwd=ROOT,
                env=os.environ | {"TMPDIR": folder},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Ahead(Path(folder), process.pid)
        finally:
            if process.poll() is None:
                found = psutil.Process(process.pid)
                for each in (found, *found.children(recursive=True)):
                    try:
                        each.kill()
                    except psutil.NoSuchProcess:
                        continue
            process.wait(30)


def _name(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """The file of a result: the same in every process."""
    job = repr([_spelled(function), *map(_spelled, arguments)])
    return hashlib.sha256(job.encode()).hexdigest()


def _spelled(value: Any) -> str:
    if isinstance(value, str | int | float | Path):
        return repr(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"a job takes texts, numbers, paths and functions; {value!r} may be printed otherwise elsewhere")


def main(folder: Path) -> None:
    os.nice(NICE)
    tests = os.getppid()
    asked = folder / "jobs"
    while not asked.exists():
        if os.getppid() != tests:
            return
        time.sleep(0.05)
    for name, (function, arguments) in pickle.loads(asked.read_bytes()):
        if os.getppid() != tests:
            return
        try:
            done = (function(*arguments), "")
        except Exception:
            done = (None, traceback.format_exc())
        making = folder / f"{name}.making"
        making.write_bytes(pickle.dumps(done))
        making.rename(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
