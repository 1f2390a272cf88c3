"""Phase two: the records that were judged here are applied to the cache of their scope, in groups.

The leader of the scope applies. Other instances look how far the cache has come, and apply only where it has not moved
for a while, and then until another instance moves it. Which instance applies is a matter of work, not of safety.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import chain

from msgspec import Struct

from hiveio.errors import HiveError
from hiveio.kafka.tail import LogRecord
from hiveio.transaction import faults, metrics
from hiveio.transaction.bounds import ENTRY_BYTES
from hiveio.transaction.cache import Cache
from hiveio.transaction.entry import Entry
from hiveio.transaction.mirror import Mirror
from hiveio.transaction.process import listed
from hiveio.transaction.rule import Effects, IdRecord, IdWindow
from hiveio.transaction.view import View

logger = logging.getLogger("hiveio.scope")

PAUSE_S = (0.05, 2.0)  # first and longest pause while the cache is away
GATHER_S = 0.005  # between two calls, unless somebody waits: the records of a call share its cost
SLOW_S = 0.2  # without an answer of the cache, after which commands ask it before they are performed
UNAPPLIED = 2_000  # records that are judged and not applied, beyond which judging waits
GIVE_WAY_S = 0.05  # between two calls while this instance cannot fold all events: another one may, and should be first
LOOK_S = 0.1  # between two looks at what the leader has applied
STILL_S = 0.3  # without progress, after which another instance applies
SOON_S, SOON_STILL_S = 0.004, 0.03  # the same two while this instance is at work, or somebody waits


class Unapplied(Struct, frozen=True, gc=False):
    """The effects of a record that the cache does not have yet, without its events: the view has folded them."""

    offset: int
    tx: str
    verdict: bool
    heads: tuple[str, ...]
    id: tuple[str, IdRecord] | None
    writers: tuple[str, ...]


class Applier:
    """Applies records in the order of the log, one call at a time, while the cache matches the log."""

    def __init__(
        self,
        partition: int,
        view: View,
        mirror: Mirror,
        cache: Cache,
        window: IdWindow,
        most: int,
        fail: Callable[[str], None],
    ) -> None:
        """``most`` bounds the bytes of the aggregates in one call, and so of records that are judged and not applied.
        ``fail`` stops the scope, which ends the applier."""
        self._partition, self._view, self._mirror, self._fail = partition, view, mirror, fail
        self._cache, self._window, self._most = cache, window, most
        self._ended = False  # the scope has failed
        self._times = metrics.phase("apply")
        self._published: dict[str, int] = {}  # what is published → the offset at which that resumes, as known here
        self.judged: deque[Unapplied] = deque()  # and not applied yet
        self.size = 0  # bytes of the aggregates that these touch, or more: one may be counted several times
        self._when: deque[tuple[int, Callable[[], None]]] = deque()
        self._work, self._applied = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._began = 0.0  # when the latest call was made
        self._is_own_turn: Callable[[], bool] = lambda: True
        self._own_at = -1  # the offset of the latest record of this instance
        self._took_over = False  # it applies although it does not lead
        self._cache_at, self._since = -1, 0.0  # the offset of the cache at the latest look or call, and since when
        self._patience = 1.0  # a factor of STILL_S, so that not all instances take over at once
        self._asked_at = 0.0  # when the call that is under way was made
        self._failing = False  # the latest call has failed
        self._timer: asyncio.TimerHandle | None = None
        mirror.subscribe(on_move=self.moved, on_loss=self.wake)

    def take_turns(self, is_own_turn: Callable[[], bool]) -> None:
        """``is_own_turn`` says whether this instance should apply: otherwise another one should, while it can."""
        self._is_own_turn = is_own_turn

    def end(self) -> None:
        """The scope has failed: nothing is applied any more, and all that wait are called."""
        self._ended = True
        self._work.set()

    def publishing(self, name: str) -> Callable[[int], None]:
        """A publisher of ``name`` works on this scope from now on. It calls the result with the offset from which on it
        may need verdicts again: they are kept from the lowest of these offsets on."""
        self._published[name] = 0

        def note(offset: int) -> None:
            self._published[name] = offset

        return note

    def add(self, message: LogRecord, effects: Effects, entries: Mapping[str, Entry], *, own: bool) -> None:
        """The next record is judged; ``entries`` has the aggregates whose heads it has moved."""
        if own:
            self._own_at = message.offset
        if not self.judged:
            self._since = self._loop.time()
        heads = tuple(effects.heads)
        verdict = effects.verdict is True
        self.judged.append(Unapplied(message.offset, message.key, verdict, heads, effects.id, effects.writers))
        for name in heads:
            entry = entries[name]
            self.size += len(entry.snapshot) + len(entry.process) + ENTRY_BYTES

    def forget(self) -> None:
        """The records are judged again, so those that are not applied are forgotten."""
        self.judged.clear()

    @property
    def large(self) -> bool:
        """Whether the records that are not applied fill one call."""
        return self.size > self._most and self._exceeds(1)

    @property
    def behind(self) -> bool:
        """Whether the cache does not get on: the latest call has failed, or has no answer yet after SLOW_S, or records
        are judged faster than they are applied."""
        slow = self._asked_at > 0 and self._loop.time() - self._asked_at > SLOW_S
        return slow or self._failing or len(self.judged) >= UNAPPLIED // 2

    @property
    def full(self) -> bool:
        """Whether judging has to wait."""
        return len(self.judged) >= UNAPPLIED or self.large

    def _exceeds(self, share: float) -> bool:
        """Whether the records that are not applied have more bytes than this share of the bound."""
        most = share * self._most
        if self.size > most:
            entries = self._view.entries
            self.size = sum([entries[name].folded_size + ENTRY_BYTES for name in self.touched()])
        return self.size > most

    def wake(self) -> None:
        """There is something to apply. It is applied at once after a pause, and else together with what comes soon."""
        if self._timer is None:
            pause = self._began + GATHER_S - self._loop.time()
            if self._defers():
                pause = SOON_S if self._awaited else LOOK_S
            elif self._view.quarantine.entries:
                pause = GIVE_WAY_S
            if pause > 0 and not self._view.quarantine.healed:
                self._timer = self._loop.call_later(pause, self._hurry)
            else:
                self._work.set()

    def _hurry(self) -> None:
        self._timer = None
        self._work.set()

    def when_applied(self, offset: int, done: Callable[[], None]) -> None:
        """Call ``done`` once the watermark is beyond this offset, or the scope has failed."""
        if self._mirror.watermark.offset > offset or self._ended:
            done()
            return
        self._when.append((offset, done))
        self._work.set()

    def moved(self) -> None:
        """The cache has moved on: forget the records that are applied, and call those that wait for them."""
        offset = self._mirror.watermark.offset
        while self.judged and self.judged[0].offset < offset:
            self.judged.popleft()
        while self._when and self._when[0][0] < offset:
            self._when.popleft()[1]()
        self._applied.set()

    async def wait(self, share: float) -> None:
        """Wait until the records that are not applied are within this share of the bounds, or the cache or the scope is
        lost."""
        records = share * UNAPPLIED
        while (len(self.judged) > records or self._exceeds(share)) and not (self._mirror.lost or self._ended):
            self._applied.clear()
            self._work.set()
            await self._applied.wait()

    def touched(self) -> set[str]:
        """The aggregates whose latest entry the cache does not have yet."""
        return {name for judged in self.judged for name in judged.heads}

    async def run(self) -> None:
        mirror, (pause, longest) = self._mirror, PAUSE_S
        while not self._ended:
            await self._work.wait()
            self._work.clear()
            if mirror.lost or not (self.judged or self._healed()):
                self._applied.set()
                continue
            try:
                self._asked_at = self._loop.time()
                await (self._look() if self._defers() else self._apply())
                pause, self._asked_at, self._failing = PAUSE_S[0], 0.0, False
                if self.judged or self._view.quarantine.healed:
                    self.wake()
            except HiveError as error:
                self._asked_at, self._failing = 0.0, True
                logger.warning("the cache of %s could not be moved: %s", mirror.where, error)
                await asyncio.sleep(pause * (1 + random.random()))
                pause = min(2 * pause, longest)
                self._work.set()
            except Exception as error:
                logger.exception("moving the cache of %s failed with an unexpected error", mirror.where)
                self._fail(f"{mirror.where}: {type(error).__name__}: {error}")
        self._applied.set()  # all that wait are called, since nothing is applied any more
        while self._when:
            self._when.popleft()[1]()

    @property
    def _awaited(self) -> bool:
        """Whether somebody waits for what is judged to be applied, or this instance is at work itself: then it is the
        first to see that the cache is lost."""
        return bool(self._when) or self._own_at >= self._mirror.watermark.offset or self.full

    def _defers(self) -> bool:
        """Whether it is the turn of another instance to apply, and that one does."""
        if self._is_own_turn() or self._view.quarantine.healed:
            return False
        if self._took_over and self._mirror.watermark.offset != self._cache_at:
            self._took_over, self._cache_at, self._since = False, self._mirror.watermark.offset, self._loop.time()
        return not self._took_over

    async def _look(self) -> None:
        """See how far the leader has come; take over if it makes no progress."""
        asked = self._mirror.watermark.offset
        reply = await self._cache.read(self._partition)
        self._mirror.observe_watermark(reply.watermark, asked)
        now, at = self._loop.time(), self._mirror.watermark.offset
        still_s = self._patience * (SOON_STILL_S if self._awaited else STILL_S)
        if at != self._cache_at:
            self._cache_at, self._since, self._patience = at, now, 1 + random.random()
        elif now - self._since > still_s:
            self._took_over = True

    async def _apply(self) -> None:
        view, base = self._view, self._mirror.watermark
        to, quarantine = base, view.quarantine
        group = tuple(self.judged)
        if group:
            last = group[-1]  # the whole group: the view has the entries at its end and no earlier ones
            if (first := group[0].offset) != base.offset:
                where = self._mirror.where
                raise AssertionError(f"{where} was judged from {first} on, and its cache is at {base.offset}")
            to = base.moved(last.offset + 1, view.state, last.tx)
        healed = self._healed()
        names = dict.fromkeys(chain.from_iterable([judged.heads for judged in group]))
        names |= dict.fromkeys(self._fitting(healed))
        quarantine.healed.intersection_update(set(healed) - names.keys())
        held = view.entries
        entries = [(name, held[name].text) for name in names]
        unfolded = [name for name in names if held[name].unfolded]
        unfolded += [f"{actor}/" for actor in quarantine.unknown_actors]
        processes = [each for name in names if held[name].process for each in listed(name, held[name].process)]
        ids = [(judged.id[0], judged.id[1].text) for judged in group if judged.id is not None]
        remembered = view.state.writers
        moved = dict.fromkeys(chain.from_iterable([judged.writers for judged in group]))
        writers = [(name, remembered[name].text if name in remembered else "") for name in moved]
        verdicts = "".join(["1" if judged.verdict else "0" for judged in group])
        if faults.armed:
            for name in names:
                faults.hit("applying", name)
        began, self._began = time.monotonic(), self._loop.time()
        reached = await self._cache.apply(
            self._partition,
            base,
            to,
            verdicts,
            entries,
            ids,
            self._window,
            min(self._published.values(), default=0),
            unfolded,
            writers,
            processes,
        )
        self._times.observe(time.monotonic() - began)
        self._mirror.observe_watermark(reached)
        self._cache_at = to.offset  # if the cache is elsewhere, another instance applies too
        if faults.armed:
            for name in names:
                faults.hit("applied", name)

    def _healed(self) -> list[str]:
        """The aggregates that the view has folded and the cache perhaps has not, as they are after all judged
        records."""
        view, healed = self._view, self._view.quarantine.healed
        if not healed or not (self.judged or view.next == self._mirror.watermark.offset):
            return []
        found = [(name, view.entry(name)) for name in healed]
        return [name for name, entry in found if entry is not None and not entry.unfolded and entry.at <= view.next]

    def _fitting(self, names: list[str]) -> list[str]:
        """As many of them as fit into one call next to the judged records, and at least one."""
        size, count = self.size, 0
        while count < len(names) and (size < self._most or not count):
            size += self._view.entries[names[count]].size
            count += 1
        return names[:count]
