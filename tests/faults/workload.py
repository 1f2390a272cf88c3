"""Many clients at many instances: deposits, withdrawals, transfers, tallies, reads; keys, repeats, If-Match."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.faults.checker import Call, Result
from tests.faults.client import Answer, Connection, Lost, NotSent

ALLOWED = {200, 404, 409, 412, 422, 429, 503, 504}
LEVELS = {"Tally": "linearizable"}  # of reads, and of refusals without a key: others are current
PATHS = {"Account": "/accounts/", "Tally": "/tallies/", "Pair": "/pairs/"}
HOT = ("Account/h0", "Account/h1", "Account/h2", "Tally/t0", "Tally/t1", "Pair/p-a", "Pair/p-b")
OUTCOMES = {
    "accepted": Result.ACCEPTED,
    "refused": Result.REFUSED,
    "closed": Result.CONFLICT,
    "unknown": Result.UNKNOWN,  # its id is not remembered any more
}
REPEATS = 4  # of a request with a key, at other instances


class Workload:
    """``run`` plays it until ``stop`` is set; ``history`` has every request and its answer."""

    def __init__(
        self,
        ports: Sequence[int],
        seed: int,
        *,
        clients: int = 64,
        most: int = 60_000,
        hot: float = 0.6,
        name: str = "",
    ) -> None:
        self.ports, self.clients, self.most, self.hot, self.name = ports, clients, most, hot, name
        self.history: list[Call] = []
        self.sent: Counter[str] = Counter()
        self.stop = asyncio.Event()
        self._seed = seed
        self._versions: dict[str, int] = {}  # as a client was last answered
        self._answered_keys: list[Call] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self.clients):
                group.create_task(Client(self, number, random.Random(self._seed * 1000 + number)).run())

    def add(self, call: Call) -> Call:
        self.history.append(call)
        if call.result in (Result.ACCEPTED, Result.READ) and call.version is not None:
            self._versions[call.target] = call.version
        if call.key and call.result in (Result.ACCEPTED, Result.REFUSED):
            self._answered_keys.append(call)
        return call

    @property
    def over(self) -> bool:
        return self.stop.is_set() or len(self.history) >= self.most

    def answered_key(self, dice: random.Random) -> Call | None:
        """Some command with a key that was answered lately: it may be sent again."""
        latest = self._answered_keys[-300:]
        return dice.choice(latest) if latest else None

    def version(self, name: str) -> int:
        return self._versions.get(name, 0)


class Client:
    """One client, with a connection to each instance."""

    def __init__(self, workload: Workload, number: int, dice: random.Random) -> None:
        self.workload, self.number, self.dice = workload, number, dice
        self.connections = [Connection(port) for port in workload.ports]
        self._count = 0

    async def run(self) -> None:
        try:
            while not self.workload.over:
                await self._step()
                await asyncio.sleep(self.dice.random() * 0.02)
        finally:
            self.close()

    def close(self) -> None:
        for connection in self.connections:
            connection.close()

    async def _step(self) -> None:
        dice = self.dice
        choice = dice.random()
        if choice < 0.12:
            level = dice.choice(("", "", "", "current", "linearizable", "cached"))
            await self.read(self._name(dice.random() < 0.8), level=level)
        elif choice < 0.16 and (old := self.workload.answered_key(dice)) is not None:
            await self.send(old.marker, old.target, old.command, old.key, old.if_match)
        else:
            await self._command()

    def _name(self, account: bool) -> str:
        kind = "Account" if account else "Tally"
        if self.dice.random() < self.workload.hot:
            return self.dice.choice([name for name in HOT if name.startswith(kind)])
        return f"{kind}/c{self.number}-{self.dice.randrange(3)}"

    async def _command(self) -> None:
        dice = self.dice
        self._count += 1
        marker = f"{self.workload.name}m{self.number}-{self._count}"
        name = self._name(dice.random() < 0.75)
        payload: dict[str, Any] = {"amount": dice.randrange(1, 100), "marker": marker}
        if dice.random() < 0.08:
            name, kind = dice.choice(("Pair/p-a", "Pair/p-b")), dice.choice(("Give", "Take", "Take"))
            if kind == "Take":
                payload["other"] = {"Pair/p-a": "p-b", "Pair/p-b": "p-a"}[name]
        elif name.startswith("Tally/"):
            kind = "Add"
            payload["amount"] *= dice.choice((1, 1, -1))
            payload["parts"] = dice.choice((1, 1, 3))
        else:
            kind = dice.choice(("Deposit", "Deposit", "Withdraw", "Transfer", "Transfer", "Witness"))
            if kind == "Transfer":
                others = [other for other in HOT if other.startswith("Account/") and other != name]
                others += [f"Account/c{self.number}-3"]
                payload["to"] = dice.choice(others).partition("/")[2]
            elif kind == "Witness":
                del payload["amount"]
                others = [other for other in HOT if other.startswith("Account/") and other != name]
                payload["of"] = [other.partition("/")[2] for other in dice.sample(others, 2)]
        key = f"k-{marker}" if dice.random() < 0.4 else None
        if_match = self.workload.version(name) if dice.random() < 0.05 else None
        command = {"type": kind, "payload": payload, "meta": {"client": self.number}}
        call = await self.send(marker, name, command, key, if_match)
        for _ in range(REPEATS):
            if key is None or call is None or self.workload.stop.is_set():
                return
            if call.result not in (Result.UNKNOWN, Result.IN_WORK, Result.NOT_EXECUTED):
                return
            await asyncio.sleep(dice.random() * 0.3)
            call = await self.send(marker, name, command, key, if_match)

    async def send(
        self,
        marker: str,
        name: str,
        command: dict[str, Any] | None,
        key: str | None,
        if_match: int | None,
        instance: int | None = None,
    ) -> Call | None:
        """One POST, on record. None if nobody listened."""
        instance = self.dice.randrange(len(self.connections)) if instance is None else instance
        headers = {"Idempotency-Key": key} if key else {}
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        called = time.monotonic()
        kind, _, id = name.partition("/")
        call = Call(
            marker, name, called, 0, Result.UNKNOWN, 0, command,
            key=key, if_match=if_match, instance=instance, level=LEVELS.get(kind, "current"),
        )  # fmt: skip
        try:
            answer = await self.connections[instance].request("POST", PATHS[kind] + id, command, headers)
        except NotSent:
            self.workload.sent["nobody listens"] += 1
            await asyncio.sleep(0.05)
            return None
        except Lost as lost:
            call.answer = str(lost)
            answer = None
        call.answered = time.monotonic()
        if answer is not None:
            self._classify(call, answer)
        self.workload.add(call)
        if call.status == 504 and self.dice.random() < 0.5 and isinstance(call.answer, dict):
            await self._ask(call)
        return call

    def _classify(self, call: Call, answer: Answer) -> None:
        call.status, call.answer = answer.status, answer.value
        detail = call.answer.get("detail", "") if isinstance(call.answer, dict) else ""
        if answer.status not in ALLOWED:
            call.result = Result.WRONG
        elif answer.status == 200:
            call.result = Result.ACCEPTED
            call.version = _version(answer)
            position = answer.headers.get("hive-position", "").rpartition("/")[2]
            call.position = int(position) if position.isdigit() else None
        elif answer.status in (412, 422):
            right = ("overdrawn", "below zero", "to itself") if answer.status == 422 else (detail,)
            call.result = Result.REFUSED if detail in right else Result.WRONG
        elif answer.status == 409:
            call.result = Result.IN_WORK if "is in work" in detail else Result.CONFLICT
        elif answer.status in (503, 429):
            call.result = Result.NOT_EXECUTED
        elif answer.status == 404:
            call.result = Result.WRONG

    async def _ask(self, call: Call) -> None:
        """What became of it: GET /transactions/{id}, at another instance."""
        token = call.answer.get("transaction")
        if not token:
            return
        instance = self.dice.randrange(len(self.connections))
        called = time.monotonic()
        try:
            answer = await self.connections[instance].request("GET", f"/transactions/{token}")
        except (NotSent, Lost):
            return
        asked = Call(
            call.marker, call.target, called, time.monotonic(), Result.UNKNOWN, answer.status, call.command,
            key=call.key, if_match=call.if_match, instance=instance, answer=answer.value, level=call.level,
        )  # fmt: skip
        if answer.status == 200:
            outcome = answer.value["outcome"]
            asked.result = OUTCOMES[outcome]
            if outcome == "accepted":
                asked.version, asked.answer = answer.value["version"], answer.value["value"]
                asked.position = int(answer.value["position"].rpartition("/")[2])
            elif outcome == "refused":
                asked.status = answer.value["problem"]["status"]
        elif answer.status not in (503, 504):
            asked.result = Result.WRONG
        self.workload.sent[f"asked: {asked.result}"] += 1
        self.workload.add(asked)

    async def read(self, name: str, instance: int | None = None, level: str = "") -> Call | None:
        """One GET, on record, of this level or of the actor's own. None if there is no version in the answer."""
        instance = self.dice.randrange(len(self.connections)) if instance is None else instance
        kind, _, id = name.partition("/")
        called = time.monotonic()
        try:
            query = f"?consistency={level}" if level else ""
            answer = await self.connections[instance].request("GET", PATHS[kind] + id + query)
        except NotSent:
            await asyncio.sleep(0.05)
            return None
        except Lost:
            return None
        level = level or LEVELS.get(kind, "current")
        call = Call("", name, called, time.monotonic(), Result.READ, answer.status, instance=instance, level=level)
        if answer.status == 200:
            call.version, call.answer = _version(answer), answer.value.get("payload")
        elif answer.status == 404:
            call.version = 0
        elif answer.status in (503, 504):
            detail = answer.value.get("detail", "") if isinstance(answer.value, dict) else ""
            self.workload.sent[f"read: {answer.status} {re.sub('[0-9]+', '#', detail)[:150]}"] += 1
            return None
        else:
            call.result, call.answer = Result.WRONG, answer.value
        return self.workload.add(call)


def _version(answer: Answer) -> int | None:
    tag = answer.headers.get("etag", "").strip('"')
    return int(tag) if tag.isdigit() else None
