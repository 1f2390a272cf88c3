"""The arguments of a command of the tool."""

import argparse

from hiveio.errors import ConfigError


class Command(argparse.ArgumentParser):
    """The arguments of one command. Where it ``mixes``, several names may stand before and after options: ``hiveio dead
    retry --group GROUP TOPIC/0/7``. One that begins with a hyphen cannot stand behind ``--`` then."""

    mixes = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        if not self.mixes:
            return super().parse_known_args(args, namespace)
        self.mixes = False
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.mixes = True


def in_range(name: str, value: int | None, lowest: int, highest: int | None = None) -> int | None:
    """The value of an option that takes a whole number, if it was given. Raises ConfigError."""
    if value is not None and not lowest <= value <= (value if highest is None else highest):
        among = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ConfigError(f"{name} {value} is wrong: it takes a number {among}")
    return value
