"""What others wrote (keys, headers, payloads, ids), as it may stand in a line on a terminal."""


def shown(text: str | bytes) -> str:
    """The text in one line: control characters, which could move the cursor or forge a line, are escaped."""
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
