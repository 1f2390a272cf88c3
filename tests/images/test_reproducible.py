"""The same inputs give the same image, and the image can say what they were."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.images.container import bake

pytestmark = pytest.mark.timeout(1200, func_only=True)  # builds from nothing, which have a bound of their own
REPRODUCIBLE = {"SOURCE_DATE_EPOCH": "1700000000"}


def exported(folder: Path, *options: str) -> dict[str, tarfile.TarFile]:
    """base and one of its children, as OCI archives."""
    folder.mkdir()
    targets = ("base", "producer")
    outputs = [
        word
        for target in targets
        for word in ("--set", f"{target}.output=type=oci,dest={folder}/{target}.tar,rewrite-timestamp=true")
    ]
    bake(f"--allow=fs.write={folder}", *outputs, "--set", "*.tags=", *options, *targets, environ=REPRODUCIBLE)
    return {target: tarfile.open(folder / f"{target}.tar") for target in targets}


def blob(archive: tarfile.TarFile, name: str) -> Any:
    file = archive.extractfile(name)
    assert file is not None
    with file:
        return json.load(file)


def manifests(archive: tarfile.TarFile) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = blob(archive, "index.json")["manifests"]
    return found


def test_two_builds_without_cache_have_one_digest(images: str, tmp_path: Path) -> None:
    first, second = (
        {
            target: [manifest["digest"] for manifest in manifests(archive)]
            for target, archive in exported(tmp_path / name, "--no-cache", "--provenance=false").items()
        }
        for name in ("first", "second")
    )
    assert first == second


def test_an_image_tells_what_it_was_built_from(images: str, tmp_path: Path) -> None:
    archive = exported(tmp_path / "told", "--provenance=mode=max")["base"]
    (index,) = manifests(archive)
    described = blob(archive, f"blobs/sha256/{index['digest'].partition(':')[2]}")["manifests"]
    (attestation,) = (m for m in described if m.get("annotations", {}).get("vnd.docker.reference.type"))
    manifest = blob(archive, f"blobs/sha256/{attestation['digest'].partition(':')[2]}")
    (statement,) = (blob(archive, f"blobs/sha256/{layer['digest'].partition(':')[2]}") for layer in manifest["layers"])
    assert statement["subject"][0]["digest"]["sha256"] == described[0]["digest"].partition(":")[2]
    told = json.dumps(statement["predicate"])
    assert "pkg:docker/python@3.13-slim-bookworm" in told
    assert "--require-hashes" in told, "the steps of the build"
