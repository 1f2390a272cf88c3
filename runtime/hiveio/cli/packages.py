"""Packages that only some commands need."""

from collections.abc import Iterator
from contextlib import contextmanager

from hiveio.errors import ConfigError


@contextmanager
def needing_dev(command: str) -> Iterator[None]:
    """Around the imports of a command that needs the extra. Raises ConfigError where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "hiveio":
            raise
        raise ConfigError(f"{command} needs the package {error.name}: pip install 'hiveio[dev]'") from None
