"""The same inputs give the same image, and the image can say what they were."""

import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.ahead import Ahead
from tests.images.container import bake

pytestmark = pytest.mark.timeout(1200, func_only=True)  # builds from nothing, which have a bound of their own
REPRODUCIBLE = {"SOURCE_DATE_EPOCH": "1700000000"}
SMALL = 1 << 20  # bytes; what is larger is a layer


def exported(target: str, *options: str) -> dict[str, Any]:
    """The documents of an image, as an OCI archive has them: ``index.json``, and others by their digest."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "image.tar")
        output = f"{target}.output=type=oci,dest={archive},rewrite-timestamp=true"
        allowed = f"--allow=fs.write={folder}"
        bake(allowed, "--set", output, "--set", "*.tags=", *options, target, environ=REPRODUCIBLE)
        with tarfile.open(archive) as files:
            for member in files:
                file = files.extractfile(member) if member.isfile() and member.size < SMALL else None
                if file is not None and (text := file.read()).startswith(b"{"):
                    found[member.name.replace("blobs/sha256/", "sha256:")] = json.loads(text)
    return found


def digests(target: str) -> list[str]:
    """Of the image from the layers that are there, and then of one from nothing, whose layers take their place."""
    built = [exported(target, *options, "--provenance=false") for options in ((), ("--no-cache",))]
    return [image["index.json"]["manifests"][0]["digest"] for image in built]


@pytest.mark.ahead(digests, "producer")
def test_two_builds_have_one_digest(images: str, ahead: Ahead) -> None:
    """One has the layers that were built before the tests or at their beginning, the other one is without cache."""
    first, second = ahead.result(digests, "producer")
    assert first == second


def test_an_image_names_what_it_was_built_from(images: str) -> None:
    found = exported("base", "--provenance=mode=max")
    image, attestation = found[found["index.json"]["manifests"][0]["digest"]]["manifests"]
    assert attestation["annotations"]["vnd.docker.reference.digest"] == image["digest"]
    (statement,) = (found[layer["digest"]] for layer in found[attestation["digest"]]["layers"])
    predicate = json.dumps(statement["predicate"])
    assert "pkg:docker/python@3.13-slim-bookworm" in predicate
    assert "--require-hashes" in predicate, "the steps of the build"
