"""Part of the build: compile what a service imports, so that a container need not at every start.

``PYTHONPYCACHEPREFIX=/tmp/imported python bytecode.py /install`` compiles the packages below /install, and into it what
they import of the standard library, of which the parent image may have only the sources. A container cannot keep what
it compiles: it runs under any uid and on a read-only file system. The bytecode is never compared with its source
(PEP 552), so it holds whichever time stamps an image is given, and the same sources give the same bytes.
"""

import compileall
import importlib.metadata
import importlib.util
import pkgutil
import py_compile
import sys
import sysconfig
from pathlib import Path

UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


def imported(packages: str) -> list[str]:
    """The sources of the standard library that the runtime, gunicorn's worker and Python itself import."""
    sys.path.insert(0, packages)
    runtime = pkgutil.walk_packages([f"{packages}/hiveio"], "hiveio.")
    for name in [*(module.name for module in runtime), "gunicorn.workers.gasgi"]:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name in sys.stdlib_module_names or str(error.name).startswith(("hiveio", "gunicorn")):
                raise
            print(f"{name} is for actors that bring {error.name}")
    importlib.metadata.version("redis")  # as its client does, with what that imports
    importlib.import_module("encodings.idna")  # as each look-up of a host's name does
    # All that was loaded from source has left its bytecode there.
    kept = Path(f"{sys.pycache_prefix}{sysconfig.get_path('stdlib')}").rglob("*.pyc")
    return sorted(importlib.util.source_from_cache(str(path)) for path in kept)


def main(prefix: str) -> None:
    packages = sysconfig.get_path("purelib", vars={"base": prefix})
    sources = [source for source in imported(packages) if "site-packages" not in source]
    sys.pycache_prefix = None
    assert sources, "PYTHONPYCACHEPREFIX names a folder that can be made"
    if not compileall.compile_dir(
        packages, quiet=1, force=True, invalidation_mode=UNCHECKED, stripdir=prefix, prependdir=sys.base_prefix
    ):
        sys.exit(1)
    for source in sources:
        target = prefix + importlib.util.cache_from_source(source).removeprefix(sys.base_prefix)
        py_compile.compile(source, target, source, doraise=True, invalidation_mode=UNCHECKED)


if __name__ == "__main__":
    main(sys.argv[1])
