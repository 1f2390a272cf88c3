"""`hiveio dead` against a consumer at work."""

import asyncio
from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from hiveio import Context
from hiveio.cli import main
from hiveio.config import Settings
from tests.integration.consumers import member, settings, wire
from tests.integration.test_dead_letters import QUICK, Choosy, keyed
from tests.integration.topics import make_topic, write
from tests.services import Kafka

__all__ = ["settings"]

Made = Callable[..., Settings]
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.setenv("EVENT_STORE_BROKERS", kafka.brokers)

    def run(*words: str) -> tuple[int, str]:
        code = main(["dead", *words])
        out, errors = capsys.readouterr()
        return code, out + errors

    return run


async def test_list_show_retry_and_drop(kafka: Kafka, topic: str, settings: Made, call: Call) -> None:
    made = settings(**QUICK)
    group = ("--group", made.group_id)
    make_topic(kafka.brokers, topic)
    assert await asyncio.to_thread(call, "list", *group) == (0, "0 dead letters of 0 keys\n")
    async with member(made) as one:
        failing = Choosy(one, 0, 9)
        write(kafka.brokers, topic, keyed(("a", 0), ("a", 1), ("b", 9), ("c", 3)))
        await one.until(lambda: one.consumer.counts.dead == 2 and one.actor.amounts() == [3])
        code, text = await asyncio.to_thread(call, "list", *group)
        assert code == 0
        assert f"{topic}/0/0  key a  failed ValueError: never  and 1 behind it" in text
        assert f"{topic}/0/2  key b" in text
        assert text.endswith("3 dead letters of 2 keys\n")
        write(kafka.brokers, topic, [(0, "\x1b[2J", b'{"type":"\\u001b]0;x","payload":{}}', {"odd": "\x1b[1m\x9b"})])
        await one.until(lambda: one.consumer.counts.dead == 3)
        for words in (("list",), ("show", "--key", "\x1b[2J")):
            code, text = await asyncio.to_thread(call, *words, *group)
            assert code == 0
            assert all(character.isprintable() for line in text.splitlines() for character in line), text
            assert "\\x1b[2J" in text
        assert "  odd: \\x1b[1m\\x9b\n" in text
        assert (await asyncio.to_thread(call, "drop", "--key", "\x1b[2J", *group))[1] == "dropped 1 dead letter\n"
        code, text = await asyncio.to_thread(call, "show", f"{topic}/0/0", *group)
        assert code == 0
        assert '"amount": 0' in text
        assert "attempts   3" in text
        code, text = await asyncio.to_thread(call, "retry", "--all", *group)
        assert code == 1
        assert f"failed again: {topic}/0/0: ValueError: never" in text
        failing.bad = {9}
        code, text = await asyncio.to_thread(call, "retry", "--key", "a", *group)
        assert (code, text.splitlines()[-1]) == (0, "handled 2 of 2 dead letters; still parked: 0 keys")
        assert one.actor.amounts() == [3, 0, 1]
        code, text = await asyncio.to_thread(call, "drop", f"{topic}/0/2", *group)
        assert (code, text) == (0, "dropped 1 dead letter\n")
        assert await asyncio.to_thread(call, "list", *group) == (0, "0 dead letters of 0 keys\n")
        await one.until(lambda: not one.consumer.workers[topic, 0].store.fold.entries)  # it has read the mark
        write(kafka.brokers, topic, keyed(("b", 4)))
        await one.until(lambda: one.actor.amounts() == [3, 0, 1, 4])


async def test_retry_under_load_frees_the_key(kafka: Kafka, topic: str, settings: Made, call: Call) -> None:
    """Records of the key go on coming while it is freed: all are handled, in order."""
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    seen: list[int] = []
    broken = True
    producer = Producer({"bootstrap.servers": kafka.brokers, "enable.idempotence": True, "linger.ms": 0})

    def add(amount: int) -> None:
        producer.produce(topic, wire(amount), "a", 0)
        assert producer.flush(30) == 0

    async def handle(amount: int, context: Context) -> None:
        if broken:
            raise ValueError("not yet")
        seen.append(amount)

    async with member(made) as one:
        one.actor.on_event = handle
        write(kafka.brokers, topic, keyed(*[("a", i) for i in range(300)]))
        await one.until(lambda: one.consumer.counts.parked == 299)
        broken = False
        retry = asyncio.create_task(asyncio.to_thread(call, "retry", "--key", "a", "--group", made.group_id))
        count = 300
        while (not retry.done() or count < 400) and count < 10_000:  # as long as it takes
            await asyncio.to_thread(add, count)
            count += 1
        code, text = await retry
        assert code == 0, text
        assert count < 10_000, "it did not come to an end under load"
        await one.until(lambda: len(seen) + one.consumer.workers[topic, 0].store.fold.count == count)
        if len(seen) < count:
            code, text = await asyncio.to_thread(call, "retry", "--all", "--group", made.group_id)
            assert code == 0, text
            await one.until(lambda: len(seen) == count)
    assert seen == [*range(count)]


def test_what_is_not_there(kafka: Kafka, topic: str, call: Call) -> None:
    assert call("list") == (2, "hiveio dead: EVENT_STORE_GROUP_ID is not set: or name the group with --group\n")
    code, text = call("drop", "--key", "a", "--group", topic)
    assert (code, text) == (1, "hiveio dead: the key a has no open dead letter\n")
    code, text = call("retry", "--group", topic)
    assert code == 1
    assert "--all" in text
