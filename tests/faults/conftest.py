"""Which faults run: by default a short mix, with HIVEIO_FAULT_NUMBERS=all all of them, with 9,33 these."""

import os
from collections.abc import Iterator

import pytest

from tests.conftest import required
from tests.faults.stage import Broker

MIX = {6, 9, 18, 33, 41, 42, 43, 66, 69, 70, 71}  # faults of the short mix: each at another place, all quick


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """One Kafka for the numbered faults, with a proxy: they may kill it, and leave it running."""
    with required("kafka"), Broker() as service:
        yield service


def _numbers(item: pytest.Item) -> set[int]:
    mark = item.get_closest_marker("fault")
    return {number for number in mark.args if isinstance(number, int)} if mark is not None else set()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = os.environ.get("HIVEIO_FAULT_NUMBERS", "mix")
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        numbers = _numbers(item)
        if asked == "all" or item.get_closest_marker("fault") is None:
            wanted = True
        elif asked == "mix":
            wanted = not numbers or bool(numbers & MIX)
        else:
            wanted = bool(numbers & {int(number) for number in asked.split(",")})
        (kept if wanted else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept
