"""Where records are not read back, or events not published, for seconds: whether another leader is looked for."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaException

from hiveio.config import Settings
from hiveio.kafka import leaders
from hiveio.kafka.client import client_config
from hiveio.transaction.silence import LATE_S, LOOK_S, PAUSE_S, Silence

HOUR_S = 3600.0


class Cluster:
    """What each broker says of the leader of a partition with the replicas 1 to 3. Nobody answers where it is None."""

    def __init__(self, says: dict[int, int | None], known: dict[int, tuple[int, ...]] | None = None) -> None:
        self.says, self.known = says, known or {}

    def __call__(self, config: dict[str, Any]) -> Any:
        asked = config["bootstrap.servers"]

        def list_topics(topic: str, timeout: float) -> Any:
            node = 3 if asked == "anybody:1" else int(asked.removeprefix("node").partition(":")[0])
            if (leader := self.says[node]) is None:
                raise KafkaException
            named = self.known.get(node, (1, 2, 3))
            brokers = {each: SimpleNamespace(id=each, host=f"node{each}", port=1) for each in named}
            partition = SimpleNamespace(leader=leader, replicas=[1, 2, 3])
            return SimpleNamespace(brokers=brokers, topics={topic: SimpleNamespace(partitions={0: partition})})

        return SimpleNamespace(list_topics=list_topics)


def settings() -> Settings:
    return Settings(brokers="anybody:1", topic="bank")


def begins_with(of: Settings) -> set[str]:
    return set(client_config(of)["bootstrap.servers"].split(","))


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiveio.kafka.client._begin", {})


def asking(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> Cluster:
    monkeypatch.setattr(leaders, "make", lambda kind, config: cluster(config))
    return cluster


async def test_clients_begin_with_the_brokers_that_know_of_another_leader(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others no longer name the one that was deposed; it was there when all was well."""
    cluster = asking(monkeypatch, Cluster({1: 1, 2: 1, 3: 1}))
    ours = settings()
    asked = leaders.Leaders(ours, "bank")
    await asked.learn()
    assert not await asked.disagree("bank", 0)
    assert begins_with(ours) == {"anybody:1"}
    cluster.says, cluster.known = {1: 1, 2: 2, 3: 2}, {2: (2, 3), 3: (2, 3)}
    assert await asked.disagree("bank", 0)
    assert begins_with(ours) == {"node2:1", "node3:1"}
    assert "node1:1 names 1" in caplog.text
    monkeypatch.setattr("hiveio.kafka.client.time", SimpleNamespace(monotonic=lambda: time.monotonic() + HOUR_S))
    assert begins_with(ours) == {"anybody:1"}, "for a while"


@pytest.mark.parametrize("says", [{1: None, 2: 2, 3: 2}, {1: 1, 2: None, 3: None}, {1: 1, 2: 1, 3: -1}])
async def test_brokers_that_do_not_answer_or_know_no_leader_do_not_disagree(
    monkeypatch: pytest.MonkeyPatch, says: dict[int, int | None]
) -> None:
    asking(monkeypatch, Cluster(says))
    ours = settings()
    assert not await leaders.Leaders(ours, "bank").disagree("bank", 0)
    assert begins_with(ours) == {"anybody:1"}


async def test_only_where_records_or_events_wait_for_long_and_brokers_disagree_clients_are_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record is any of this instance's, the barrier that proves a read among them."""
    cluster = asking(monkeypatch, Cluster({1: 1, 2: 1, 3: 1}))
    journal = SimpleNamespace(pending={})
    scope = SimpleNamespace(partition=0, journal=journal)
    leader = SimpleNamespace(paused_at=time.monotonic() - HOUR_S)
    renewed: list[set[str]] = []

    async def renew(topics: set[str]) -> None:
        renewed.append(topics)

    ours = settings()
    silence = Silence(ours, [scope], [leader], renew)  # type: ignore[list-item]
    assert await silence.look() == LOOK_S
    cluster.says = {1: 1, 2: 2, 3: 2}
    journal.pending["young"] = SimpleNamespace(started_at=time.monotonic())
    assert await silence.look() == LOOK_S
    assert not renewed
    journal.pending = {"old": SimpleNamespace(started_at=time.monotonic() - LATE_S - 1)} | journal.pending
    assert await silence.look() == PAUSE_S
    assert renewed == [{ours.log_topic}]
    assert await silence.look() == 2 * PAUSE_S, "not for ever at the same pace"
    journal.pending.clear()
    assert await silence.look() == LOOK_S
    leader.paused_at = time.monotonic()
    assert await silence.look() == PAUSE_S
    assert renewed == [{ours.log_topic}] * 2 + [{ours.written_topic}]
    cluster.says = {1: 2, 2: 2, 3: 2}
    assert await silence.look() == LOOK_S, "Kafka is slow, and nobody would do better"
    assert len(renewed) == 3
