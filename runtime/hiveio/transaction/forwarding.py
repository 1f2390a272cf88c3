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
from hiveio.errors import Problem, Unavailable, Unknown
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
LOOK_S = 0.1  # between two looks at who is silent
WORKING_S = 0.3  # without an answer, after which an instance says that it is at work
SILENT_S = 1.0  # without a word, after which the commands given to an instance are executed here
AVOIDED_S = 2.0  # for which nothing is forwarded to an instance that was silent or declined

ACCEPTED, REFUSED, DECLINED, UNKNOWN = "accepted", "refused", "declined", "unknown"

_document = msgspec.json.Decoder(dict[str, Any]).decode


class Submit(Protocol):
    """See ``Engine.submit``."""

    def __call__(self, contract: Contract, envelope: Envelope, *, shared: Shared) -> InFlight: ...


class _Peer:
    """Another instance, as far as commands go to it or come from it."""

    def __init__(self, now: float) -> None:
        self.waiting: dict[int, InFlight] = {}  # forwarded to it, by their numbers
        self.heard_at = now  # when it was heard of, or when the first of these was sent
        self.avoided_until = 0.0
        self.given: dict[int, InFlight] = {}  # that it has forwarded to this instance
        self.told_at = now  # when it was told something


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
        self._contracts, self._leader, self._submit, self._execute = contracts, leader, submit, execute
        self._mailbox = Mailbox(cache, instance, OPEN_S, self._taken)
        self._peers: dict[str, _Peer] = {}
        self._count = 0
        self._looking: asyncio.TimerHandle | None = None
        self._logged_at = -outages.EVERY_S

    def look(self, scopes: Iterable[Scope]) -> None:
        """Take commands of others from now on, if several instances work on the same aggregates of these scopes."""
        for scope in scopes:
            if scope.contention:
                self._mailbox.open()
                break

    async def take_no_commands(self) -> None:
        """This instance is about to end: others keep their commands."""
        try:
            await self._mailbox.take_no_commands()
        except Unavailable:
            pass  # it is avoided when it is silent

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await self._mailbox.stop()

    # -- to another instance

    def takes(self, command: InFlight) -> bool:
        """Forward a command, if another instance should execute it. Returns whether it does."""
        if command.scope.contention.isdisjoint(command.needs) or not _may_leave(command):
            return False
        self._mailbox.open()
        leader = self._leader(command.scope)
        if not leader or leader == self._mailbox.instance:
            return False
        now = asyncio.get_running_loop().time()
        peer = self._peer(leader, now)
        if now < peer.avoided_until:
            return False
        if not peer.waiting:
            peer.heard_at = now
        self._count += 1
        peer.waiting[self._count] = command
        command.share()
        packed = Forwarded(
            self._count, command.contract.name, command.envelope.id, command.id.key, command.keyed,
            command.started_at.offset, command.started_at.time, request_id.get(), command.envelope.body,
            _headers(command),
        )  # fmt: skip
        self._mailbox.forward(leader, packed, partial(self._not_sent, peer, self._count))
        self._look_later()
        return True

    def _not_sent(self, peer: _Peer, number: int, certain: bool) -> None:
        """The command could not be put into the mailbox of that instance, or nobody knows whether it was."""
        peer.avoided_until = asyncio.get_running_loop().time() + AVOIDED_S
        self._come_back(peer, number, certain)

    def _answered(self, peer: _Peer, answer: Answer) -> None:
        if answer.outcome not in (ACCEPTED, REFUSED):
            if declined := answer.outcome == DECLINED:
                peer.avoided_until = asyncio.get_running_loop().time() + AVOIDED_S
            self._come_back(peer, answer.number, declined)
        elif (command := peer.waiting.pop(answer.number, None)) is not None and not command.over:
            # One that came back is executed here, and answered by that.
            if answer.outcome == REFUSED:
                command.pass_on(problem_of(_document(answer.body), answer.headers))
            else:
                command.pass_on(Outcome(encoded=answer.body, headers=answer.headers))

    def _come_back(self, peer: _Peer, number: int, certain: bool) -> None:
        """The command is executed here. If it is ``certain``, nobody else has executed it or will."""
        command = peer.waiting.pop(number, None)
        if command is None or command.over:
            return
        if certain:
            command.unshare()
        self._execute(command)

    # -- from another instance

    def _taken(self, packet: Packet) -> None:
        peer = self._peer(packet.sender, now := asyncio.get_running_loop().time())
        peer.heard_at = now
        for answer in packet.answers:
            self._answered(peer, answer)
        for command in packet.commands:
            if command.number not in peer.given:  # a packet may come twice
                self._begin(packet.sender, peer, command)
        if peer.given:
            self._look_later()

    def _begin(self, sender: str, peer: _Peer, given: Forwarded) -> None:
        """Execute a command of another instance."""
        contract = self._contracts.get(given.actor)
        token = request_id.set(given.request)
        try:
            if contract is None:
                raise Unavailable("This actor is not here.")
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
        except Exception as error:  # whatever it is, nothing was executed, and the other instance tells the client
            logger.debug("a command of another instance is declined: %s", error)
            self._mailbox.answer(sender, Answer(given.number, DECLINED))
            return
        finally:
            request_id.reset(token)
        peer.given[given.number] = command
        command.future.add_done_callback(partial(self._done, sender, peer, given.number))

    def _done(self, sender: str, peer: _Peer, number: int, future: "asyncio.Future[Outcome]") -> None:
        del peer.given[number]
        peer.told_at = asyncio.get_running_loop().time()
        self._mailbox.answer(sender, _answer(number, future))

    # -- time

    def _peer(self, name: str, now: float) -> _Peer:
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = _Peer(now)
        return peer

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """Execute here what was given to instances that are silent, and tell the others that this one is at work."""
        self._looking = None
        now = asyncio.get_running_loop().time()
        for name, peer in list(self._peers.items()):
            if peer.given and now - peer.told_at > WORKING_S:
                peer.told_at = now
                self._mailbox.answer(name)
            if peer.waiting and now - peer.heard_at > SILENT_S:
                self._log_silence(name, now)
                peer.avoided_until = now + AVOIDED_S
                for number in list(peer.waiting):
                    self._come_back(peer, number, certain=False)
            if not (peer.waiting or peer.given) and now > peer.avoided_until + OPEN_S:
                del self._peers[name]
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


def _answer(number: int, future: "asyncio.Future[Outcome]") -> Answer:
    error = future.exception()
    if error is None:
        outcome = future.result()
        return Answer(number, ACCEPTED, outcome.encoded or b"null", outcome.headers)
    if isinstance(error, Problem) and error.status < 500:
        return Answer(number, REFUSED, encode_problem(error), error.headers)
    # The other instance tells the client of a fault of the actor, after it has met it as well.
    certain = isinstance(error, Unavailable) and not isinstance(error, Unknown)
    return Answer(number, DECLINED if certain else UNKNOWN)
