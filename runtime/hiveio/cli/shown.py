"""Text of others (keys, headers, payloads, ids), made safe for a line on a terminal."""


def shown(text: str | bytes) -> str:
    """The text in one line. Control characters are escaped, since they could move the cursor or forge a line."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join([c if c.isprintable() else _escaped(c) for c in text])


def shown_lines(text: str | bytes) -> str:
    """The same for a text of several lines."""
    return "\n".join(
        map(shown, (text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text).split("\n"))
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
