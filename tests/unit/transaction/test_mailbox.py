"""Packets between instances: what is gathered in one, when a mailbox is looked into, and what becomes of failures."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import msgspec
import pytest

from hiveio.errors import HiveError, Unavailable
from hiveio.logs import request_id
from hiveio.transaction import mailbox
from hiveio.transaction.cache import Cache
from hiveio.transaction.mailbox import TAKES_MS, Answer, Forwarded, Mailbox, Packet
from tests.unit.transaction.test_engine import until

_decode = msgspec.msgpack.Decoder(Packet).decode


class Mail(Cache):
    """The mailboxes of a cluster in memory. It can lose, double and hold packets, and fail.

    ``sent`` are all packets and to whom they were sent, ``said`` the instances that said that they take commands, each
    time, ``takers`` those that take them now, and ``questions`` those of which somebody has asked that.
    """

    def __init__(self) -> None:
        self.boxes: dict[str, list[bytes]] = defaultdict(list)
        self.sent: list[tuple[str, Packet]] = []
        self.said: list[str] = []
        self.takers: set[str] = set()
        self.questions: list[str] = []
        self.looks = 0  # into mailboxes
        self.copies: Callable[[str, Packet], int] = lambda to, packet: 1  # that are put into the mailbox
        self.send_error: HiveError | None = None  # the answer to a packet with commands, which is there nevertheless
        self.receive_error: Exception | None = None
        self._later: dict[str, list[bytes]] = {}
        self._came: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def hold(self, instance: str) -> None:
        """What is sent to this instance does not come before ``release``."""
        self._later[instance] = []

    def release(self, instance: str) -> None:
        self.put(instance, *self._later.pop(instance))

    def put(self, instance: str, *packets: bytes) -> None:
        self.boxes[instance].extend(packets)
        self._came[instance].set()

    def commands(self, to: str) -> list[Forwarded]:
        """All that were sent to an instance."""
        return [command for each, packet in self.sent if each == to for command in packet.commands]

    def answers(self, to: str) -> list[Answer]:
        return [answer for each, packet in self.sent if each == to for answer in packet.answers]

    def send(self, instance: str, packet: bytes, *, commands: bool) -> "asyncio.Future[bool]":
        sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        put = not commands or instance in self.takers
        if put:
            unpacked = _decode(packet)
            self.sent.append((instance, unpacked))
            copies = [packet] * self.copies(instance, unpacked)
            if instance in self._later:
                self._later[instance].extend(copies)
            elif copies:
                self.put(instance, *copies)
        if commands and self.send_error is not None:
            sent.set_exception(self.send_error)
        else:
            sent.set_result(put)
        return sent

    async def take_commands(self, instance: str, for_ms: int) -> None:
        assert for_ms == TAKES_MS
        self.said.append(instance)
        self.takers.add(instance)

    async def takes_commands(self, instance: str) -> bool:
        self.questions.append(instance)
        return instance in self.takers

    async def take_no_commands(self, instance: str) -> None:
        self.takers.discard(instance)

    async def receive(self, instance: str, wait_s: float) -> list[bytes]:
        self.looks += 1
        if (error := self.receive_error) is not None:
            self.receive_error = None
            raise error
        if not self.boxes[instance]:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._came[instance].wait()
        self._came[instance].clear()
        return self.boxes.pop(instance, [])


@asynccontextmanager
async def mailbox_of(mail: Mail, open_s: float = 10.0) -> AsyncIterator[tuple[Mailbox, list[Packet]]]:
    """The mailbox of the instance A, and what it has taken."""
    taken: list[Packet] = []
    box = Mailbox(mail, "A", open_s, taken.append)
    try:
        yield box, taken
    finally:
        await box.stop()


def command(number: int, body: bytes = b"{}", headers: tuple[tuple[str, bytes], ...] = ()) -> Forwarded:
    return Forwarded(number, "Account", "a", f"key {number}", False, 1, 2, "request", body, headers)


def packet(*answers: Answer) -> bytes:
    return msgspec.msgpack.encode(Packet("B", answers=answers))


def never() -> None:
    raise AssertionError("it was sent")


async def test_what_is_sent_in_one_turn_of_the_loop_goes_in_one_packet_to_each_instance() -> None:
    mail = Mail()
    mail.takers |= {"B", "C"}
    async with mailbox_of(mail) as (box, _):
        for number in range(1, 4):
            box.forward("B", command(number), never)
        box.forward("C", command(4), never)
        for answer in (Answer(7, "accepted", b"null"), Answer(8, "declined"), Answer(9, "unknown")):
            box.answer("B", answer)
        assert not mail.sent
        await until(lambda: len(mail.sent) == 3)
        assert mail.sent[0] == ("B", Packet("A", tuple(command(number) for number in (1, 2, 3))))
        assert mail.sent[1] == ("C", Packet("A", (command(4),)))
        assert [each.number for each in mail.sent[2][1].answers] == [7, 8, 9]
        box.forward("B", command(5), never)
        await until(lambda: len(mail.sent) == 4)


async def test_large_ones_are_split_into_several_packets_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "PACKET_BYTES", 250)
    mail = Mail()
    mail.takers.add("B")
    async with mailbox_of(mail) as (box, _):
        for number in range(7):
            box.forward("B", command(number, bytes(100)), never)
            box.answer("B", Answer(number, "accepted", bytes(100)))
        await until(lambda: len(mail.answers("B")) == 7)
        assert [len(each.commands) for _, each in mail.sent if each.commands] == [3, 3, 1]
        assert [len(each.answers) for _, each in mail.sent if each.answers] == [3, 3, 1]
        assert [each.number for each in mail.commands("B")] == [*range(7)]


async def test_headers_count_for_the_size_of_a_packet_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body has a limit of its own where it is forwarded, and headers may be many times as large as a small body."""
    monkeypatch.setattr(mailbox, "PACKET_BYTES", 250)
    mail = Mail()
    mail.takers.add("B")
    async with mailbox_of(mail) as (box, _):
        for number in range(7):
            box.forward("B", command(number, b"", (("x-large", bytes(100)),)), never)
        await until(lambda: len(mail.commands("B")) == 7)
        assert [len(each.commands) for _, each in mail.sent] == [3, 3, 1]


