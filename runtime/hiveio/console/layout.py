"""What all pages of the console share: the frame, tables, charts, and how values are written."""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec

from hiveio.console.history import Sample
from hiveio.console.html import Child, Markup, h
from hiveio.status.text import END_MS, clock, number, ranges, share, span

__all__ = ["number", "ranges", "share", "span"]

NAVIGATION = (
    ("/", "Overview"),
    ("/log", "Log"),
    ("/aggregates", "Aggregates"),
    ("/processes", "Processes"),
    ("/dead", "Dead letters"),
    ("/groups", "Consumers"),
    ("/instances", "Instances"),
)
MOST_TEXT = 20_000  # characters of one value on a page
FORMATTED = 50_000  # bytes of JSON. What is nested deeply becomes a thousand times as long by its line breaks
MOST_LINE = 300  # characters of what is said in a table
ROWS = 100  # of a table
T = TypeVar("T")
KEYS = (
    ("1 to 7", "the pages"),
    ("/", "search"),
    ("j, k", "the next and the previous row"),
    ("Enter", "open it"),
    ("← →", "a step in time"),
    ("p", "pause"),
)


def frame(title: str, path: str, *content: Child, live_s: float = 0.0, topic: str = "", query: str = "") -> str:
    """A whole page. With ``live_s`` its content is renewed every so many seconds."""
    links = [
        h("a", text, href=href, aria_current="page" if _is_in(path, href) else None, accesskey=str(number))
        for number, (href, text) in enumerate(NAVIGATION, 1)
    ]
    search = h(
        "form",
        h("input", type="search", name="q", value=query, placeholder="Actor/id or transaction", aria_label="Search",
          autocomplete="off", spellcheck="false", maxlength=1000),
        action="/find", role="search",
    )  # fmt: skip
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("title", f"{title} · hiveio"),
        h("link", rel="stylesheet", href="/console.css"),
        h("link", rel="icon", href="/console.svg", type="image/svg+xml"),
        h("script", src="/console.js", defer=True),
    )
    keys = [(h("kbd", key), " ", text, " ") for key, text in KEYS]
    body = h(
        "body",
        h("a", "To the content", href="#content", class_="skip"),
        h("header", h("a", "hiveio", href="/", class_="brand"), h("nav", links, aria_label="Pages"), search),
        h("main", h("h1", title, h("small", topic) if topic else None), content, id="content", tabindex="-1",
          data_live=f"{live_s:g}" if live_s else None),
        h("footer", h("span", "Times are UTC. ", class_="note"), h("span", keys, class_="keys")),
    )  # fmt: skip
    return f"<!doctype html>\n{h('html', head, body, lang='en')}"


def _is_in(path: str, href: str) -> bool:
    return path == href or (href != "/" and path.startswith(f"{href}/"))


def table(heads: Sequence[str], rows: Iterable[Sequence[Child]], empty: str, *, right: Sequence[int] = ()) -> Markup:
    """A table that scrolls sideways where it is too wide; ``right`` are the columns of numbers."""
    cells = [list(row) for row in rows]
    if not cells:
        return h("p", empty, class_="empty")

    def cell(tag: str, at: int, content: Child) -> Markup:
        return h(tag, content, class_="number" if at in right else None, scope="col" if tag == "th" else None)

    return h(
        "div",
        h(
            "table",
            h("thead", h("tr", [cell("th", at, head) for at, head in enumerate(heads)])),
            h("tbody", [h("tr", [cell("td", at, each) for at, each in enumerate(row)]) for row in cells]),
        ),
        class_="wide",
        tabindex="0",
    )


def section(title: str, *content: Child) -> Markup:
    return h("section", h("h2", title), content)


def facts(*pairs: tuple[str, Child]) -> Markup:
    """Names and values; pairs without a value are left out."""
    return h("dl", [(h("dt", name), h("dd", value)) for name, value in pairs if value not in (None, "", [])])


def badge(text: str, kind: str) -> Markup:
    """A word with a color; ``kind`` is good, bad, warn or quiet. The word says it without the color too."""
    return h("span", text, class_=f"badge {kind}")


def link(path: str, text: Child, **query: object) -> Markup:
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return h("a", text, href=f"{path}?{urlencode(given)}" if given else path)


