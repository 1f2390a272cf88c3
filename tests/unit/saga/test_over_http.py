"""Commands for services that speak HTTP only: sent with a key until there is a definite answer for the process."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hiveio import Transaction
from hiveio.config import Settings
from hiveio.envelope import Context, Envelope, encode_message
from hiveio.errors import ConfigError, HiveError, Invalid, Unavailable
from hiveio.headers import Headers
from hiveio.saga.over_http import CONCURRENCY, MOST_BYTES, sending
from hiveio.saga.receiver import ReceivedCommand
from hiveio.testing import Service
from hiveio.transaction.process import Process
from tests.actors.fulfilment import Fulfilment, OrderPlaced, PaymentReserved, Progress, ReservePayment, Started

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Reply = tuple[int, bytes, dict[str, str]]


class Receiver:
    """A service over HTTP. It gives the next of ``replies``, and keeps what it was sent."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.trickles, self.busy = False, set[Any]()
        self.seen: list[tuple[str, bytes, dict[str, str]]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                while receiver.trickles:  # until the client has gone
                    self.wfile.write(b"H")
                    time.sleep(0.05)
                receiver.seen.append((self.path, body, {name.lower(): text for name, text in self.headers.items()}))
                status, answer, headers = receiver.replies.pop(0)
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(answer)

            def handle(self) -> None:
                receiver.busy.add(self)
                with contextlib.suppress(ConnectionError):
                    super().handle()
                receiver.busy.discard(self)

            def log_message(self, format: str, *arguments: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/wallets/{{id}}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def command(*, age_s: float = 0.0, process: str = "Fulfilment/o1", number: int = 7) -> Envelope:
    sent = {"hive-log": "log", "hive-process": process, "hive-service": "payments", "traceparent": TRACE}
    context = Context(topic="orders.commands", position=(0, number, 0), time=time.time() - age_s, headers=Headers(sent))
    message = ReceivedCommand(encode_message(ReservePayment(5)))
    return Envelope(message=message, id="ada/1", headers=Headers(sent), record=context)


async def test_a_command_is_sent_with_its_key_and_the_process_gets_the_answer_once(receiver: Receiver) -> None:
    async with Service(Fulfilment) as service:
        await service.deliver(Fulfilment, OrderPlaced("o1", 5), source="a")
        handle = sending(service.contracts, service.transactions, receiver.url, 60, 5)
        reserved = b'{"type":"PaymentReserved","payload":{"order":"o1"}}'
        receiver.replies = [(200, b'[{"type":"Other"},%b]' % reserved, {}), (200, reserved, {}), (200, b"null", {})]
        for _ in range(2):
            await handle(command())
        await handle(command(number=8))
        assert (await service.read(Fulfilment, "o1"))[0] == Progress("o1", "paid")
        (path, body, headers), again, other = receiver.seen
        assert (path, body) == ("/wallets/ada%2F1", b'{"type":"ReservePayment","payload":{"amount":5}}')
        assert headers["traceparent"] == TRACE
        assert headers["content-type"] == "application/json"
        keys = [each[2]["idempotency-key"] for each in (receiver.seen[0], again, other)]
        assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        ((422, b'{"type":"t","title":"Rejected","status":1,"detail":"no money"}', {}), "payments: no money"),
        ((404, b"<html>", {}), "payments: Not Found"),
        ((409, b"{}", {}), "payments: Conflict"),
        ((412, b"[]", {}), "payments: Precondition Failed"),
    ],
)
async def test_a_refusal_comes_to_the_process(receiver: Receiver, reply: Reply, detail: str) -> None:
    async with Service(Fulfilment) as service:
        await service.deliver(Fulfilment, OrderPlaced("o1", 5), source="a")
        receiver.replies = [reply]
        await sending(service.contracts, service.transactions, receiver.url, 60, 5)(command())
        assert (await service.read(Fulfilment, "o1"))[0].status == detail


async def test_an_answer_fires_no_deadline_and_refuses_nothing(receiver: Receiver) -> None:
    """Another service names the types in its answer. These two come from the service of the process alone."""
    async with Service(Fulfilment) as service:
        await service.deliver(Fulfilment, OrderPlaced("o1", 5), source="a")
        events = b'[{"type":"PaymentOverdue","payload":{"order":"o1"}},{"type":"CommandRefused","payload":%s}]'
        refused = b'{"service":"payments","id":"o1","command":"ReservePayment","problem":{"detail":"no"}}'
        receiver.replies = [(200, events % refused, {})]
        await sending(service.contracts, service.transactions, receiver.url, 60, 5)(command())
        assert (await service.read(Fulfilment, "o1"))[0].status == "started"


