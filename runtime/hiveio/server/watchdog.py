"""Names the actor that blocks the event loop: its method, its message, for how long, and where in its code.

While an actor blocks (``time.sleep``, a client that is not asynchronous, a long computation) its worker answers nobody,
and nobody on the loop can tell. A thread looks at a heartbeat of the loop. Where that stays away, the frames of the
loop's thread show who is at work, and with what: nothing is noted down for it while messages are performed.
"""

import asyncio
import inspect
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any, NamedTuple

from hiveio import metrics
from hiveio.actor import Actor, Contract
from hiveio.envelope import Envelope
from hiveio.fault import about_message, is_ours
from hiveio.logs import request_id

BEAT_S = 0.2  # between two beats, and two looks at them
BLOCKED_S = 1.0  # without a beat; then a line is logged, again at each doubling of the time, and at the end

logger = logging.getLogger("hiveio.watchdog")
_blocked = metrics.Counter("hiveio_loop_blocked_seconds_total", "Time for which an actor blocked the event loop")


class Blame(NamedTuple):
    """The method that blocks, such as ``AccountActor.perform``, and the fields of its log line."""

    method: str
    fields: dict[str, Any]


class Watchdog:
    """Watches one event loop, from ``start`` to ``stop``."""

    def __init__(self, contracts: Iterable[Contract]) -> None:
        self._methods: dict[CodeType, tuple[Contract, str]] = {}
        for contract in contracts:
            for kind in contract.kind.__mro__[: contract.kind.__mro__.index(Actor)]:
                for name, method in vars(kind).items():
                    if inspect.isfunction(method):
                        code = inspect.unwrap(method).__code__
                        self._methods.setdefault(code, (contract, f"{contract.kind.__name__}.{name}"))
        self._beats = 0
        self._over = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """To be called on the loop."""
        self._loop, self._ident = asyncio.get_running_loop(), threading.get_ident()
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        self._beats += 1
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    # -- the thread

    def _watch(self) -> None:
        seen, seen_at, looks, again_s = self._beats, time.monotonic(), 0, BLOCKED_S
        blame: Blame | None = None
        while not self._over.wait(BEAT_S):
            if self._beats != seen:
                if blame is not None:
                    blocked_s = time.monotonic() - seen_at
                    _blocked.inc(blocked_s)
                    self._log(blame, f"{blame.method} blocked the event loop for {blocked_s:.1f} s", blocked_s)
                seen, seen_at, looks, again_s, blame = self._beats, time.monotonic(), 0, BLOCKED_S, None
                continue
            looks += 1
            blocked_s = time.monotonic() - seen_at
            if blocked_s < again_s:
                continue
            again_s = 2 * blocked_s
            frames = list(_outwards(sys._current_frames().get(self._ident)))
            blame = self._blame(frames) or blame
            if blame is not None:
                text = f"{blame.method} has blocked the event loop for {blocked_s:.1f} s: its worker answers nobody"
                self._log(blame, text, blocked_s)
            elif looks * BEAT_S >= BLOCKED_S:  # and not a process that was stopped, or a machine without time for it
                logger.info("the event loop has not turned for %.1f s", blocked_s, extra={"traceback": _shown(frames)})

    def _log(self, blame: Blame, text: str, blocked_s: float) -> None:
        logger.error("%s", text, extra={**blame.fields, "blocked_s": round(blocked_s, 3)})

    def _blame(self, frames: list[FrameType]) -> Blame | None:
        """The innermost method of an actor among the frames, and what it works on."""
        for depth, frame in enumerate(frames):
            if (found := self._methods.get(frame.f_code)) is not None:
                contract, method = found
                fields = {"actor": contract.name} | _message(frame, contract)
                for outer in frames[depth + 1 :]:
                    if is_ours(outer.f_code.co_filename):
                        fields = _surroundings(outer.f_locals, contract) | fields
                return Blame(method, fields | {"traceback": _shown(frames[: depth + 1])})
        return None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _message(frame: FrameType, contract: Contract) -> dict[str, Any]:
    """The fields for the parameter of a method that is a message."""
    code, values = frame.f_code, frame.f_locals
    known = {
        *contract.commands.values(),
        *contract.queries.values(),
        *contract.events.values(),
        *contract.subscribes.values(),
        *contract.inputs.values(),
    }
    for name in code.co_varnames[: code.co_argcount]:
        value = values.get(name)
        if type(value) in known or (isinstance(value, list) and value and type(value[0]) in known):
            return about_message(value)
    return {}


def _surroundings(values: Mapping[str, Any], contract: Contract) -> dict[str, Any]:
    """What our own frame around an actor's knows: an envelope, by itself or that of a command; the aggregate that is
    folded; the record that it comes from; the id of the request."""
    found: dict[str, Any] = {}
    for name, value in list(values.items()):
        envelope = value if isinstance(value, Envelope) else getattr(value, "envelope", None)
        if isinstance(envelope, Envelope):
            found |= about_message(envelope.message) | ({"id": envelope.id} if envelope.id else {})
            if envelope is not value and (request := value.context.get(request_id)):
                found["request_id"] = request
        elif name == "reference" and isinstance(value, str):
            found["request_id"] = value
        elif name == "name" and isinstance(value, str) and value.startswith(f"{contract.name}/"):
            found["id"] = value.partition("/")[2]
        elif name == "message" and hasattr(value, "offset") and hasattr(value, "partition"):
            found["record"] = f"{value.topic()}/{value.partition()}/{value.offset()}"
    return found


def _shown(frames: list[FrameType]) -> str:
    stack = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in reversed(frames))
    return "".join(stack.format()).rstrip()
