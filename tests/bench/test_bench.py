"""That the benchmarks run, that every request in them succeeds, and that nothing acknowledged is lost. No timings."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from rich.console import Console

from tests.bench import idle
from tests.bench.__main__ import BENCHES, main
from tests.bench.bench import Bench, Lost
from tests.bench.load import Generator
from tests.bench.measure import Row, Sample, Usage, alternate, total
from tests.bench.peers.environment import environment
from tests.bench.roles import QUOTE
from tests.conftest import required
from tests.process import ROOT
from tests.services import Kafka, Redis


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    """A broker of its own: the services of a benchmark have the topics of their names."""
    with required("kafka"), Kafka() as service:
        yield service


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    """A server of its own, as the names of topics are part of its keys."""
    with required("redis"), Redis() as service:
        yield service


@pytest.fixture
def bench(kafka: Kafka, redis: Redis) -> Bench:
    console = Console(width=150, quiet=True)
    own = Generator("own")  # wrk takes whole seconds
    return Bench(
        kafka,
        redis,
        own,
        console,
        0.3,
        1,
        clients=(3,),
        records=1_000,
        aggregates=(10, 50),
        instances=(1, 2),
        partitions=(2,),
    )


AHEAD = {"peers": [pytest.mark.ahead(environment, print)]}
NEEDS = {"peers": "peers", "projections": "postgres"}  # beyond Kafka and Redis


@pytest.mark.parametrize("name", [pytest.param(name, marks=AHEAD.get(name, [])) for name in BENCHES])
def test_runs_and_every_request_succeeds(
    bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(idle, "PARTITIONS", (2,))
    bench.before = tmp_path  # another checkout of this version
    for part in (".venv", "images"):
        (tmp_path / part).symlink_to(ROOT / part)
    with required(NEEDS.get(name, "kafka")):
        BENCHES[name](bench)  # raises Lost when an acknowledged event or command is not there
    assert bench.rows
    assert sum(row.failed for row in bench.rows) == 0
    assert all(row.median("rate") > 0 for row in bench.rows if name not in ("idle", "partitions"))
    json.dumps([row.plain() for row in bench.rows])


def test_a_request_that_fails_is_counted(bench: Bench) -> None:
    with bench.role("base", "bench:Quotes") as role:
        measure = bench.http(role, QUOTE._replace(body='{"type":"Quote","payload":{}}'), 2)
        assert measure().failed > 0


def test_what_is_missing_is_noticed(bench: Bench) -> None:
    with pytest.raises(Lost, match="3 were acknowledged and 2 are there"):
        bench.check("events", 2, 3)


def test_wrk_and_our_generator_tell_the_same(bench: Bench) -> None:
    try:
        wrk = Generator("wrk")
    except ValueError:
        pytest.skip("wrk is not installed")
    with bench.bare() as bare:
        for generator in (wrk, bench.generator):
            answered = generator.run(bare.port or 0, QUOTE, 2, 1)
            assert answered.requests > 0
            assert answered.failed == 0
            assert 0 < answered.p50_ms <= answered.p99_ms
            assert answered.ceiling > 0


def test_ratios_are_taken_round_by_round() -> None:
    def sample(rate: float) -> Sample:
        return Sample(rate, 1, 1, 1)

    row = Row("bench", "what", 1, (sample(50), sample(100), sample(30)), (sample(100), sample(400), sample(100)))
    assert row.ratio("rate") == 0.3
    assert total([sample(100)], [sample(300)])[0].rate == pytest.approx(75)


def test_rounds_alternate() -> None:
    order: list[str] = []

    def measure(name: str) -> Sample:
        order.append(name)
        return Sample(1, 1, 1, 1)

    alternate({"a": lambda: measure("a"), "b": lambda: measure("b")}, 2, lambda text: None)
    assert order == ["a", "b", "b", "a"]


def test_no_part_of_the_cpu_is_negative_where_the_worker_comes_later() -> None:
    """The benchmark of the fold showed -5,300 µs: the master had counted as its own worker."""
    worker = (
        "import threading, time; sum(range(5_000_000)); threading.Thread(target=time.sleep, args=(60,)).start();"
        "print(flush=True); time.sleep(60)"
    )
    master = (
        "import subprocess, sys, time; sum(range(10_000_000)); print(flush=True); input();"
        f"subprocess.run([sys.executable, '-c', {worker!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", master], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        usage = Usage(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        spent = usage.each_us(1)
        for each in (*psutil.Process(process.pid).children(), process):
            each.kill()
    assert min(spent.values()) >= 0
    assert 0 < spent["loop"] <= spent["all"]


def test_an_unknown_name_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["steam"]) == 2
    assert "no benchmark is named steam" in capsys.readouterr().out


def test_another_version_needs_a_checkout_that_is_set_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in (["before"], ["before", "--before", str(tmp_path)]):
        assert main(arguments) == 2
        assert "before needs --before DIR" in capsys.readouterr().out