@pytest.mark.parametrize("unclear", [False, True])
async def test_who_sends_learns_that_nothing_was_put_there_or_perhaps_nothing(unclear: bool) -> None:
    mail = Mail()
    if unclear:
        mail.takers.add("B")
        mail.send_error = Unavailable("The answer of Redis was lost.")
    failed: list[int] = []
    async with mailbox_of(mail) as (box, _):
        for number in (1, 2):
            box.forward("B", command(number), partial(failed.append, number))
        await until(lambda: len(failed) == 2)
    assert failed == [1, 2]


async def test_it_is_not_looked_into_before_it_is_open_nor_after_nobody_has_needed_it_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailbox, "WAIT_S", 0.01)
    mail = Mail()
    async with mailbox_of(mail, open_s=1.0) as (box, taken):
        await asyncio.sleep(0.02)
        assert (mail.looks, mail.said) == (0, [])
        box.open()
        await until(lambda: "A" in mail.takers)
        await until(lambda: "A" not in mail.takers)
        looks = mail.looks
        mail.put("A", packet())
        await asyncio.sleep(0.03)
        assert (mail.looks, taken) == (looks, [])
        box.open()
        await until(lambda: taken)
        assert "A" in mail.takers, "it says so at once when it opens again"


async def test_it_says_again_that_it_takes_commands_and_says_at_once_that_it_takes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("WAIT_S", 0.005), ("SAY_S", 0.01)):
        monkeypatch.setattr(mailbox, name, value)
    mail = Mail()
    async with mailbox_of(mail) as (box, taken):
        box.open()
        await until(lambda: len(mail.said) >= 3)
        await box.take_no_commands()
        assert "A" not in mail.takers
        said, looks = len(mail.said), mail.looks
        await until(lambda: mail.looks > looks + 5)
        assert len(mail.said) == said
        mail.put("A", packet())
        await until(lambda: taken)
        assert "A" not in mail.takers, "answers to its own commands come still"


async def test_a_packet_that_cannot_be_read_is_dropped_and_those_behind_it_are_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mail = Mail()
    async with mailbox_of(mail) as (box, taken):
        box.open()
        bad = (b"", b"\xc1", packet()[:-1], msgspec.msgpack.encode([1, 2]), b"\x93\xa1\xff\x90\x90")
        mail.put("A", *bad, packet(Answer(1, "accepted")))
        await until(lambda: taken)
        assert taken == [Packet("B", answers=(Answer(1, "accepted"),))]
        assert [record.levelname for record in caplog.records] == len(bad) * ["ERROR"]


@pytest.mark.parametrize("error", [Unavailable("Redis is away."), RuntimeError("unexpected")])
async def test_it_is_looked_into_again_after_a_failure(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mailbox, "AGAIN_S", 0.001)
    mail = Mail()
    mail.receive_error = error
    async with mailbox_of(mail) as (box, taken):
        box.open()
        mail.put("A", packet())
        await until(lambda: taken)
    assert len(caplog.records) == isinstance(error, RuntimeError), "an outage of Redis is reported elsewhere"


async def test_who_cannot_read_its_mailbox_does_not_say_that_it_takes_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its user may have no right to BLMPOP, and have all that it takes to say so."""
    for name, value in (("WAIT_S", 0.005), ("SAY_S", 0.0), ("AGAIN_S", 0.001)):
        monkeypatch.setattr(mailbox, name, value)
    mail = Mail()
    receive = mail.receive

    async def refused(instance: str, wait_s: float) -> list[bytes]:
        mail.looks += 1
        raise Unavailable("Redis refuses BLMPOP: this user has no permissions to run it")

    monkeypatch.setattr(mail, "receive", refused)
    async with mailbox_of(mail) as (box, _):
        box.open()
        await until(lambda: mail.looks > 5)
        assert len(mail.said) <= 1
        assert not box.works
        monkeypatch.setattr(mail, "receive", receive)
        await until(lambda: len(mail.said) > 1)
        assert box.works


async def test_packets_are_not_taken_in_the_context_of_the_request_that_has_opened_it() -> None:
    """The actor of another instance's command would see what belongs to that request, such as its span."""
    mail = Mail()
    taken: list[str] = []
    box = Mailbox(mail, "A", 10.0, lambda packet: taken.append(request_id.get()))
    before = request_id.set("the request that has opened it")
    box.open()
    request_id.reset(before)
    mail.put("A", packet())
    await until(lambda: taken)
    await box.stop()
    assert taken == [""]


async def test_what_waits_is_sent_before_the_end() -> None:
    mail = Mail()
    async with mailbox_of(mail) as (box, _):
        box.answer("B", Answer(1, "accepted"))
    assert [answer.number for answer in mail.answers("B")] == [1]
