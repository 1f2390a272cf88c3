"""HTML from Python, escaped by default: what others wrote cannot become markup."""

import re
from collections.abc import Iterable
from html import escape
from typing import Any, TypeAlias

VOID = {"br", "hr", "input", "link", "meta"}


class Markup(str):
    """Text that is HTML already. Only ``h`` makes it."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"


def h(tag: str, *children: Child, **attributes: Any) -> Markup:
    """An element. Children that are text are escaped, lists are flattened, None is nothing. An attribute that is None
    or False is left out, and True has no value; ``class_`` is class, and ``_`` in a name is ``-``."""
    names = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    written = "".join(
        f" {name}" if value is True else f' {name}="{escape(str(value))}"'
        for name, value in names
        if value is not None and value is not False
    )
    if tag in VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{joined(children)}</{tag}>")


def joined(children: Child) -> Markup:
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(escape(visible(children)))
    if isinstance(children, int | float):
        return Markup(children)
    return Markup("".join(map(joined, children)))


_MAYBE_HIDDEN = re.compile(r"[^\n -~]")


def visible(text: str) -> str:
    """The text with what cannot be seen escaped: control characters, and those that turn the direction of writing."""
    return _MAYBE_HIDDEN.sub(_seen, text)


def _seen(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode()
