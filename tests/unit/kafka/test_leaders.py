"""Who leads a partition, where the brokers that are asked say different things."""

import itertools
import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer

from hiveio.config import Settings
from hiveio.kafka import leaders
from hiveio.kafka.client import client_config
from hiveio.kafka.leaders import CONFIRM_S, LEFT_S, LOOK_S, PAUSE_S, LeaderWatch

HOUR_S = 3600.0
_clusters = itertools.count()


class Cluster:
    """The leader of a partition by each broker, and with which epoch it leads if it names itself.

    A broker whose entry is None does not answer. A client that begins with all brokers asks ``first``. If it
    ``wanders``, a client asks this broker from its second question on, whichever it was made for.
    """

    def __init__(self, **leaders: int | None) -> None:
        self.leaders = {int(node.removeprefix("node")): leader for node, leader in leaders.items()}
        self.epochs = {1: 5, 2: 6, 3: 7}
        self.named: dict[int, Collection[int]] = {}
        self.first = 1
        self.wanders: int | None = None
        self.no_more_clients = False  # clients that are made from now on get no answer
        self.clients = 0

    def make(self, kind: type, config: dict[str, Any]) -> Any:
        self.clients += 1
        asked = config["bootstrap.servers"]
        made_for = self.first if asked.startswith("anybody") else int(asked.removeprefix("node").partition(":")[0])
        questions, in_vain = itertools.count(), self.no_more_clients

        def list_topics(topic: str, timeout: float) -> Any:
            node = self.wanders if next(questions) and self.wanders else made_for
            if in_vain:
                raise KafkaException
            if (leader := self.leaders[node]) is None:
                raise KafkaException
            named = self.named.get(node, self.leaders)
            brokers = {each: SimpleNamespace(id=each, host=f"node{each}", port=1) for each in named}
            topics = {topic: SimpleNamespace(partitions={0: SimpleNamespace(id=0, leader=leader)})}
            return SimpleNamespace(brokers=brokers, topics=topics, orig_broker_name=f"node{node}:1/{node}")

        def list_offsets(asked: dict[Any, Any], request_timeout: float) -> Any:
            def result(timeout_s: float) -> Any:
                if (leader := self.leaders[made_for]) is None:
                    raise KafkaException
                return SimpleNamespace(leader_epoch=self.epochs[leader])

            return dict.fromkeys(asked, SimpleNamespace(result=result))

        return (
            SimpleNamespace(list_topics=list_topics) if kind is Producer else SimpleNamespace(list_offsets=list_offsets)
        )


class Watched:
    """A watch that is looked through by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> None:
        monkeypatch.setattr(leaders, "make", cluster.make)
        # Where clients begin is remembered for each of these.
        self.settings = Settings(brokers=f"anybody-{next(_clusters)}:1", topic="bank")
        self.topics, self.late, self.renewed = ["bank"], False, list[set[str]]()
        self.watch = LeaderWatch(self.settings, lambda: self.topics, self._renew, lambda: self.late)
        self.look = self.watch.look

    async def _renew(self, topics: set[str]) -> None:
        assert self.watch.doubt, "readiness falls"
        self.renewed.append(topics)

    @property
    def begins_with(self) -> set[str]:
        return set(client_config(self.settings)["bootstrap.servers"].split(","))


async def test_clients_are_made_anew_and_begin_with_the_brokers_that_know_of_another_leader(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others no longer name the one that was deposed; it was there when all was well."""
    watched = Watched(monkeypatch, cluster := Cluster(node1=1, node2=1, node3=1))
    assert watched.watch.doubt == "the brokers are being asked which of them leads"
    assert await watched.look() == LOOK_S
    assert watched.watch.doubt is None
    assert watched.begins_with == {watched.settings.brokers}
    cluster.leaders, cluster.named = {1: 1, 2: 2, 3: 2}, {2: (2, 3), 3: (2, 3)}
    assert await watched.look() == CONFIRM_S
    assert not watched.renewed, "after each election they differ for a moment"
    assert watched.watch.doubt == "the brokers disagree about who leads bank/0"
    assert await watched.look() == LEFT_S
    assert watched.renewed == [{"bank"}]
    assert watched.watch.doubt is None
    assert watched.begins_with == {"node2:1", "node3:1"}
    assert (
        "broker 1 (epoch 5) no longer leads bank/0 and does not know it: broker 2 leads it, with epoch 6" in caplog.text
    )
    assert await watched.look() == LEFT_S
    assert watched.renewed == [{"bank"}], "once, however long they disagree"
    watched.late = True
    monkeypatch.setattr(leaders, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 2 * PAUSE_S))
    await watched.look()
    assert len(watched.renewed) == 2, "and again where records go on to wait"
    monkeypatch.setattr("hiveio.kafka.client.time", SimpleNamespace(monotonic=lambda: time.monotonic() + HOUR_S))
    assert watched.begins_with == {watched.settings.brokers}, "for a while"
    cluster.leaders[1] = 2
    assert await watched.look() == LOOK_S
    cluster.leaders[1], watched.late = 1, False
    for _ in range(2):
        await watched.look()
    assert len(watched.renewed) == 3, "it was deposed again"


