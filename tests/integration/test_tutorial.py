"""docs/tutorial.md, played with processes."""

import shutil
from pathlib import Path

from tests.conftest import require
from tests.services import Kafka, Redis
from tests.tutorial import Tutorial, blocks, play


def test_the_tutorial_comes_out_as_it_says(tmp_path: Path, kafka: Kafka, redis: Redis, topic: str) -> None:
    if shutil.which("curl") is None:
        require("curl", "no curl in PATH")
    play(Tutorial(tmp_path, kafka, redis, topic), images=False)
    files = ["concerts.Dockerfile", "concerts.py", "events.py", "sales.Dockerfile", "sales.py", "test_concerts.py"]
    assert set(files) <= {path.name for path in tmp_path.iterdir()}
    assert len([block for block in blocks() if block.word == "service"]) == 2
