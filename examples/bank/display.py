"""Shows the story: in a terminal with colours and short pauses, elsewhere as plain text."""

import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.live import Live
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

PAUSE_S = 0.2  # between two lines of the story, for the eye of a person
PLAIN_WIDTH = 120  # of an output that has no width
LABEL = 9
COLOURS = {"stream-processor": "magenta", "consumer": "blue", "producer": "yellow", "base": "cyan"}


class Display:
    """``patient``: somebody watches, so things come one after the other and not all at once."""

    def __init__(self, *, patient: bool) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without ✓ shows ?, and the story goes on
        terminal = sys.stdout.isatty()
        self.console = Console(highlight=False, width=None if terminal else PLAIN_WIDTH)
        self._pause_s = PAUSE_S if patient and terminal else 0.0

    def title(self, text: str) -> None:
        self.console.print(Text.assemble("\n  ", ("hiveio", "bold yellow"), "  ", (text, "bold")))
        self.say("  on a real Kafka and a real Valkey, all of it on this machine\n", "dim")

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)

    def heading(self, text: str, style: str) -> None:
        self.console.print()
        self.console.print(Rule(Text.assemble((f" {text} ", style)), style="dim", align="left"))

    # -- the story

    def step(self, number: int, title: str, about: str) -> None:
        self.console.print()
        self.console.print(
            Rule(Text.assemble((f" {number} ", "reverse bold"), (f" {title} ", "bold")), style="dim", align="left")
        )
        self.line("", Text(about, "italic dim"))

    def line(self, label: str, *parts: Text) -> None:
        """One thing that happened: its label, and what it is. Long lines go on below themselves."""
        indent = " " * (LABEL + 1)
        for part in parts:
            for text in part.wrap(self.console, self.console.width - len(indent)):
                text.rstrip()
                start = Text(f"{label:>{LABEL}} ", "dim") if label else Text(indent)
                self.console.print(start + text)
                label = ""
        time.sleep(self._pause_s)

    def request(self, role: str, method: str, path: str, headers: dict[str, str], body: Any) -> None:
        head = Text.assemble((f"{method} {path}", "bold"), "  ", (role, COLOURS.get(role, "magenta")))
        sent = [Text(f"{name}: {value}") for name, value in headers.items()]
        self.line("request", head, *sent, *([as_json(body)] if body is not None else []))

    def answer(self, status: int, headers: Sequence[tuple[str, str]], body: Any, took_ms: float) -> None:
        style = "bold green" if status < 400 else "bold yellow" if status < 500 else "bold red"
        head = Text.assemble((f"{status} {HTTPStatus(status).phrase}", style), (f"  {took_ms:.0f} ms", "dim"))
        for name, value in headers:
            head.append(f"  {name}: {value}", "dim")
        self.line("answer", head, as_json(body))

    def checked(self, text: str, *, right: bool, found: str = "") -> None:
        if right:
            self.line("", Text(f"✓ {text}", "green"))
        else:
            self.line("", Text(f"✗ {text}", "bold red"), Text(f"  found: {found}", "red"))

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(Text(text, "dim")):
            yield


class Progress:
    """A line for each thing that takes time, with a spinner while it runs and with its seconds when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._labels: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=12)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def began(self, name: str, label: str) -> None:
        """Begin a thing. Called again with another label it is the same thing in its next phase."""
        self._began.setdefault(name, time.monotonic())
        self._labels[name] = label

    def done(self, name: str) -> None:
        self._took[name] = time.monotonic() - self._began[name]
        if not self._console.is_terminal:
            self._console.print(f"  ✓ {self._labels[name]}  {self._took[name]:.1f} s")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for name, began in self._began.items():
            took = self._took.get(name)
            mark = self._spinner if took is None else Text("✓", "green")
            seconds = time.monotonic() - began if took is None else took
            table.add_row(" ", mark, Text(f"{self._labels[name]:36}"), Text(f"{seconds:4.1f} s", "dim"))
        return table


def as_json(value: Any) -> Text:
    text = Text(json.dumps(value, ensure_ascii=False))
    JSONHighlighter().highlight(text)
    return text


def money(cents: int) -> str:
    return f"{cents / 100:,.2f}"