async def test_who_starts_with_a_deposed_leader_is_not_ready_before_it_has_left_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, cluster := Cluster(node1=1, node2=3, node3=3))
    cluster.named = {2: (2, 3), 3: (2, 3)}
    assert await watched.look() == CONFIRM_S
    assert watched.watch.doubt
    assert await watched.look() == LEFT_S
    assert watched.renewed
    assert watched.watch.doubt is None
    assert watched.begins_with == {"node2:1", "node3:1"}


async def test_who_knows_a_single_broker_learns_from_others_that_it_was_deposed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, cluster := Cluster(node1=1, node2=1, node3=1))
    for _ in range(2):  # the first look shows which brokers there are
        await watched.look()
    cluster.leaders, cluster.named = {1: 1, 2: 2, 3: 2}, {2: (2, 3), 3: (2, 3)}
    assert cluster.first == 1
    assert await watched.look() == CONFIRM_S
    assert watched.watch.doubt == "the brokers disagree about who leads bank/0"


async def test_witnesses_that_disagree_are_believed_before_each_broker_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, cluster := Cluster(node1=1, node2=1, node3=1))
    for _ in range(2):
        await watched.look()
    cluster.no_more_clients = True
    cluster.leaders = {1: 1, 2: 2, 3: 2}
    assert await watched.look() == CONFIRM_S
    assert watched.watch.doubt == "the brokers disagree about who leads bank/0"
    assert await watched.look() == LEFT_S
    assert watched.renewed, "their answers suffice"


async def test_a_broker_is_asked_of_each_topic_though_others_answer_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, cluster := Cluster(node1=1, node2=1, node3=1))
    watched.topics = ["bank", "loans"]
    await watched.look()
    cluster.leaders, cluster.named = {1: 1, 2: 2, 3: 2}, {2: (2, 3), 3: (2, 3)}
    cluster.first = cluster.wanders = 2
    for _ in range(2):
        await watched.look()
    assert watched.renewed == [{"bank", "loans"}]


async def test_of_two_brokers_the_one_with_the_higher_epoch_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, Cluster(node1=1, node2=2))
    await watched.look()
    await watched.look()
    assert watched.begins_with == {"node2:1"}


@pytest.mark.parametrize(
    "leaders",
    [
        {"node1": None, "node2": 2, "node3": 2},  # it is away: the clients notice that
        {"node1": 1, "node2": None, "node3": None},
        {"node1": 1, "node2": 1, "node3": -1},
        {"node1": 3, "node2": 2, "node3": 2},  # the one that is named knows that it does not lead
        {"node1": 1, "node2": 3, "node3": None},  # whether another one leads is not known
    ],
)
async def test_brokers_that_do_not_answer_or_know_no_leader_change_nothing(
    monkeypatch: pytest.MonkeyPatch, leaders: dict[str, int | None]
) -> None:
    watched = Watched(monkeypatch, cluster := Cluster(**leaders))
    cluster.first = next(node for node, leader in cluster.leaders.items() if leader is not None)
    for _ in range(3):
        await watched.look()
    assert not watched.renewed
    assert watched.watch.doubt is None
    assert watched.begins_with == {watched.settings.brokers}


async def test_while_all_is_well_two_brokers_are_asked_by_clients_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, cluster := Cluster(node1=1, node2=1, node3=1))
    await watched.look()
    cluster.first = 2
    await watched.look()
    made = cluster.clients
    for _ in range(5):
        await watched.look()
    assert cluster.clients == made
    watched.topics.append("another")
    await watched.look()
    assert cluster.clients > made, "each broker is asked about a topic that is new"
    made = cluster.clients
    watched.late = True
    await watched.look()
    assert cluster.clients > made, "and where records wait"
