"""One stream with the lines of all services, each behind the service's name."""

import json
import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape

COLOURS = ("cyan", "magenta", "green", "blue", "yellow", "bright_cyan", "bright_magenta", "bright_green")
LEVELS = {"warning": "yellow", "error": "red", "critical": "red"}
_FIXED = {"time", "level", "logger", "message", "pid", "request_id", "traceback"}


class Output:
    """Lines may come from several threads. ``shown`` makes what others wrote safe for a terminal."""

    def __init__(self, console: Console, shown: Callable[[str], str]) -> None:
        self._console, self._shown, self._lock = console, shown, threading.Lock()
        self._names: list[str] = []

    def know(self, names: list[str]) -> None:
        """These will have lines: each has a colour, and all are of one width."""
        with self._lock:
            self._names += [name for name in names if name not in self._names]

    def say(self, name: str, text: str, style: str = "") -> None:
        """Lines of ours about a service."""
        with self._lock:
            for line in text.splitlines() or [""]:
                body = f"[{style}]{escape(line)}[/]" if style else escape(line)
                self._console.print(f"{self._before(name)} {body}")

    def said(self, name: str, line: str) -> None:
        """A line that a service wrote: JSON of its log, or anything."""
        try:
            record = json.loads(line)
            text, style = self._readable(record), LEVELS.get(record["level"], "")
        except (ValueError, KeyError, TypeError):
            text, style = self._shown(line), ""
        self.say(name, text, style)

    def _before(self, name: str) -> str:
        width = max(map(len, [*self._names, name]))
        colour = COLOURS[self._names.index(name) % len(COLOURS)] if name in self._names else "white"
        return f"[{colour}]{escape(name):{width}} │[/]"

    def _readable(self, record: dict[str, Any]) -> str:
        extra = "".join(f" {name}={value}" for name, value in record.items() if name not in _FIXED)
        text = self._shown(f"{record['time'][11:19]} {record['level']:7} {record['message']}{extra}")
        return "\n".join([text, *map(self._shown, record.get("traceback", "").splitlines())])
