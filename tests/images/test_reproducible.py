"""The same inputs give the same image, and the image can say what they were."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.images.container import bake

pytestmark = pytest.mark.timeout(1200, func_only=True)  # builds from nothing, which have a bound of their own
REPRODUCIBLE = {"SOURCE_DATE_EPOCH": "1700000000"}
SMALL = 1 << 20  # bytes; what is larger is a layer


def exported(folder: Path, target: str, *options: str) -> dict[str, Any]:
    """The documents of an image, as an OCI archive has them: ``index.json``, and others by their digest."""
    archive = folder / f"{target}.tar"
    output = f"{target}.output=type=oci,dest={archive},rewrite-timestamp=true"
    allowed = f"--allow=fs.write={folder}"
    bake(allowed, "--set", output, "--set", "*.tags=", *options, target, environ=REPRODUCIBLE)
    found: dict[str, Any] = {}
    with tarfile.open(archive) as files:
        for member in files:
            file = files.extractfile(member) if member.isfile() and member.size < SMALL else None
            if file is not None and (text := file.read()).startswith(b"{"):
                found[member.name.replace("blobs/sha256/", "sha256:")] = json.loads(text)
    archive.unlink()
    return found


def test_two_builds_without_cache_have_one_digest(images: str, tmp_path: Path) -> None:
    first, second = (exported(tmp_path, "producer", "--no-cache", "--provenance=false") for _ in range(2))
    assert first["index.json"]["manifests"][0]["digest"] == second["index.json"]["manifests"][0]["digest"]


def test_an_image_tells_what_it_was_built_from(images: str, tmp_path: Path) -> None:
    found = exported(tmp_path, "base", "--provenance=mode=max")
    image, attestation = found[found["index.json"]["manifests"][0]["digest"]]["manifests"]
    assert attestation["annotations"]["vnd.docker.reference.digest"] == image["digest"]
    (statement,) = (found[layer["digest"]] for layer in found[attestation["digest"]]["layers"])
    told = json.dumps(statement["predicate"])
    assert "pkg:docker/python@3.13-slim-bookworm" in told
    assert "--require-hashes" in told, "the steps of the build"
