"""Forwarding: where several instances work on an aggregate, the leader of its scope executes the commands of all.

A lock that goes round costs each instance a wait for its turn, and Redis a call for each turn. So an instance gives
such a command to the leader, by its mailbox, and answers its client with what comes back. It is what a client does that
sends a command again to another instance: the command id keeps it from being executed twice, whatever is lost, paused
or late. Modelled in Forward.tla.

The instance executes the command itself, under the lock, where the leader takes none, declines or is silent. What the
leader has of it may still be executed then, so the command is *shared*: see InFlight. A command whose actor may look
at credentials is not forwarded.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec

from hiveio import outages
from hiveio.actor import Contract
from hiveio.envelope import Envelope, Outcome
from hiveio.errors import Problem, Quarantined, Unavailable, Unknown
from hiveio.headers import HeaderView
from hiveio.http.problem import encode_problem
from hiveio.logs import request_id
from hiveio.transaction.cache import Cache
from hiveio.transaction.command import InFlight, Shared
from hiveio.transaction.decision import problem_of
from hiveio.transaction.mailbox import Answer, Forwarded, Mailbox, Packet
from hiveio.transaction.rule import IdRecord
from hiveio.transaction.scope import Scope

logger = logging.getLogger("hiveio.forwarding")

BODY_BYTES = 65_536  # of a command; larger ones are not forwarded
SECRET = frozenset({"authorization", "proxy-authorization", "cookie"})  # headers
OPEN_S = 20.0  # for which the mailbox is looked into after several instances were seen at work
LOOK_S = 0.1  # between two looks at what has no answer
WORKING_S = 0.3  # after which an instance says that it is at work on a command, and again after as long
SILENT_S = 1.0  # without a word of a command, after which it is executed here
TAKES_S = 1.0  # for which an instance is known to take commands, since it has said so or was heard of
CLOSED_S = 0.3  # until one that takes none is asked again
AVOIDED_S = 2.0  # for which nothing is forwarded to an instance that was silent or took none
PEERS = 1_000  # instances that are remembered

# "busy": it was declined, as others would be now; "declined": that is about this command alone.
ACCEPTED, REFUSED, BUSY, DECLINED, UNKNOWN, WORKING = "accepted", "refused", "busy", "declined", "unknown", "working"

_document = msgspec.json.Decoder(dict[str, Any]).decode


class Submit(Protocol):
    """See ``Engine.submit``."""

    def __call__(self, contract: Contract, envelope: Envelope, *, shared: Shared) -> InFlight: ...


class _At:
    """A command that is executed for another instance, or by it. ``told_at``: when that instance was told of it, or
    has told."""

    __slots__ = ("command", "told_at")

    def __init__(self, command: InFlight, told_at: float) -> None:
        self.command, self.told_at = command, told_at


class _Peer:
    """Another instance, as far as commands go to it or come from it."""

    def __init__(self) -> None:
        self.waiting: dict[int, _At] = {}  # forwarded to it, by their numbers
        self.takes_until = self.avoided_until = 0.0
        self.asked: asyncio.Task[None] | None = None  # whether it takes commands
        self.given: dict[int, _At] = {}  # that it has forwarded to this instance
        self.latest = 0  # the highest number among these: a packet may come twice, and a command is taken once


class Forwarding:
    """What one instance forwards to others, and executes for them."""

    def __init__(
        self,
        cache: Cache,
        instance: str,
        contracts: Mapping[str, Contract],
        leader: Callable[[Scope], str],
        submit: Submit,
        execute: Callable[[InFlight], None],
    ) -> None:
        """``leader`` names the instance that leads a scope, as far as is known. ``submit`` takes a command of another
        instance; ``execute`` executes one here that was forwarded or should have been."""
        self._cache, self._contracts, self._leader = cache, contracts, leader
        self._submit, self._execute = submit, execute
        self._mailbox = Mailbox(cache, instance, OPEN_S, self._taken)
        self._peers: dict[str, _Peer] = {}
        self._count = 0
        self._looking: asyncio.TimerHandle | None = None
        self._logged_at = -outages.EVERY_S

    def look_at(self, scopes: Iterable[Scope], needs_log: Callable[[Scope], bool]) -> None:
        """Take commands of others from now on, if several instances work on the same aggregates of these scopes. Where
        all commands are forwarded, read the log with pauses. ``needs_log`` says whether something waits for it."""
        for scope in scopes:
            if scope.contention:
                self._mailbox.open()
                scope.pace.look(partial(self._may_pause, scope, needs_log))

    def _may_pause(self, scope: Scope, needs_log: Callable[[Scope], bool]) -> bool:
        """Whether another instance leads the scope, nothing waits for the log here, and it is read as far as the leader
        has applied it."""
        follows = self._leader(scope) not in ("", self._mailbox.instance)
        return follows and scope.ready and scope.view.next >= scope.mirror.watermark.offset and not needs_log(scope)

    async def take_no_commands(self) -> None:
        """This instance is about to end: others keep their commands."""
        try:
            await self._mailbox.take_no_commands()
        except Unavailable:
            pass  # it is avoided when it is silent

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        asked = [peer.asked for peer in self._peers.values() if peer.asked is not None]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await self._mailbox.stop()

    # -- to another instance

    def forwards(self, command: InFlight) -> bool:
        """Forward a command, if another instance should execute it. Returns whether it does."""
        if command.scope.contention.isdisjoint(command.needs) or not _may_leave(command):
            return False
        self._mailbox.open()
        leader = self._leader(command.scope)
        if not leader or leader == self._mailbox.instance or not self._mailbox.works:
            return False
        now, peer = asyncio.get_running_loop().time(), self._peer(leader)
        if now < peer.avoided_until:
            return False
        if now >= peer.takes_until:
            if peer.asked is None:
                peer.asked = asyncio.ensure_future(self._ask(leader, peer))
            return False
        self._count += 1
        peer.waiting[self._count] = _At(command, now)
        command.share()
        command.scope.contention.forward(command.id.text)
        command.scope.pace.forwarded()
        packed = Forwarded(
            self._count, command.contract.name, command.envelope.id, command.id.key, command.keyed,
            command.started_at.offset, command.started_at.time, command.context.run(request_id.get),
            command.envelope.body, _headers(command),
        )  # fmt: skip
        self._mailbox.forward(leader, packed, partial(self._not_sent, peer, self._count))
        self._look_later()
        return True

    async def _ask(self, name: str, peer: _Peer) -> None:
        """Ask whether that instance takes commands."""
        takes = False
        try:
            takes = await self._cache.takes_commands(name)
        except Unavailable:
            pass
        finally:
            peer.asked = None
        now = asyncio.get_running_loop().time()
        peer.takes_until, peer.avoided_until = (now + TAKES_S, 0.0) if takes else (0.0, now + CLOSED_S)

    def _not_sent(self, peer: _Peer, number: int) -> None:
        """The command was not put into the mailbox of that instance, or nobody knows whether it was."""
        self._avoid(peer)
        self._come_back(peer, number)

    @staticmethod
    def _avoid(peer: _Peer) -> None:
        peer.takes_until, peer.avoided_until = 0.0, asyncio.get_running_loop().time() + AVOIDED_S

    def _answered(self, peer: _Peer, answer: Answer, now: float) -> None:
        waiting = peer.waiting.get(answer.number)
        if waiting is None or waiting.command.over:  # one that came back is executed here, and answered by that
            peer.waiting.pop(answer.number, None)
        elif answer.outcome == WORKING:
            waiting.told_at = now
        elif answer.outcome in (BUSY, DECLINED):
            if answer.outcome == BUSY:
                self._avoid(peer)
            waiting.command.unshare()
            self._come_back(peer, answer.number)
        elif answer.outcome == UNKNOWN:
            self._come_back(peer, answer.number)
        else:
            given: Outcome | Problem = Outcome(encoded=answer.body, headers=answer.headers)
            if answer.outcome == REFUSED:
                given = problem_of(_document(answer.body), answer.headers)
            del peer.waiting[answer.number]
            waiting.command.pass_on(given)

    def _come_back(self, peer: _Peer, number: int) -> None:
        """The command is executed here, by the other instance too perhaps."""
        waiting = peer.waiting.pop(number, None)
        if waiting is not None and not waiting.command.over:
            self._execute(waiting.command)

    # -- from another instance

    def _taken(self, packet: Packet) -> None:
        self._mailbox.open()
        now, peer = asyncio.get_running_loop().time(), self._peer(packet.sender)
        if packet.answers:
            peer.takes_until = now + TAKES_S
        for answer in packet.answers:
            self._answered(peer, answer, now)
        for command in packet.commands:
            if command.number > peer.latest:
                peer.latest = command.number
                self._begin(packet.sender, peer, command)
        if peer.given:
            self._look_later()

    def _begin(self, sender: str, peer: _Peer, given: Forwarded) -> None:
        """Execute a command of another instance."""
        contract = self._contracts.get(given.actor)
        token = request_id.set(given.request)
        try:
            if contract is None or not self._mailbox.takes:
                raise Unavailable("This instance is about to end, or has no such actor.")
            message, meta = contract.command_codec.decode(given.body)
            envelope = Envelope(
                message=message,
                id=given.id,
                meta=meta,
                key=given.key if given.keyed else None,
                body=given.body,
                headers=HeaderView.of_pairs(given.headers),
            )
            started_at = IdRecord(given.offset, given.time, given.keyed)
            command = self._submit(contract, envelope, shared=Shared(given.key, started_at))
        except Problem as problem:  # it was not taken, and the other instance tells the client
            logger.debug("a command of another instance is declined: %s", problem)
            busy = isinstance(problem, Unavailable) and not isinstance(problem, Quarantined)
            self._mailbox.answer(sender, Answer(given.number, BUSY if busy else DECLINED))
            return
        except Exception:  # whatever it is, it may have come after the command was taken
            logger.exception("a command of another instance could not be taken for an unexpected reason")
            self._mailbox.answer(sender, Answer(given.number, UNKNOWN))
            return
        finally:
            request_id.reset(token)
        peer.given[given.number] = _At(command, asyncio.get_running_loop().time())
        command.future.add_done_callback(partial(self._done, sender, peer, given.number))

    def _done(self, sender: str, peer: _Peer, number: int, _: "asyncio.Future[Outcome]") -> None:
        given = peer.given.pop(number)
        self._mailbox.answer(sender, _answer(number, given.command))

    # -- time

    def _peer(self, name: str) -> _Peer:
        peer = self._peers.get(name)
        if peer is None:
            if len(self._peers) >= PEERS:
                self._peers = {known: each for known, each in self._peers.items() if each.waiting or each.given}
            peer = self._peers[name] = _Peer()
        return peer

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """Execute here what others are silent about, and tell them what this instance is at work on."""
        self._looking = None
        now = asyncio.get_running_loop().time()
        for name, peer in self._peers.items():
            for number, given in peer.given.items():
                if now - given.told_at > WORKING_S:
                    given.told_at = now
                    self._mailbox.answer(name, Answer(number, WORKING))
            if silent := [number for number, each in peer.waiting.items() if now - each.told_at > SILENT_S]:
                self._log_silence(name, now)
                self._avoid(peer)
                for number in silent:
                    self._come_back(peer, number)
        if any(peer.waiting or peer.given for peer in self._peers.values()):
            self._mailbox.open()
            self._look_later()

    def _log_silence(self, name: str, now: float) -> None:
        if now - self._logged_at > outages.EVERY_S:
            self._logged_at = now
            logger.warning("instance %s does not answer the commands that were forwarded to it; they go on here", name)


def _may_leave(command: InFlight) -> bool:
    """Whether a command may be forwarded: it is new, comes from a client, and others may see it."""
    envelope, contract = command.envelope, command.contract
    return not (
        command.shared
        or command.input is not None
        or envelope.conditions is not None
        or len(envelope.body) > BODY_BYTES
        or ((contract.wants_context or command.passed) and not SECRET.isdisjoint(envelope.headers))
    )


def _headers(command: InFlight) -> tuple[tuple[str, bytes], ...]:
    return tuple(
        [(name, value) for name, value in command.envelope.headers.pairs if value is not None and name not in SECRET]
    )


def _answer(number: int, command: InFlight) -> Answer:
    error = command.future.exception()
    if error is None:
        outcome = command.future.result()
        return Answer(number, ACCEPTED, outcome.encoded or b"null", outcome.headers)
    if isinstance(error, Problem) and error.status < 500:
        return Answer(number, REFUSED, encode_problem(error), error.headers)
    # The other instance tells the client what is wrong, after it has met it as well. Of a fault of the actor nothing is
    # left, unless there may be a record all the same.
    return Answer(number, UNKNOWN if command.maybe_recorded or isinstance(error, Unknown) else DECLINED)
