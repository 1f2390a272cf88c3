"""Results for people (a table on the terminal) and for programs (JSON); and the machine they come from."""

import os
import platform
import statistics
from collections.abc import Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]
from rich.table import Table

from tests.bench.measure import Row

THREADS = ("loop", "threads", "kafka")


def table(title: str, rows: Sequence[Row], against: str = "raw", parts: Sequence[str] = ()) -> Table:
    """Rates, times, ``parts``, and ratios to the row ``against``; for rows without a rate, all their parts."""
    shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("", no_wrap=True)
    if not any(row.median("rate") for row in rows):
        for name in rows[0].parts:
            shown.add_column(name, justify="right")
        for row in rows:
            shown.add_row(row.what, *(_number(row.part(name) or 0.0) for name in row.parts))
        return shown
    for name in ("clients", "/s", "p50 ms", "p99 ms", "CPU µs"):
        shown.add_column(name, justify="right", no_wrap=True)
    split = any(row.part(THREADS[0]) is not None for row in rows)
    if split:
        shown.add_column("+".join(THREADS), justify="right", style="dim", no_wrap=True)
    for name in parts:
        shown.add_column(name, justify="right", no_wrap=True)
    compared = ("rate", "p50_ms", "cpu_us") if any(row.raw for row in rows) else ()
    for name in ("/s", "p50", "CPU")[: len(compared)]:
        shown.add_column(f"{name} of {against}", justify="right", style="bold", no_wrap=True)
    shown.add_column("failed" if any(row.failed for row in rows) else "", justify="right", style="red", no_wrap=True)
    for row in rows:
        ratios = [row.ratio(name) for name in compared]
        spent = [row.part(name) for name in THREADS]
        shown.add_row(
            row.what,
            str(row.clients) if row.clients else "",
            f"{row.median('rate'):,.0f}",
            _number(row.median("p50_ms")),
            _number(row.median("p99_ms")),
            _number(row.median("cpu_us")),
            *(
                ["" if None in spent else "+".join(f"{part:.0f}" for part in spent if part is not None)]
                if split
                else []
            ),
            *(_number(row.part(name) or 0.0) for name in parts),
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            str(row.failed or ""),
        )
    return shown


def _number(value: float) -> str:
    return "" if not value else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def ceiling(ceilings: Sequence[float]) -> float:
    """Requests/s of the generator on a core of its own: the median of all runs."""
    return statistics.median(ceilings) if ceilings else 0.0