@pytest.mark.parametrize("status", [401, 408, 409, 425, 429, 500, 502, 503, 504])
async def test_what_is_not_definite_is_sent_again(receiver: Receiver, status: int) -> None:
    async with Service(Fulfilment) as service:
        receiver.replies = [(status, b"", {"Retry-After": "1"})]
        with pytest.raises(Unavailable, match=f"payments answered the command ReservePayment for ada/1 with {status}"):
            await sending(service.contracts, service.transactions, receiver.url, 60, 5)(command())


RESERVED = b'{"type":"PaymentReserved","payload":{"order":"o1"}}'


async def test_the_events_of_an_answer_that_does_not_come_whole_are_not_lost(receiver: Receiver) -> None:
    async with Service(Fulfilment) as service:
        await service.deliver(Fulfilment, OrderPlaced("o1", 5), source="a")
        handle = sending(service.contracts, service.transactions, receiver.url, 60, 5)
        receiver.replies = [(200, RESERVED[:20], {"Content-Length": str(len(RESERVED))}), (200, RESERVED, {})]
        with pytest.raises(Unavailable, match="did not answer: IncompleteRead"):
            await handle(command())
        await handle(command())
        assert (await service.read(Fulfilment, "o1"))[0] == Progress("o1", "paid")


class Narrow(Fulfilment):
    """A version that did not take all that the service answers."""

    name = "Fulfilment"
    correlates = {OrderPlaced: "order", PaymentReserved: "order"}  # noqa: RUF012

    def perform(  # type: ignore[override]
        self, state: Progress | None, message: OrderPlaced | PaymentReserved, tx: Transaction
    ) -> Started:
        return Started("o1")


async def test_a_version_that_takes_more_knows_what_the_one_before_has_taken(receiver: Receiver) -> None:
    receiver.replies = [(200, b'[{"type":"CustomerLeft"},%b]' % RESERVED, {})] * 2
    async with Service(Narrow) as service:
        await service.deliver(Narrow, OrderPlaced("o1", 5), source="a")
        await sending(service.contracts, service.transactions, receiver.url, 60, 5)(command())
    async with Service(Fulfilment, log=service.log) as later:
        await sending(later.contracts, later.transactions, receiver.url, 60, 5)(command())
        kept = Process.of(later.log.folds[0].aggregates["Fulfilment/o1"].process)
        names = [source.rpartition("/7:0/")[2] for source in kept.sources]
        assert names == ["a", "PaymentReserved/0", "CustomerLeft/0"]


async def test_an_answer_that_is_too_large_is_a_dead_letter(receiver: Receiver) -> None:
    async with Service(Fulfilment) as service:
        handle = sending(service.contracts, service.transactions, receiver.url, 60, 5)
        receiver.replies = [(200, b"[%b]" % b",".join([RESERVED] * (1 + MOST_BYTES // len(RESERVED))), {})]
        with pytest.raises(Invalid, match=r"has executed the command .* its answer has more than 1048576 bytes"):
            await handle(command())


async def test_a_service_that_answers_byte_by_byte_holds_up_no_thread(receiver: Receiver) -> None:
    async with Service(Fulfilment) as service:
        handle = sending(service.contracts, service.transactions, receiver.url, 60, 2)
        receiver.trickles, began = True, time.monotonic()
        calls = [handle(command(number=number)) for number in range(CONCURRENCY)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in found} == {Unavailable}
        assert time.monotonic() - began < 5
        async with asyncio.timeout(5):
            while receiver.busy:
                await asyncio.sleep(0.01)
        receiver.trickles, receiver.replies = False, [(200, b"null", {})]
        await handle(command())


async def test_what_is_older_than_the_window_is_not_sent(receiver: Receiver) -> None:
    async with Service(Fulfilment) as service:
        handle = sending(service.contracts, service.transactions, receiver.url, 60, 5)
        with pytest.raises(Invalid, match="COMMAND_WINDOW=60 s is how long payments remembers"):
            await handle(command(age_s=61))
        assert not receiver.seen
        with pytest.raises(HiveError, match="belongs to an actor that is not here"):
            await handle(command(process="Another/o1"))
        receiver.replies = [(302, b"", {"Location": "/"})]
        with pytest.raises(HiveError, match="with 302; correct COMMAND_URLS"):
            await handle(command())
        with pytest.raises(Unavailable, match="did not answer"):
            await sending(service.contracts, service.transactions, "http://127.0.0.1:9/{id}", 60, 5)(command())


@pytest.mark.parametrize(
    "text", ["payments", "payments=http://a/wallets", "p=ftp://a/{id}", "p=http://a/{id},p=http://b/{id}"]
)
def test_wrong_urls_stop_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="COMMAND_URLS"):
        Settings.read({"COMMAND_URLS": text})
    right = Settings.read({"COMMAND_URLS": "p=http://a/{id},q=https://b:1/x/{id}/y"})
    assert right.command_urls == (("p", "http://a/{id}"), ("q", "https://b:1/x/{id}/y"))
