"""Part of the build: compile what a service imports, so that a container need not at every start.

``python bytecode.py /install`` compiles the packages below that prefix, and into it what they import of the standard
library, of which the parent image has only the sources. A container cannot keep what it compiles: it runs under any uid
and on a read-only file system. The bytecode is never compared with its source (PEP 552), so it holds whichever time
stamps an image is given, and the same sources give the same bytes.
"""

import compileall
import importlib
import importlib.util
import os
import pkgutil
import py_compile
import sys
import sysconfig

UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


def imported(packages: str) -> list[str]:
    """The source files of the standard library that the runtime and gunicorn's worker import."""
    sys.path.insert(0, packages)
    import hiveio

    for module in pkgutil.walk_packages(hiveio.__path__, "hiveio."):
        importlib.import_module(module.name)
    importlib.import_module("gunicorn.workers.gasgi")
    library = sysconfig.get_path("stdlib")
    files = {getattr(module, "__file__", None) or "" for module in sys.modules.values()}
    return sorted(file for file in files if file.startswith(f"{library}/") and file.endswith(".py"))


def main(prefix: str) -> None:
    packages = sysconfig.get_path("purelib", vars={"base": prefix})
    kept = sys.base_prefix
    if not compileall.compile_dir(packages, quiet=1, invalidation_mode=UNCHECKED, stripdir=prefix, prependdir=kept):
        sys.exit(1)
    for source in imported(packages):
        name = os.path.relpath(importlib.util.cache_from_source(source), kept)
        py_compile.compile(source, os.path.join(prefix, name), source, doraise=True, invalidation_mode=UNCHECKED)


if __name__ == "__main__":
    main(sys.argv[1])
