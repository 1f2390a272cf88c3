"""The folder in which the peers are installed: a virtual environment of its own under ``.cache``."""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.services import ServiceUnavailable, jars

REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def environment(progress: jars.Progress = lambda _: None) -> Path:
    """The Python with the peers, installed at the first call (some seconds). Two processes may ask at once.

    Raises ServiceUnavailable where they cannot be installed.
    """
    origin = (REQUIREMENTS.read_text(), sys.version, sys.prefix)
    home = jars.cache() / f"peers-{hashlib.sha256(repr(origin).encode()).hexdigest()[:12]}"
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        with jars.exclusive(jars.cache() / "peers.making"):
            if not ready.exists():
                progress("the peers of the benchmark")
                shutil.rmtree(home, ignore_errors=True)
                venv.create(home)
                pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
                options = ["--disable-pip-version-check", "--require-hashes", "-r", str(REQUIREMENTS)]
                made = subprocess.run([*pip, *options], capture_output=True, text=True, timeout=300, check=False)
                if made.returncode:
                    raise ServiceUnavailable(f"the peers cannot be installed: {made.stderr.strip()}")
                ready.touch()
    return python
