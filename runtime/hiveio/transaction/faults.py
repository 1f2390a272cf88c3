"""Named fault points: they do nothing unless a test started this process with HIVEIO_FAULTS.

``HIVEIO_FAULTS=judged:KILL:Account/a,prepared:STOP:Account/b`` sends that signal to the whole process group when the
engine first comes to that point with that aggregate. docs/faults.md lists the points.
"""

import os
import signal

_named = [text.split(":", 2) for text in os.environ.get("HIVEIO_FAULTS", "").split(",") if text]
armed = {(point, aggregate): signal.Signals["SIG" + action] for point, action, aggregate in _named}


def hit(point: str, aggregate: str) -> None:
    """Callers ask ``if faults.armed`` first: where no test is, a point costs one attribute."""
    action = armed.pop((point, aggregate), None)
    if action is not None:
        os.kill(0, action)
