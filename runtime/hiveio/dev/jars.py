"""Kafka's jars: named in `kafka.lock` with their sha256, downloaded once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from hiveio.dev.process import ServiceUnavailable

LOCK = Path(__file__).with_name("kafka.lock")
ROOTS = (
    "org.apache.kafka:kafka_2.13:4.4.0",
    "org.apache.kafka:kafka-clients:4.4.0",  # named, or the resolver picks an older one that the broker cannot use
    "org.apache.logging.log4j:log4j-core:2.25.1",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.1",
)
Progress = Callable[[str], None]


def cache() -> Path:
    """The folder of downloads: HIVEIO_CACHE, or `hiveio` where the user's caches are."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("HIVEIO_CACHE") or users / "hiveio").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder for the time of the block; what a killed one left behind is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time; the kernel frees it when the holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def locked(lock: Path = LOCK) -> dict[str, str]:
    """The sha256 of every jar by its coordinates."""
    return dict(line.split() for line in lock.read_text().splitlines() if not line.startswith("#"))


def download(folder: Path, progress: Progress, lock: Path = LOCK) -> None:
    """Bring all jars of the lock into `folder`; what is there already has been verified and stays.

    For a caller who is `exclusive`. A jar appears under its name only when whole and verified. Raises
    ServiceUnavailable if one cannot be had or its sha256 is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = {key: sha256 for key, sha256 in locked(lock).items() if not (folder / _name(key)).exists()}
    if not missing:
        return
    with scratch(folder / "staging") as staging, ThreadPoolExecutor(8) as pool:
        maven = _maven(staging)

        def fetch(coordinates: str) -> None:
            path = maven.create_dependency(coordinates).artifact.resolve()
            if _sha256(path) != missing[coordinates]:
                raise ServiceUnavailable(f"the sha256 of {coordinates} is not the one in {lock.name}")
            os.replace(path, folder / _name(coordinates))

        fetches = [pool.submit(fetch, coordinates) for coordinates in missing]
        try:
            for count, done in enumerate(as_completed(fetches), 1):
                done.result()
                progress(f"{count} of {len(missing)}")
        except ServiceUnavailable:
            raise
        except Exception as error:
            raise ServiceUnavailable(f"jars cannot be downloaded: {error}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _maven(folder: Path) -> Any:
    from jgo.maven import MavenContext  # here: not needed once the jars are there

    return MavenContext(repo_cache=folder, timeout=60)


def _name(coordinates: str) -> str:
    _, artifact, version = coordinates.split(":")
    return f"{artifact}-{version}.jar"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_lock(lock: Path = LOCK, roots: Sequence[str] = ROOTS) -> None:
    """Resolve the roots and what they need at run time, and write the lock."""
    with scratch(cache() / "locking") as folder:
        maven = _maven(folder)
        inputs, transitive = maven.resolver.resolve([maven.create_dependency(root) for root in roots])
        needed = [*inputs, *(item for item in transitive if item.scope in ("compile", "runtime"))]
        lines = {
            f"{item.groupId}:{item.artifactId}:{item.version} {_sha256(item.artifact.resolve())}\n" for item in needed
        }
    head = "# Jars: coordinates and sha256, as `hiveio.dev.jars.write_lock` found them.\n"
    lock.write_text(head + "".join(sorted(lines)))
