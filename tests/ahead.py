"""What takes long and disturbs nobody is done ahead: beside the tests that come before the one that looks at it.

@pytest.mark.ahead(function, "argument")
def test_something(ahead: Ahead) -> None:
    assert ahead.result(function, "argument") == ...

The marks of the tests that are going to run are the jobs, in the order of the tests. A process of its own does one
after the other, with less of a claim to the processor than the tests have, whose patches and clocks it does not share.
``function`` is one of a module; its arguments and its result can be pickled. It has at least one argument, since a mark
with a function alone would decorate it.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
WITHIN_S = 1200.0  # for all jobs before it, too; each job has a bound of its own
NICE = 10

Job = tuple[Callable[..., Any], tuple[Any, ...]]


class Ahead:
    """The jobs, which are begun at once; a context manager, at whose end what is not done is left."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        named = {_named(*job): job for job in jobs}
        self._jobs = [*named.values()]
        self._names = {name: str(number) for number, name in enumerate(named)}

    def __enter__(self) -> "Ahead":
        self._kept = tempfile.TemporaryDirectory(prefix="hiveio-ahead-", ignore_cleanup_errors=True)
        self.folder = Path(self._kept.name)
        (self.folder / "jobs").write_bytes(pickle.dumps(self._jobs))
        with (self.folder / "console").open("wb") as console:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.ahead", str(self.folder)],
                cwd=ROOT,
                env=os.environ | {"TMPDIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process.poll() is None:
            process = psutil.Process(self._process.pid)
            for each in (process, *process.children(recursive=True)):
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    continue
        self._process.wait(30)
        self._kept.cleanup()

    def result(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the job returned, once it has. AssertionError if it raised, or is not done in time."""
        file = self.folder / self._names[_named(function, arguments)]
        until = time.monotonic() + WITHIN_S
        while not file.exists():
            ended = self._process.poll() is not None and not file.exists()
            if ended or time.monotonic() > until:
                said = (self.folder / "console").read_text("utf-8", "replace")
                raise AssertionError(f"{function.__qualname__}{arguments} was not done ahead: {said[-4000:]}")
            time.sleep(0.05)
        result, error = pickle.loads(file.read_bytes())
        assert not error, error
        return result


def _named(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    return f"{function.__module__}.{function.__qualname__}{arguments!r}"


def main(folder: Path) -> None:
    os.nice(NICE)
    tests = os.getppid()
    for number, (function, arguments) in enumerate(pickle.loads((folder / "jobs").read_bytes())):
        if os.getppid() != tests:
            return
        try:
            done = (function(*arguments), "")
        except Exception:
            done = (None, traceback.format_exc())
        making = folder / f"{number}.making"
        making.write_bytes(pickle.dumps(done))
        making.rename(folder / str(number))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
