"""docs/tutorial.md, played with the images that it builds."""

import shutil
from pathlib import Path

from tests.conftest import require
from tests.images.container import call
from tests.services import Kafka, Redis
from tests.tutorial import Tutorial, play


def test_the_images_of_the_tutorial(images: str, tmp_path: Path, kafka: Kafka, redis: Redis, topic: str) -> None:
    if shutil.which("curl") is None:
        require("curl", "no curl in PATH")
    tutorial = Tutorial(tmp_path, kafka, redis, topic)
    try:
        play(tutorial, images=True)
    finally:
        call(images, "rmi", "--force", "tickets/concerts", "tickets/sales", check=False)
        call(images, "volume", "rm", "--force", tutorial.volume, check=False)