def process_path(name: str) -> str:
    """Where the page of a process is."""
    return f"/processes/{quote(name, safe='/')}"


def some(path: str, rows: Sequence[T], first: int, noun: str) -> tuple[Sequence[T], Markup | None]:
    """Those of one page from the ``first`` one on, and the way to the others; none where these are all."""
    shown = rows[first : first + ROWS]
    if len(shown) == len(rows):
        return shown, None
    between = f"{first + 1:,} to {first + len(shown):,} of {len(rows):,} {noun}" if shown else f"no more {noun}"
    return shown, pages(
        link(path, "next →", first=first + ROWS) if first + ROWS < len(rows) else None,
        link(path, "← previous", first=max(0, first - ROWS) or None) if first else None,
        between,
    )


def pages(older: Markup | None, newer: Markup | None, between: str) -> Markup | None:
    """The ways to further pages, and what this one shows; nothing where there is nothing to say."""
    if older is None and newer is None and not between:
        return None
    return h("nav", newer, h("span", between), older, class_="pages", aria_label="Further pages")


def moment(time_ms: int) -> Markup:
    """A time, in UTC, to the millisecond."""
    if not 0 < time_ms < END_MS:
        return h("span", "-" if time_ms <= 0 else clock(time_ms))
    at = datetime.fromtimestamp(time_ms / 1000, UTC)
    return h("time", at.strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03}", datetime=at.isoformat())


def ago(time_ms: int) -> str:
    return f"{span(max(0.0, time.time() - time_ms / 1000))} ago" if time_ms > 0 else "-"


def pretty(value: bytes, most: int = MOST_TEXT) -> str:
    """JSON with line breaks, unless it is large; other bytes as they are shown in Python. Long ones are cut."""
    try:
        text = (msgspec.json.format(value, indent=2) if len(value) <= FORMATTED else value).decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = repr(value[:most])
    return text if len(text) <= most else f"{text[:most]}\n… {len(text) - most:,} more characters"


def line(text: str) -> str:
    """The first line of a text, cut where it is long."""
    first = text.strip().partition("\n")[0]
    return first if len(first) <= MOST_LINE else f"{first[:MOST_LINE]}…"


def code(text: str) -> Markup:
    return h("pre", h("code", text), tabindex="0")


def action(at: str, kind: str, which: str, label: str, *, confirmed: int, danger: bool) -> Markup:
    """A button that asks for something to be done with what ``which`` names, or confirms it for so many things."""
    return h(
        "form",
        h("input", type="hidden", name="action", value=kind),
        h("input", type="hidden", name="which", value=which),
        h("input", type="hidden", name="confirmed", value=str(confirmed)) if confirmed else None,
        h("button", label, class_="danger" if danger else None),
        method="post", action=at, class_="inline",
    )  # fmt: skip


WIDTH, HEIGHT = 240, 44


def chart(
    title: str, samples: Sequence[Sample], value: Callable[[Sample], float | None], shown: Callable[[float], str]
) -> Markup:
    """A line over the last hour, with the value now and the largest one. Where nothing is known, it has a gap."""
    found = [(each.time, value(each)) for each in samples]
    known = [each for _, each in found if each is not None]
    now, most = (known[-1] if known else None), max(known, default=0.0)
    end = found[-1][0] if found else 0.0
    start = min(found[0][0], end - 300.0) if found else 0.0
    lines: list[list[str]] = [[]]
    for at, each in found:
        if each is None:
            lines.append([])
            continue
        x = WIDTH * (at - start) / max(end - start, 1.0)
        y = HEIGHT - 2 - (HEIGHT - 4) * (each / most if most else 0.0)
        lines[-1].append(f"{x:.1f},{y:.1f}")
    drawn = [h("polyline", points=" ".join(line), fill="none") for line in lines if line]
    label = f"{title}: now {shown(now) if now is not None else 'unknown'}, at most {shown(most)}"
    picture = h(
        "svg", h("title", label), drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none", role="img"
    )
    return h(
        "figure",
        h("figcaption", h("span", title), h("b", shown(now) if now is not None else "-")),
        picture,
        h("small", f"at most {shown(most)} in {span(round(end - found[0][0]))}" if len(found) > 1 else "begins now"),
    )
