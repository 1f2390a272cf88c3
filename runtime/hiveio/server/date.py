"""The time of an answer, for its Date header."""

import time
from email.utils import formatdate

_made = (0, b"")  # the second, and how it is written


def http_date() -> bytes:
    """Now, as HTTP writes it; made once a second."""
    global _made
    now = int(time.time())
    if _made[0] != now:
        _made = now, formatdate(now, usegmt=True).encode()
    return _made[1]
