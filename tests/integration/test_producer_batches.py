"""Batches over HTTP: streamed, answered record by record, one bad record spoils no other."""

import asyncio
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.integration.conftest import Make
from tests.integration.topics import read_all
from tests.process import Role, settled, wait_until
from tests.services import Kafka

ACTOR = """
from hiveio import Actor, Command, Event, Rejected

class Deposit(Command):
    amount: int
    text: str = ""
class Deposited(Event):
    amount: int

class Account(Actor):
    path = "/accounts/{id}"

    def perform(self, message: Deposit) -> Deposited | None:
        if message.amount < 0:
            raise Rejected("less than nothing")
        if message.amount == 666_666:
            raise KeyError("a fault of the actor")
        return Deposited(message.amount) if message.amount else None
"""
NDJSON = {"content-type": "application/x-ndjson"}


def deposit(amount: Any, **more: Any) -> bytes:
    return json.dumps({"type": "Deposit", "payload": {"amount": amount, **more}}).encode()


def amounts(kafka: Kafka, topic: str) -> list[int]:
    return [msgspec.json.decode(m.value() or b"")["payload"]["amount"] for m in read_all(kafka.brokers, topic)]


def answers(response: httpx.Response) -> list[dict[str, Any]]:
    if response.headers["content-type"] == "application/x-ndjson":
        return [json.loads(line) for line in response.content.splitlines()]
    assert response.headers["content-type"] == "application/json"
    found: list[dict[str, Any]] = response.json()
    return found


def offset(position: str) -> int:
    return int(position.rpartition("/")[2])


BAD = [
    deposit(1),
    b"{nonsense}",
    deposit("two"),
    deposit(-3),
    b'{"type":"Nothing"}',
    deposit(0),
    deposit(5, text="x" * 2000),
    b"7",
    deposit(666_666),
    deposit(8),
]


@pytest.mark.parametrize("form", ["array", "lines"])
def test_each_record_has_its_answer(kafka: Kafka, topic: str, producer: Make, form: str) -> None:
    body = b"[ %b ]" % b" , ".join(BAD) if form == "array" else b"\n".join(BAD)
    with producer(BODY_LIMIT="1000") as role:
        headers = (NDJSON if form == "lines" else {}) | {"Idempotency-Key": "k"}
        response = httpx.post(role.url + "/accounts/a", content=body, headers=headers)
        assert response.status_code == 207
        found = answers(response)
        assert [each["status"] for each in found] == [200, 400, 422, 422, 422, 200, 413, 422, 500, 200]
        assert found[0] == {"status": 200, "position": f"{topic}/0/0"}
        assert found[2]["pointer"] == "/payload/amount"
        assert found[3]["detail"] == "less than nothing"
        assert found[5] == {"status": 200}, "nothing to write"
        assert found[9] == {"status": 200, "position": f"{topic}/0/1"}
        (line,) = role.complaints()
        assert line["message"] == "Account failed at Deposit: KeyError: 'a fault of the actor'"
        assert line["record"] == 8
    first, last = read_all(kafka.brokers, topic)
    assert first.key() == b"a"
    keys = [dict(m.headers() or [])["hive-key"] for m in (first, last)]
    assert keys == [b"k/0", b"k/9"]


