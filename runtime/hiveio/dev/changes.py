"""Which of a folder's files a module consists of: its own, and those that it imports from there."""

import ast
from collections.abc import Iterator
from pathlib import Path


def files_of(folder: Path, module: str) -> set[Path]:
    """With those that these import, and so on. A file that cannot be parsed counts, and nothing behind it."""
    found: set[Path] = set()
    left = _paths(folder, module)
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += [imported for name in _imports(folder, path) for imported in _paths(folder, name)]
    return found


def _paths(folder: Path, module: str) -> list[Path]:
    """The files of a module in the folder, with those of its packages; none if it comes from elsewhere."""
    parts = module.split(".")
    packages = [folder.joinpath(*parts[:count], "__init__.py") for count in range(1, len(parts) + 1)]
    return [path for path in (folder.joinpath(*parts).with_suffix(".py"), *packages) if path.is_file()]


def _imports(folder: Path, path: Path) -> Iterator[str]:
    """The modules that a file names in its imports, absolute; of `from a import b` both `a` and `a.b`."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    package = path.relative_to(folder).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            near = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*near, *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
