"""Which brokers lead the partitions of our topics, according to more than one broker.

A leader that was cut off from the other brokers, and not from us, does not learn that another one was elected. It
answers a fetch with nothing and a produce request with a time-out, and names itself as the leader. None of that makes
a client look elsewhere: librdkafka asks the broker that it spoke to last. So two clients of our own, the witnesses, ask
two brokers all the time. Where these differ, or a leader has changed, each broker is asked, and the epochs of the
leaders that they name decide.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from hiveio.config import Settings
from hiveio.kafka.assigned import Partition
from hiveio.kafka.client import answered, begin_with, client_config, make
from hiveio.kafka.reachability import address
from hiveio.kafka.threads import blocking

ANSWER_S = 2.0
LOOK_S = 2.0  # between two looks
LEFT_S = 5.0  # the same while brokers go on to disagree, but the clients have left the one that no longer leads
CONFIRM_S = 1.0  # between two looks while brokers differ, which they do for a moment after each election
ALERT_S = 10.0  # for which each broker is asked after a leader or a broker has changed
PAUSE_S, LONGEST_PAUSE_S = 4.0, 60.0  # in which new clients should do their work; doubled while they do not
MAX_BROKERS, MAX_TOPICS = 12, 20  # asked in one look
WITNESSED = 2  # topics of which the witnesses are asked in one look, in turn
ATTEMPTS = 5  # to get the answers of one broker, where others answer instead of it
logger = logging.getLogger("hiveio.kafka")
_silent = logging.Logger("silent", logging.CRITICAL + 1)


class Answer(NamedTuple):
    """What the broker at this address says of a topic: who leads each partition, and where all brokers are."""

    broker: str
    topic: str
    leaders: dict[int, int]
    brokers: dict[int, str]


class LeaderWatch:
    """Calls ``renew``, with the topics concerned, if clients may still use a broker that no longer leads. New
    clients then connect to brokers that know the new leader (see ``begin_with``).

    ``doubt`` is for readiness. ``late`` says whether records have waited for long, to be delivered or to be read back:
    then each broker is asked too, and the clients are replaced again while the brokers go on to disagree.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Callable[[], Collection[str]],
        renew: Callable[[set[str]], Awaitable[None]],
        late: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings, self._topics, self._renew, self._late = settings, topics, renew, late
        self.doubt: str | None = "the brokers are being asked which of them leads"
        self._witnesses: list[Producer | None] = [None, None]
        self._first_broker = ""  # the one that answers the first witness
        self._last_answers: dict[str, tuple[dict[int, int], set[int]]] = {}  # by topic, the last answer of a witness
        self._addresses: dict[int, str] = {}  # also those of brokers that the others no longer name
        self._named: set[int] = set()  # the brokers that the last answer named
        self._turn = 0
        self._asked: set[str] = set()  # the topics that each broker was asked about
        self._alert_until = 0.0  # until then each broker is asked about all of them
        self._differed = False  # in the last look
        self._abandoned: set[tuple[str, int]] = set()  # topics, each with a broker that clients were replaced to leave
        self._retry_at, self._pause_s = 0.0, PAUSE_S
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def settled(self, timeout_s: float) -> None:
        """Wait until the brokers were asked: clients that are made afterwards connect to brokers that know the leaders.
        The wait is bounded, because brokers may be away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()

    async def _run(self) -> None:
        while True:
            try:
                pause_s = await self.look()
            except Exception:  # whatever it was: the next look may find more
                logger.exception("the brokers could not be asked which of them leads")
                pause_s = LOOK_S
            if self.doubt is None:
                self._settled.set()
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.0))

    async def look(self) -> float:
        """Ask the witnesses, and each broker if need be. Returns the seconds to wait before the next look."""
        topics = sorted(self._topics())
        if not topics:
            self.doubt = None
            return LOOK_S
        self._turn += 1
        turns = range(WITNESSED * self._turn, WITNESSED * self._turn + min(WITNESSED, len(topics)))
        witnessed: list[Answer] = []
        for topic in (topics[turn % len(topics)] for turn in turns):
            found = await self._ask_witnesses(topic)
            if self._changed(topic, found):
                self._alert_until = time.monotonic() + ALERT_S
            witnessed += found
        if not self._differed and (differing := _differing(witnessed)):
            self._doubt_about(differing)  # at once: to ask each broker may take seconds
        late = self._late()
        if time.monotonic() > self._alert_until and not (self._differed or late) and self._asked.issuperset(topics):
            return LOOK_S
        # New ones come first, else one after the other.
        asked = sorted(topics, key=lambda each: (each in self._asked, random.random()))[:MAX_TOPICS]
        answers = await self._ask_each(asked)
        latest = {(answer.broker, answer.topic): answer for answer in [*witnessed, *answers]}
        differing = _differing(latest.values())
        confirmed, self._differed = self._differed, bool(differing)
        if differing:
            if confirmed:
                return await self._act(differing, late=late)
            self._doubt_about(differing)
            return CONFIRM_S
        if answers:
            self._asked = self._asked.intersection(topics) | {answer.topic for answer in answers}
            self._abandoned.clear()
            self.doubt = None
        return LOOK_S

    def _doubt_about(self, differing: Iterable[Partition]) -> None:
        self.doubt = "the brokers disagree about who leads {}/{}".format(*min(differing))

    # -- the witnesses

    async def _ask_witnesses(self, topic: str) -> list[Answer]:
        found = await asyncio.gather(*[blocking(self._witness, number, topic) for number in range(2)])
        answers = [answer for answer in found if answer is not None]
        if len(answers) == 2 and answers[0].broker == answers[1].broker and len(answers[0].brokers) > 1:
            self._witnesses[1] = None  # a new one connects to another broker, if one is known
        return answers

    def _changed(self, topic: str, answers: Sequence[Answer]) -> bool:
        """Whether the witnesses differ from each other, or from the last answer."""
        views = [(answer.leaders, set(answer.brokers)) for answer in answers]
        before = self._last_answers.get(topic)
        if views:
            self._last_answers[topic] = views[-1]
        return any(view != (before or views[0]) for view in views)

    def _witness(self, number: int, topic: str) -> Answer | None:
        client = self._witnesses[number] or self._client(self._elsewhere() if number else self._settings.brokers)
        answer = self._answer(client, topic)
        self._witnesses[number] = None if answer is None else client
        if not number:
            self._first_broker = "" if answer is None else answer.broker
        return answer

    def _elsewhere(self) -> str:
        """Brokers other than that of the first witness, which may be the only one that the settings name."""
        others = {self._addresses[each] for each in self._named} - {self._first_broker}
        return ",".join(others) if self._first_broker and others else self._settings.brokers

    # -- each broker

    async def _ask_each(self, topics: Sequence[str]) -> list[Answer]:
        """What each broker says of these topics. A client sends its first question to the broker that it was made for,
        and each later one to whichever it likes: so brokers are asked again of topics for which others answered."""
        if not self._addresses:
            await blocking(self._ask, self._settings.brokers, topics[:1])
        # Those that the others no longer name come first: one of them may not know that it is no leader any more.
        known = sorted(self._addresses, key=lambda each: (each in self._named, random.random()))
        missing = {self._addresses[each]: list(topics) for each in known[:MAX_BROKERS]}
        answers: dict[tuple[str, str], Answer] = {}
        for _ in range(ATTEMPTS):
            found = await asyncio.gather(*[blocking(self._ask, broker, each) for broker, each in missing.items()])
            answers |= {(answer.broker, answer.topic): answer for each in found for answer in each}
            answering = [broker for broker, each in zip(missing, found, strict=True) if each]
            left = {broker: [topic for topic in topics if (broker, topic) not in answers] for broker in answering}
            missing = {broker: each for broker, each in left.items() if each}
        return list(answers.values())

    def _ask(self, brokers: str, topics: Iterable[str]) -> list[Answer]:
        client, answers = self._client(brokers), []
        for topic in topics:
            if (answer := self._answer(client, topic)) is None:
                break
            answers.append(answer)
        return answers

    def _answer(self, client: Producer, topic: str) -> Answer | None:
        try:
            found = client.list_topics(topic, timeout=ANSWER_S)
        except KafkaException:
            return None
        brokers = {broker.id: address(broker) for broker in found.brokers.values()}
        self._addresses |= brokers
        self._named = set(brokers)
        leaders = {each.id: each.leader for each in found.topics[topic].partitions.values()}
        return Answer(str(found.orig_broker_name).partition("/")[0], topic, leaders, brokers)

    def _client(self, brokers: str) -> Producer:
        return make(Producer, self._config(brokers))

    def _config(self, brokers: str) -> dict[str, Any]:
        return client_config(self._settings, bootstrap_servers=brokers, logger=_silent, log_level=0)

    # -- where they disagree

    async def _act(self, differing: dict[Partition, dict[int, list[str]]], *, late: bool) -> float:
        """Clients leave each leader whose epoch is not the highest."""
        key = min(differing)
        named = differing[key]
        found = await asyncio.gather(*[blocking(self._epoch, key, leader) for leader in named])
        epochs = {leader: epoch for leader, epoch in zip(named, found, strict=True) if epoch is not None}
        # Clients do not stay with a leader that does not answer. One with the epoch of another is no leader: it has
        # named that one itself.
        newest = max(epochs, key=lambda leader: epochs[leader], default=-1)
        deposed = {leader for leader, epoch in epochs.items() if epoch < epochs[newest]}
        now = time.monotonic()
        if not deposed:
            self.doubt = None
            return LOOK_S
        begin_with(self._settings, ",".join(named[newest]))
        self._settled.set()
        concerned = {(topic, leader) for (topic, _), found in differing.items() for leader in deposed & found.keys()}
        repeated = concerned <= self._abandoned
        if repeated and not (late and now > self._retry_at):
            self.doubt = None
            return LEFT_S
        where = f"{key[0]}/{key[1]}"
        self.doubt = f"the brokers disagree about which of them leads {where}: the clients are replaced"
        logger.warning(
            "%s no longer leads %s and does not know it: broker %d leads it, with epoch %d. The clients are "
            "replaced; the new ones connect to %s first",
            " and ".join(f"broker {leader} (epoch {epochs[leader]})" for leader in sorted(deposed)),
            *(where, newest, epochs[newest], ", ".join(named[newest])),
        )
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if repeated else PAUSE_S
        self._retry_at = now + self._pause_s
        await self._renew({topic for topic, _ in concerned})
        self._abandoned |= concerned
        self.doubt = None
        return LEFT_S

    def _epoch(self, key: Partition, leader: int) -> int | None:
        """The epoch of this broker as the leader, by its own answer; that of another leader if it names that one."""
        if leader not in self._addresses:
            return None
        client = make(AdminClient, self._config(self._addresses[leader]))  # named: its results end with it
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        try:
            (asked,) = client.list_offsets({TopicPartition(*key): latest}, request_timeout=ANSWER_S).values()
            epoch: int | None = answered(asked, ANSWER_S).leader_epoch
        except KafkaException:
            return None
        return epoch


def _differing(answers: Iterable[Answer]) -> dict[Partition, dict[int, list[str]]]:
    """The partitions for which brokers name different leaders: for each leader the brokers that name it."""
    named: dict[Partition, dict[int, list[str]]] = {}
    for answer in answers:
        for partition, leader in answer.leaders.items():
            if leader >= 0:
                named.setdefault((answer.topic, partition), {}).setdefault(leader, []).append(answer.broker)
    return {key: found for key, found in named.items() if len(found) > 1}
