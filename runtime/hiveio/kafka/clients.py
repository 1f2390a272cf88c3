"""The librdkafka producers of one sender: created, adapted, replaced after a fatal error, ended."""

import asyncio
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

from hiveio.errors import Problem
from hiveio.kafka.delivery import Client, Delivery, Owner

CALM_S = 30.0  # after which a client that fails is replaced at once
STUCK_S = 30.0


class Clients:
    """Few large requests cost a third of the CPU of many small ones, and any linger costs a lone client 1.5 ms. So
    there are two producers, one without linger and one with: measured, gathering in front of a single one saves
    little, because librdkafka sends what it has at the first record of a group. A third sends each record alone.
    """

    def __init__(self, owner: Owner, config: Mapping[str, Any], linger_ms: int) -> None:
        self._owner, self._config = owner, dict(config)
        self._lingers = sorted({int(config["linger.ms"]), linger_ms})
        self._current: list[Client] = []
        self._alone: Client | None = None
        self._former: list[Client] = []  # that still hold records, and get no more
        self._stale: set[Client] = set()  # those of them that may still use a broker that no longer leads
        self._failed: dict[Client, Problem] = {}  # the answer of each that has not been replaced yet
        self._renewed: dict[Client, float] = {}  # successors of one that failed, and when each was made
        self._ending: set[asyncio.Future[None]] = set()

    def make(self) -> None:
        """Raises ConfigError for properties that librdkafka refuses."""
        self._former += self._current
        self._current = [Client(self._owner, self._config | {"linger.ms": linger}) for linger in self._lingers]

    def adapt(self, batch_bytes: int) -> None:
        """Bound a batch: Kafka's limit is one of batches. What was sent before stays where it is."""
        if batch_bytes < int(self._config.get("batch.size", self._config.get("message.max.bytes", 1_000_000))):
            self._config["batch.size"] = batch_bytes
            self.make()

    def renew(self, brokers: str) -> None:
        """Replace the clients with some that connect to these brokers first, and look up the leaders. The old ones keep
        their records, which may still be stored."""
        self._config["bootstrap.servers"] = brokers
        if self._alone is not None:
            self._former.append(self._alone)
            self._alone = None
        self.make()
        self._stale.update(self._former)

    def stuck(self, records: Iterable[Delivery]) -> list[Delivery]:
        """Those of these records that are held by clients from before ``renew``."""
        return [record for record in records if record.client in self._stale] if self._stale else []

    @property
    def eager(self) -> Client:
        return self._current[0]

    @property
    def gathering(self) -> Client:
        return self._current[-1]

    @property
    def alone(self) -> Client:
        if self._alone is None:
            one = {"batch.num.messages", "max.in.flight", "max.in.flight.requests.per.connection"}
            self._alone = Client(self._owner, self._config | {"linger.ms": 0} | dict.fromkeys(one, 1))
        return self._alone

    def alive(self) -> bool:
        """Whether the poll threads turn."""
        return all(time.monotonic() - client.turned < STUCK_S for client in self._current if not client.ended)

    def leave(self, records: Iterable[Delivery]) -> None:
        """End the former clients that hold none of these records."""
        if not self._former:
            return
        in_use = {record.client for record in records}
        for client in [former for former in self._former if former not in in_use]:
            self._former.remove(client)
            self._stale.discard(client)
            self._end(client)

    def refusal(self, client: Client) -> Problem | None:
        """What a client that failed answers until it is replaced."""
        return self._failed.get(client)

    def replace(self, client: Client, answer: Problem) -> None:
        """A client that fails again and again is replaced after a while."""
        self._failed[client] = answer
        self._end(client)
        renewed_at = self._renewed.pop(client, -CALM_S)
        if time.monotonic() - renewed_at > CALM_S:
            self._renew(client)
        else:
            asyncio.get_running_loop().call_later(random.uniform(1.0, 2.0), self._renew, client)

    def _renew(self, client: Client) -> None:
        del self._failed[client]
        if client is self._alone:
            self._alone = None
        elif client in self._current:
            new = self._current[self._current.index(client)] = Client(self._owner, client.config)
            self._renewed[new] = time.monotonic()

    def _end(self, client: Client) -> None:
        client.ended = True  # at once: several calls may report one failure before the task below begins
        task = asyncio.ensure_future(client.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def stop(self) -> None:
        clients = [*self._current, *self._former, *([self._alone] if self._alone else [])]
        self._current, self._former, self._alone = [], [], None
        await asyncio.gather(*(client.end() for client in clients if not client.ended), *self._ending)