def test_a_good_batch_is_200_and_an_empty_one_too(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer() as role:
        url = role.url + "/accounts/a"
        response = httpx.post(url, content=b"[%b]" % b",".join(map(deposit, range(1, 501))))
        assert response.status_code == 200
        assert [each["position"] for each in answers(response)] == [f"{topic}/0/{n}" for n in range(500)]
        assert answers(httpx.post(url, content=b" [ ] ")) == []
        assert httpx.post(url, content=b"", headers=NDJSON).content == b""
        # In parts, as a stream of unknown length.
        lines = (deposit(n) + b"\n" for n in range(501, 1001))
        assert httpx.post(url, content=lines, headers=NDJSON).status_code == 200
        assert httpx.post(url, content=deposit(1001)).json()["type"] == "Deposited", "one is no batch"
        assert httpx.post(url, content=b"[]", headers={"content-type": "text/plain"}).status_code == 415
        shown = httpx.get(role.url + "/openapi.json").json()["paths"]["/accounts/{id}"]["post"]
        assert "application/x-ndjson" in shown["requestBody"]["content"]
        assert "207" in shown["responses"]
        assert not role.complaints()
    assert amounts(kafka, topic) == list(range(1, 1002)), "in the order of the batch"


def test_queued(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(PRODUCER_ACK="queued") as role:
        response = httpx.post(role.url + "/accounts/a", content=b"[%b,%b]" % (deposit(1), deposit(-1)))
        assert [each["status"] for each in answers(response)] == [202, 422]
    assert amounts(kafka, topic) == [1]


def test_the_rest_of_a_broken_array_is_not_read(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer() as role:
        response = httpx.post(role.url + "/accounts/a", content=b"[%b %b]" % (deposit(1), deposit(2)))
    assert response.status_code == 207
    stored, rest = answers(response)
    assert stored["status"] == 200
    assert (rest["status"], rest["rest"]) == (400, True)
    assert amounts(kafka, topic) == [1]


def test_a_batch_has_a_limit_of_its_own(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(BODY_LIMIT="100", BATCH_LIMIT="20000") as role:
        url = role.url + "/accounts/a"
        most = [deposit(n + 1) for n in range(300)]
        assert 100 < len(b"\n".join(most)) < 20_000
        assert httpx.post(url, content=b"\n".join(most), headers=NDJSON).status_code == 200
        assert httpx.post(url, content=b"[%b]" % b",".join(most)).status_code == 200
        refused = httpx.post(url, content=b"\n".join(most * 2), headers=NDJSON)
        assert refused.status_code == 413, "Content-Length says it, so nothing is taken"

        def stream() -> Iterator[bytes]:
            for line in most * 2:
                yield line + b"\n"

        cut = httpx.post(url, content=stream(), headers=NDJSON)
        assert cut.status_code == 207
        *stored, rest = answers(cut)
        assert {each["status"] for each in stored} == {200}
        assert (rest["status"], rest["rest"]) == (413, True)
        assert httpx.post(url, content=deposit(1)).status_code == 200, "and it goes on"
    assert len(amounts(kafka, topic)) == 601 + len(stored)


def test_a_client_that_stops_sending_gets_the_answers_so_far(kafka: Kafka, topic: str, producer: Make) -> None:
    with ExitStack() as stack:
        role = stack.enter_context(producer(REQUEST_TIMEOUT="4000"))
        assert settled(lambda: httpx.post(f"{role.url}/accounts/a", content=deposit(3))).status_code == 200
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", role.port or 0)))
        head = (
            "POST /accounts/a HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000\r\n\r\n"
        )
        connection.sendall(head.encode() + deposit(1) + b"\n" + deposit(2) + b"\n" + b'{"type":')
        connection.settimeout(20)
        received = b""
        while b'"rest":true' not in received:
            part = connection.recv(65536)
            assert part, received
            received += part
    assert received.startswith(b"HTTP/1.1 207 ")
    assert received.count(b'"position"') == 2
    assert b'"status":408' in received
    assert amounts(kafka, topic)[-2:] == [1, 2]


def test_a_drain_ends_a_batch_with_the_truth(kafka: Kafka, topic: str, producer: Make) -> None:
    started, ended = threading.Event(), threading.Event()

    def stream() -> Iterator[bytes]:
        n = 0
        while n < 100_000 and not ended.is_set():
            n += 1
            yield deposit(n) + b"\n"
            if n == 100:
                started.set()
            if n > 100:
                ended.wait(0.01)

    with producer() as role:
        response: list[httpx.Response] = []

        def post() -> None:
            response.append(httpx.post(role.url + "/accounts/a", content=stream(), headers=NDJSON, timeout=30))

        client = threading.Thread(target=post)
        client.start()
        assert started.wait(20)
        role.terminate()
        wait_until(lambda: role.logs("draining"), what="draining")
        threading.Timer(1.0, ended.set).start()
        client.join(30)
        assert role.ended() == 0
    *stored, rest = answers(response[0])
    assert (rest["status"], rest["rest"]) == (503, True)
    assert amounts(kafka, topic) == list(range(1, len(stored) + 1)), "what is answered is there, and nothing else"


async def test_a_batch_leaves_others_their_turn(kafka: Kafka, topic: str, producer: Make) -> None:
    role = await asyncio.to_thread(producer().__enter__)
    try:
        async with httpx.AsyncClient(timeout=60) as http:
            url = role.url + "/accounts/a"
            body = b"\n".join(deposit(n + 1) for n in range(50_000))
            alone = batches = among = 0
            while among <= 5:  # a batch may be over before this client has had the time to send others
                assert batches < 5, "answered while the batch was under way"
                batch = asyncio.create_task(http.post(url, content=body, headers=NDJSON))
                places = []
                while not batch.done():
                    answer = await http.post(url, content=deposit(10**6))
                    assert answer.status_code == 200
                    places.append(offset(answer.headers["hive-position"]))
                assert (await batch).status_code == 200
                first, *_, last = (offset(each["position"]) for each in answers(await batch))
                among = sum(first < place < last for place in places)
                alone, batches = alone + len(places), batches + 1
    finally:
        await asyncio.to_thread(role.stop)
    found = Counter(amounts(kafka, topic))
    assert found.pop(10**6) == alone
    assert found == Counter([*range(1, 50_001)] * batches)


def test_a_batch_that_comes_faster_than_it_is_taken_is_held_back(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(BATCH_LIMIT=str(1 << 30), BODY_LIMIT="100", REQUEST_TIMEOUT="60000") as role:
        url = role.url + "/accounts/a"
        httpx.post(url, content=b"\n".join([deposit(1)] * 1000), headers=NDJSON)
        (worker,) = role.workers()
        before = worker.memory_info().rss
        most = before
        line = deposit(0, text="x" * 40) + b"\n"
        part = line * (65536 // len(line))

        def stream() -> Iterator[bytes]:
            nonlocal most
            for _ in range(100_000 // part.count(b"\n")):
                yield part
                most = max(most, worker.memory_info().rss)
            for _ in range(1000):  # 64 MB in one line, which is refused and not kept
                yield b"x" * 65536
                most = max(most, worker.memory_info().rss)

        *done, large = answers(httpx.post(url, content=stream(), headers=NDJSON, timeout=120))
        assert {each["status"] for each in done} == {200}
        assert large["status"] == 413
        assert most - before < 40 << 20, f"{(most - before) >> 20} MiB for 75 MB of body"


def test_the_page_shows_what_happens(kafka: Kafka, topic: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "producer.md").read_text("utf-8")
    actor = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    request, answer = re.findall(r"<<'\.'\n(.*?)\.\n```\n```\n(.*?)```", page, re.DOTALL)[0]
    actor = actor.replace('topic = "readings"', f'topic = "{topic}"')
    with Role("producer", {"EVENT_STORE_BROKERS": kafka.brokers}, actor=actor) as role:
        response = httpx.post(role.url + "/readings", content=request, headers=NDJSON)
        assert response.text == answer.replace("readings/0/17", f"{topic}/0/0")
        assert not role.complaints()
    (record,) = read_all(kafka.brokers, topic)
    assert record.key() == b"a"


def test_a_batch_over_http2(kafka: Kafka, topic: str, producer: Make) -> None:
    with producer(HTTP_VERSION="2") as role, httpx.Client(http1=False, http2=True, timeout=30) as client:
        url = role.url + "/accounts/a"
        stream = (deposit(n + 1) + b"\n" for n in range(20_000))
        response = client.post(url, content=stream, headers=NDJSON)
        assert (response.http_version, response.status_code) == ("HTTP/2", 200)
        assert len(answers(response)) == 20_000
        assert client.post(url, content=b"[%b]" % deposit(-1)).status_code == 207
        assert not role.complaints()
    assert amounts(kafka, topic) == list(range(1, 20_001))
