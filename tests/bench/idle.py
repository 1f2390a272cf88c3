"""The cost of an idle role: its memory, its threads, and the time from its start to its first answer."""

import socket
import statistics
import time

import psutil  # type: ignore[import-untyped]

from tests.bench.bench import Bench, Served
from tests.bench.measure import Row, Sample, memory_mb
from tests.process import wait_until

ROLES = {
    "base": "bench:Quotes",
    "producer": "bench:Visits",
    "consumer": "bench:Views",
    "stream-processor": "tally:Tallies",
}
PARTITIONS = (200, 1_000)


def idle(bench: Bench) -> None:
    """Memory of worker and master, and the start, of each role in turn."""
    for name, actor in ROLES.items():
        answered, ready, worker, master = [], [], [], []
        for _ in range(bench.rounds):
            role = bench.role(name, actor, EVENT_STORE_GROUP_ID=bench.topic())
            if name == "consumer":
                bench.make_topic(role.environ["EVENT_STORE_TOPIC"])
            started = time.monotonic()
            role.wait = False
            with role:
                first_answer(role)
                answered.append(time.monotonic() - started)
                role.ready()
                ready.append(time.monotonic() - started)
                time.sleep(1.0)  # what the start left behind is gone
                worker.append(memory_mb(role.workers()[0].pid))
                master.append(memory_mb(role.process.pid))
        figures = {
            "first answer s": statistics.median(answered),
            "ready s": statistics.median(ready),
            **{f"worker {key}": statistics.median(memory[key] for memory in worker) for key in worker[0]},
            **{f"master {key}": statistics.median(memory[key] for memory in master) for key in master[0]},
        }
        bench.add([Row("idle", f"hiveio/{name}", 0, (Sample(0, 0, 0, 0, parts=figures),))])
    bench.show("idle")


def partitions(bench: Bench) -> None:
    """A stream processor with 200 and 1,000 partitions: its start without a log and with one, threads, idle CPU."""
    for count in PARTITIONS:
        started_and_idle(bench, count)
    bench.show("partitions")


def started_and_idle(bench: Bench, count: int) -> None:
    name, actor = "stream-processor", ROLES["stream-processor"]
    figures: dict[str, list[dict[str, float]]] = {"new log": [], "existing log": []}
    for _ in range(bench.rounds):
        topic = bench.topic()
        for samples in figures.values():
            role = bench.role(name, actor, EVENT_STORE_TOPIC=topic, EVENT_STORE_PARTITIONS=str(count))
            started = time.monotonic()
            role.wait = False
            with role:
                role.ready(120)
                ready_s = time.monotonic() - started
                time.sleep(bench.seconds)  # what the start left behind is gone
                worker = psutil.Process(role.workers()[0].pid)
                spent_s, since = sum(worker.cpu_times()[:2]), time.monotonic()
                time.sleep(bench.seconds)
                idle_s = time.monotonic() - since
                cpu = 100 * (sum(worker.cpu_times()[:2]) - spent_s) / idle_s
                samples.append({"ready s": ready_s, "threads": worker.num_threads(), "idle CPU %": cpu})
    for log, samples in figures.items():
        medians = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        bench.add([Row("partitions", f"{count:,} partitions, {log}", 0, (Sample(0, 0, 0, 0, parts=medians),))])


def first_answer(role: Served) -> None:
    """Return with the first answer to /ping, whatever it says."""

    def answers() -> bool:
        if not role.port:
            return False
        with socket.socket() as client:
            client.settimeout(5)
            try:
                client.connect(("127.0.0.1", role.port))
                client.sendall(b"GET /ping HTTP/1.1\r\nHost: bench\r\n\r\n")
                return bool(client.recv(1))
            except OSError:
                return False

    wait_until(answers, 30, "the first answer")
