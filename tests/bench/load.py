"""Load on an HTTP port from a process of its own: wrk where it is installed, else our generator."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, TypeAlias

HERE = Path(__file__).parent
Running: TypeAlias = "subprocess.Popen[str]"


class Request(NamedTuple):
    """``{}`` in the path becomes a number below ``population``, another one for each request, and ``{other}`` in the
    body one of the others, by chance. ``numbers`` are put into the path instead, if there are any: as many as the
    population. ``refusable``: 422 is an answer like any other."""

    method: str
    path: str
    body: str = ""
    population: int = 1
    refusable: bool = False
    numbers: tuple[int, ...] = ()


class Answered(NamedTuple):
    requests: int  # answered, whatever the answer
    refused: int  # of those with 422, where the request says that this is no failure
    failed: int  # of those with another status that is no success, and broken connections
    seconds: float
    p50_ms: float
    p99_ms: float
    ceiling: float  # requests/s that the generator could make on a core of its own, from its CPU time


class Generator:
    """``name`` is wrk or own; raises ValueError for wrk where it is not installed."""

    def __init__(self, name: str = "") -> None:
        found = shutil.which("wrk")
        if name == "wrk" and found is None:
            raise ValueError("wrk is not installed; on Debian: apt install wrk")
        self.wrk = None if name == "own" else found

    @property
    def name(self) -> str:
        return "wrk" if self.wrk else "our own generator (Python)"

    def start(self, port: int, request: Request, clients: int, seconds: float, first: int = 0) -> Running:
        last = [request.method, request.path, request.body, str(request.population), str(first)]
        last += ["refusable" if request.refusable else "", ",".join(map(str, request.numbers))]
        if self.wrk:
            whole = max(1, round(seconds))  # wrk takes whole seconds
            options = [f"-c{clients}", "-t1", f"-d{whole}s", "--timeout", "30s", "-s", str(HERE / "wrk.lua")]
            command = [self.wrk, *options, f"http://127.0.0.1:{port}", "--", *last]
        else:
            command = [sys.executable, "-m", "tests.bench.generator", str(port), str(clients), str(seconds), *last]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE.parent.parent
        )

    def collect(self, process: Running, cpu_s: float = 0.0) -> Answered:
        out, err = process.communicate(timeout=300)
        lines = [line for line in out.splitlines() if line.startswith("{")]
        if process.returncode or not lines:
            raise RuntimeError(f"the load generator failed: {out}{err}")
        found = json.loads(lines[-1])
        return Answered(**found, ceiling=found["requests"] / cpu_s if cpu_s else 0.0)

    def run(self, port: int, request: Request, clients: int, seconds: float, first: int = 0) -> Answered:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = self.start(port, request, clients, seconds, first)
        process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return self.collect(process, used)
