"""The map of the keys in Redis (``hiveio.transaction.keys``), and what is not in it."""

import re
from collections.abc import Iterable

from hiveio.transaction.keys import KEYS

SCOPE = r"hive:\{[^{}]+/\d+/[^{}]+\}"
PARTS = {
    "<scope>": SCOPE,
    "<mark>": rf"{SCOPE}:[0-9a-f]{{8}}",
    "<gen>": "[0-9a-f]{10}",
    "<aggregate>": ".+",
    "<keyed>": "[01]",
    "<n>": r"\d+",
    "<log topic>": "[^{}]+",
    "<topic id>": "[^{}/]+",
    "<instance>": "[0-9a-f]{12}",
}


def pattern(key: str) -> re.Pattern[str]:
    text = re.escape(key)
    for part, matching in PARTS.items():
        text = text.replace(re.escape(part), matching)
    return re.compile(text)


PATTERNS = [pattern(key) for key in KEYS]


def strays(keys: Iterable[str]) -> list[str]:
    """Those of them that the map does not have. What producers keep of sent messages is not in it."""
    ours = (key for key in keys if key.startswith("hive:") and not key.startswith("hive:keys:"))
    return sorted(key for key in ours if not any(pattern.fullmatch(key) for pattern in PATTERNS))
