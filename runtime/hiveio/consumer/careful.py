"""What a lane does about a record that fails: it is tried again, kept as a dead letter, and tried again when asked."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from hiveio.consumer.letters import ACTORS, OMITTED, OURS, TOPIC_ID, headers_of, key_of, mark, origin_of, time_of
from hiveio.consumer.progress import Progress, Window
from hiveio.consumer.reading import Reading, parse_position, read, version_of
from hiveio.consumer.retry import Hand, Retry
from hiveio.consumer.routing import Routing, Target
from hiveio.consumer.shelf import GROUP, Shelf
from hiveio.envelope import Context, Envelope
from hiveio.errors import Invalid, Problem, Refused, Stop, Unavailable
from hiveio.fault import about, log_fault
from hiveio.headers import Headers
from hiveio.kafka import Lane, Message, Start
from hiveio.kafka.headers import Pairs
from hiveio.kafka.headers import headers_of as all_headers

logger = logging.getLogger("hiveio.consumer")

Failure = tuple[Exception, int]  # the last error, and the number of attempts; 0: it stands behind another of its key


class Opening(NamedTuple):
    """Where a lane begins. Records from ``begin`` on only tell what was seen; those from ``start`` on are handled.

    ``resumes`` says from which offset on a target takes records, where it is not the same for all.
    """

    assigned: Start
    begin: int
    start: int
    progress: Progress
    note: str | bytes | None
    resumes: dict[Target, int]


class CarefulLane(Lane):
    """The state that failing is about. ``hand`` is the lane's own task."""

    def __init__(
        self,
        opening: Opening,
        *,
        routing: Routing,
        retry: Retry,
        window: Window,
        shelf: Callable[[Callable[[], None]], Shelf],
        finished: Callable[[], None],
        claim: Callable[[Lane], Awaitable[None]],
    ) -> None:
        super().__init__(opening.assigned, opening.begin, (opening.start, opening.note))
        self.start, self.progress, self._resumes = opening.start, opening.progress, opening.resumes
        self._settled = max([opening.start, *opening.resumes.values()])
        self.routing, self.retry, self.window, self._finished = routing, retry, window, finished
        self._claim = claim
        self._arrived = asyncio.Event()
        self.shelf = shelf(self._arrived.set)
        self.hand = Hand()
        self._closing = False

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.done[0]}"

    @property
    def hands(self) -> Sequence[Hand]:
        """The tasks that run handlers."""
        return [self.hand]

    @property
    def held(self) -> str | None:
        """Why it stands still, or a part of it, for as long as it does."""
        return next((hand.held for hand in self.hands if hand.held), None) or self.shelf.waits

    @property
    def parked(self) -> int:
        return len(self.shelf.parking.entries)

    async def _wait(self, hand: Hand, what: Awaitable[Any]) -> None:
        """Wait with nothing in hand: a revoke does not wait for it."""
        hand.idle, hand.since = True, None
        try:
            await what
        finally:
            hand.idle = False

    def _set_record(
        self,
        envelope: Envelope,
        message: Message,
        headers: Pairs | None,
        position: bytes | None,
        offset: int,
        time_ms: int,
        *,
        letter_of: str | None = None,
    ) -> None:
        """``letter_of`` is the id of the record's topic, where this is a dead letter; empty where that is not known."""
        found = Headers.wrapping(headers or ())
        envelope.headers = found
        envelope.key = found.get("hive-key")
        envelope.record = Context(
            id=envelope.id or None,
            topic=self.topic,
            topic_id=(self.topic_id if letter_of is None else letter_of) or None,
            key=key_of(message),
            idempotency_key=envelope.key,
            partition=self.partition,
            offset=offset,
            position=parse_position(position) if position is not None else None,
            version=version_of(found),
            time=time_ms / 1000,
            headers=found,
            meta=msgspec.json.decode(envelope.meta) if envelope.meta else None,
            redriven=letter_of is not None,
        )

    async def _attempt(
        self,
        hand: Hand,
        message: Message,
        target: Target,
        make: Callable[[], Envelope],
        error: BaseException | None = None,
        *,
        once: bool = False,
    ) -> Failure | None:
        """Handle it, or go on after ``error``, in growing intervals: None when it worked, else how it failed at last.

        Each attempt is given what ``make`` gives: what one has changed is not there for the next. With ``once`` it is
        tried again only for a backend that is away. Attempts that found a backend away are none of those after which it
        ends, and their intervals grow by themselves.
        """
        attempt = failed = waited = 0  # of the attempts, those that failed; those since then that found a backend away
        envelope: Envelope | None = None
        while True:
            if error is None:
                hand.since = time.monotonic()
                try:
                    await target.handle(envelope := make())
                    hand.since = hand.held = None
                    return None
                except BaseException as raised:
                    error = raised
            failure, error = hand.told(error, self.retry.timeout_s, closing=self._closing), None
            if isinstance(failure, Stop):
                raise failure
            if self._closing:
                raise asyncio.CancelledError  # it is not done: another owner tries it
            attempt += 1
            if away := isinstance(failure, Unavailable):
                waited += 1
            else:
                failed, waited, hand.held = failed + 1, 0, None
            wait_s = self.retry.wait_s(failure, waited if away else failed)
            if wait_s is None or (once and not away):
                hand.held = None
                if not once and not isinstance(failure, Refused):
                    place = f"{self.topic}/{self.partition}/{message.offset()}"
                    log_fault(logger, failure, target.contract, envelope or make(), record=place, attempts=failed)
                return failure, failed
            text = f"{self.topic}/{self.partition}/{message.offset()}: attempt {attempt} failed"
            if waited >= self.retry.attempts:
                hand.held = f"{text}, and it waits for its backend: {failure}"
            if not away or waited.bit_count() == 1:  # what has no end is told at growing distances
                told = f"{text}, the next is in {wait_s:.2f} s: {type(failure).__name__}: {failure}"
                logger.warning("%s", told, extra=about(target.contract, envelope or make()))
            self.routing.counts.retried += 1
            await self._wait(hand, asyncio.sleep(wait_s))

    async def _blocked(self, message: Message) -> frozenset[str] | None:
        """The actors for whom its key is parked; None when that is all of them, and it is parked behind."""
        blocked = self.shelf.blocked(message.key(), offset_of(message))
        if blocked is None or blocked < self.routing.names:
            return blocked
        await self._park(message, blocked)
        return None

    async def _park(self, message: Message, actors: frozenset[str]) -> None:
        self.routing.counts.parked += 1
        if self.shelf.put(message, "parked", "", 0, actors):
            await self.shelf.flush()

    async def _undecodable(self, hand: Hand, message: Message, error: Problem) -> None:
        kind = unknown_type(error)
        keepers = self.routing.keepers(kind)
        if not keepers:
            self.routing.counts.skipped += 1
        elif kind is None:
            await self._keep(hand, message, "undecodable", error, 1, keepers)
        else:
            self.routing.tell_unknown(f"{self.topic}/{self.partition}/{message.offset()}", kind)
            await self._keep(hand, message, "unknown", Invalid(f"no actor takes the type {kind!r}"), 1, keepers)

    async def _bury(self, hand: Hand, message: Message, failures: dict[str, Failure], blocked: frozenset[str]) -> None:
        actors = blocked | failures.keys()
        error, attempts = next(iter(failures.values()), (None, 0))
        if error is None or attempts == 0:  # it stands behind another of its key
            return await self._park(message, actors)
        reason = "refused" if isinstance(error, Refused) else "failed"
        return await self._keep(hand, message, reason, error, attempts, actors)

    async def _keep(
        self, hand: Hand, message: Message, reason: str, error: Exception, attempts: int, actors: frozenset[str]
    ) -> None:
        """Write a record that nobody can handle to the dead-letter topic, and park its key."""
        where, text = f"{self.topic}/{self.partition}/{message.offset()}", f"{type(error).__name__}: {error}"
        if reason != "unknown":  # of which there may be many: it is told once a type
            logger.error("%s: %s after %d attempts, a dead letter: %s", where, reason, attempts, text)
        await self._room(hand, f"{where}: {reason}: {text}")
        self.shelf.put(message, reason, text, attempts, actors)
        await self.shelf.flush()
        self.routing.counts.dead += 1

    async def _room(self, hand: Hand, what: str) -> None:
        """Stand still while more keys are parked than CONSUMER_PARKED allows."""
        while not self.shelf.room:
            if hand.held is None:
                hand.held = f"{what}; CONSUMER_PARKED=0 allows no dead letters, so this partition stops"
                if self.shelf.limit:
                    hand.held = (
                        f"{what}; as many keys as CONSUMER_PARKED={self.shelf.limit} allows are parked, so this "
                        "partition stops: `hiveio dead list` shows them, `hiveio dead retry` and `hiveio dead drop` "
                        "free them"
                    )
                logger.error("%s", hand.held)
            if self.shelf.queue and hand is self.hand:
                await self._redrive()
            else:
                await self._wait(hand, self.shelf.changed())
        hand.held = None

    # -- what is tried again

    async def _redrive(self) -> None:
        """Try some letters again, in order. What still fails stays where it is, and its key with it."""
        done: list[Message] = []
        while len(done) < GROUP and not self._closing and (message := self.shelf.next()) is not None:
            reason = await self._try(message)
            if reason is None:
                done.append(message)
                continue
            await self._redriven(done)
            done = []
            await self.shelf.note(mark("failed", message, reason))
        await self._redriven(done)

    async def _redriven(self, done: list[Message]) -> None:
        if done:
            await self.shelf.note(*(mark("done", message) for message in done))
            self.routing.counts.redriven += len(done)

    async def _try(self, message: Message) -> str | None:
        """One attempt of one letter: None, or why it failed."""
        routing, found = self.routing, headers_of(message)
        actors = frozenset(found.get(ACTORS, b"").decode("utf-8", "replace").split(","))
        if strange := actors - routing.names:
            return f"there is no actor {', '.join(sorted(strange))} here"
        origin = origin_of(found)
        assert origin is not None
        if OMITTED in found:
            try:
                message = await self.shelf.original(origin[2], time_of(found))
            except Unavailable as error:
                return f"{type(error).__name__}: {error}"
        headers = [pair for pair in all_headers(message) if not pair[0].startswith(OURS)]
        positions = Headers.wrapping(headers).get_all("hive-position")
        position = positions[-1] if positions else None

        def made() -> Envelope:
            event, meta = settled(read(headers, message.value(), routing.codec))
            envelope = Envelope(message=event, id=id_of(key_of(message)), meta=meta)
            topic_id = found.get(TOPIC_ID, b"").decode("utf-8", "replace")
            self._set_record(envelope, message, headers, position, origin[2], time_of(found), letter_of=topic_id)
            return envelope

        try:
            envelope = made()
        except Problem as error:
            keepers = routing.keepers(unknown_type(error))
            return f"{type(error).__name__}: {error}" if keepers & actors else None
        for target in routing.by_type.get(type(envelope.message), ()):
            if target.name not in actors:
                continue
            envelope = made()  # another actor may have changed its own
            self.hand.since = time.monotonic()
            try:
                await target.handle(as_batch(envelope) if target.batch else envelope)
            except BaseException as error:
                failure = self.hand.told(error, self.retry.timeout_s, closing=self._closing)
                if self._closing and isinstance(failure, Unavailable):
                    raise asyncio.CancelledError from None  # another owner tries it
                text = f"{origin}: failed again: {type(failure).__name__}: {failure}"
                logger.warning("%s", text, extra=about(target.contract, envelope))
                return f"{type(failure).__name__}: {failure}"
            finally:
                self.hand.since = None
        return None


def settled(reading: bytes | Reading) -> tuple[Any, Any]:
    """The event and its meta. Raises the Problem that stands in their place."""
    if isinstance(reading, Problem):
        raise reading
    assert not isinstance(reading, bytes)
    return reading


def unknown_type(error: Problem) -> str | None:
    """The type that nobody here takes, where that is why a record could not be decoded."""
    return error.unknown_type if isinstance(error, Invalid) else None


def enveloped(message: Message, event: Any, meta: Any) -> Envelope:
    """What was decoded from a record."""
    return Envelope(message=event, id=id_of(message.key()), meta=meta)


def as_batch(envelope: Envelope) -> Envelope:
    """One event as a batch."""
    return Envelope(message=[envelope.message], id=envelope.id, record=[envelope.record] if envelope.record else None)


def id_of(key: str | bytes | None) -> str:
    """A key as text. No two keys have the same: see ``Context.id``."""
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key or ""


def offset_of(message: Message) -> int:
    offset = message.offset()
    assert offset is not None
    return offset
