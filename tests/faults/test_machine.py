"""The engine, its rule and its cache as a state machine: any interleaving of the steps of several instances.

Each instance has an event loop of its own which turns only when the machine turns it, so a crash may come between any
two steps of it. What it appends lands at any later time, in any order, twice, or never; what it asks of the cache may
be done without that it hears of it. The cache is emptied, and put back. Any instance may leave the applying and the
folding to others, and follow its scope no more until it is used again. The checker judges the rest.
"""

import asyncio
import base64
import copy
import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from hiveio import testing
from hiveio.envelope import encode_json
from hiveio.errors import Conflict, Problem, Refused, Unavailable, Unknown
from hiveio.testing.memory import MemoryCache, MemoryLog
from hiveio.testing.service import Answer, memory_settings
from hiveio.transaction import rebuild
from hiveio.transaction.command import Token
from tests.faults.actors import AccountActor, Deposit, PairActor, Take, Transfer, Withdraw, Witness
from tests.faults.checker import Call, Evidence, Result, check
from tests.faults.fold import Fold, Record
from tests.faults.stored import CacheDump, OnTopic

T = TypeVar("T")
ACCOUNTS = ("a", "b")
MOST = 3  # instances that live
FAR = 3  # records, beyond which one instance folds and the others wait
TURNS = 5_000  # of an event loop within which a fresh instance has to be well


class World:
    """What outlives instances: the log, what is on its way there, and the cache."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log = MemoryLog(memory_settings(None))
        self.cache = MemoryCache(self.log.settings, "meaning")
        self.wire: list[tuple[str, bytes]] = []
        self.instances: list[Instance] = []
        self.dead: list[Instance] = []
        self.history: list[Call] = []
        self.backups: list[dict[int, Any]] = []
        self.losing = 0  # replies of the cache that will be lost

    def land(self, index: int) -> None:
        self.log.append(0, *self.wire.pop(index))
        for instance in self.instances:
            for tail in instance.log.readers:
                tail.wake()

    def cache_evidence(self) -> CacheDump:
        scope = self.cache.scopes.get(0)
        if scope is None:
            return CacheDump()
        bits = bytearray(len(self.log.partitions[0]) // 8 + 1)
        for at, verdict in scope.verdicts.items():
            bits[at // 8] |= (verdict == "1") << (7 - at % 8)
        held = dict(scope.entries), dict(scope.ids), {0: bytes(bits)}
        return CacheDump(scope.watermark.text, *held, writers=dict(scope.writers))


class Loop(asyncio.SelectorEventLoop):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def time(self) -> float:
        return self.world.now


class Wire(MemoryLog):
    """The log as one instance sees it: what it appends is on its way."""

    def __init__(self, instance: "Instance") -> None:
        log = instance.world.log
        self.settings, self.partitions, self.folds, self.readers = log.settings, log.partitions, log.folds, []
        self.instance = instance

    def append(self, partition: int, key: str, value: bytes) -> None:
        if self.instance.alive:
            self.instance.world.wire.append((key, value))


class Link(MemoryCache):
    """The cache as one instance sees it: a call takes a turn to get there, and its reply another one back."""

    def __init__(self, instance: "Instance") -> None:
        cache = instance.world.cache
        self._topic, self.topic_id, self._meaning = cache._topic, cache.topic_id, cache._meaning
        self.scopes, self.folds = cache.scopes, cache.folds
        self.locks, self.waiting, self.tips = cache.locks, cache.waiting, cache.tips
        self.instance = instance

    def _call(self, script: Callable[[], T]) -> "asyncio.Future[T]":
        loop = self.instance.loop
        future: asyncio.Future[T] = loop.create_future()

        def reply(result: T | Unavailable) -> None:
            if future.done():
                return
            if isinstance(result, Unavailable):
                future.set_exception(result)
            else:
                future.set_result(result)

        def arrive() -> None:
            if not self.instance.alive:
                return
            result: T | Unavailable = script()
            if self.instance.world.losing:
                self.instance.world.losing -= 1
                result = Unavailable("the reply is lost")
            loop.call_soon(reply, result)

        loop.call_soon(arrive)
        return future


class Instance:
    """One instance. It takes a step when it is turned."""

    def __init__(self, world: World) -> None:
        self.world, self.alive = world, True
        self.loop = Loop(world)
        self.log = Wire(self)
        self.calls: list[tuple[Call, asyncio.Task[Any]]] = []
        self.started = self.loop.create_task(self._start())

    async def _start(self) -> testing.Service:
        service = testing.Service(AccountActor, PairActor, log=self.log, cache=Link(self))
        await service.transactions.start()
        return service

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()  # exactly one turn
        for call, task in [pair for pair in self.calls if pair[1].done()]:
            self.calls.remove((call, task))
            call.answered = self.world.now
            _classify(call, task)
            self.world.now += 0.001

    @property
    def ready(self) -> bool:
        return self.started.done()

    def submit(self, call: Call, actor: Any, id: str, message: Any) -> None:
        service = self.started.result()
        call.called = self.world.now
        self.world.now += 0.001
        self.world.history.append(call)
        task = self.loop.create_task(service.submit(actor, id, message, key=call.key))
        self.calls.append((call, task))

    def read(self, call: Call, id: str) -> None:
        service = self.started.result()
        call.called = self.world.now
        self.world.now += 0.001
        self.world.history.append(call)
        self.calls.append((call, self.loop.create_task(service.read(AccountActor, id))))

    def ask(self, call: Call, id: str) -> None:
        service = self.started.result()
        call.called = self.world.now
        self.world.now += 0.001
        self.world.history.append(call)
        token = Token("Account", id, call.key or "", 0, 0, True)
        text = base64.urlsafe_b64encode(msgspec.json.encode(token)).rstrip(b"=").decode()
        self.calls.append((call, self.loop.create_task(service.outcome(text))))

    def lead(self, leads: bool) -> None:
        """Apply, or leave that to others while the cache makes progress."""
        for scope in self.started.result().transactions.scopes:
            scope.applier.take_turns(lambda: leads)

    def leave(self) -> None:
        """Follow the scope no more, if nothing of it is in work."""
        transactions = self.started.result().transactions
        for scope in transactions.scopes:
            if scope.ready and not transactions.engine.works_on(scope):
                transactions.scopes.forget(scope)
                self.loop.create_task(scope.stop())

    def crash(self) -> None:
        self.alive = False
        self.world.instances.remove(self)
        self.world.dead.append(self)
        for call, _ in self.calls:
            call.answered = float("inf")

    def cancel_tasks(self) -> None:
        while tasks := asyncio.all_tasks(self.loop):  # the end of one task may start another that waited for it
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for _, task in self.calls:
            if not task.cancelled():
                task.exception()
        self.loop.close()


def _classify(call: Call, task: "asyncio.Task[Any]") -> None:
    error = task.exception()
    match error:
        case None if call.command is None:
            state, call.version = task.result()
            call.result, call.answer = Result.READ, json.loads(encode_json(state)) if state else None
        case None if isinstance(task.result(), dict):  # an outcome
            call.result = Result.CONFLICT if task.result()["outcome"] == "closed" else Result.UNKNOWN
        case None:
            answer: Answer = task.result()
            call.result, call.status, call.version = Result.ACCEPTED, 200, answer.version
            call.position = int((answer.position or "/-1").rpartition("/")[2])
            call.answer = json.loads(answer.body)
        case Conflict():
            call.result, call.status = (Result.IN_WORK if "in work" in error.detail else Result.CONFLICT), 409
        case Refused():
            call.result, call.status, call.answer = Result.REFUSED, error.status, error.detail
        case Unknown():
            call.result, call.status = Result.UNKNOWN, 504
        case Unavailable() if call.command is not None:
            call.result, call.status = Result.NOT_EXECUTED, 503
        case Problem():
            call.result = Result.UNKNOWN
        case _:
            call.result, call.status, call.answer = Result.WRONG, 500, repr(error)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.count = 0
        self.begin()
        self.instances[0].turn(20)

    @property
    def instances(self) -> list[Instance]:
        return self.world.instances

    def some(self, number: int) -> Instance:
        return self.instances[number % len(self.instances)]

    @precondition(lambda self: len(self.instances) < MOST)
    @rule()
    def begin(self) -> None:
        self.instances.append(Instance(self.world))

    @precondition(lambda self: self.instances)
    @rule(number=st.integers(0, MOST), times=st.integers(1, 30))
    def turn(self, number: int, times: int) -> None:
        self.some(number).turn(times)

    @precondition(lambda self: self.instances)
    @rule(number=st.integers(0, MOST))
    def crash(self, number: int) -> None:
        self.some(number).crash()

    @precondition(lambda self: any(instance.ready for instance in self.instances))
    @rule(
        number=st.integers(0, MOST),
        kind=st.sampled_from(("Deposit", "Withdraw", "Transfer", "Witness", "Take")),
        id=st.sampled_from(ACCOUNTS),
        amount=st.integers(1, 3),
        key=st.sampled_from((None, None, "k1", "k2")),
        turns=st.integers(0, 10),
    )
    def send(self, number: int, kind: str, id: str, amount: int, key: str | None, turns: int) -> None:
        ready = [instance for instance in self.instances if instance.ready]
        instance = ready[number % len(ready)]
        self.count += 1
        # One key is one command: it always says the same.
        kind, amount, marker = (kind, amount, f"m{self.count}") if key is None else ("Withdraw", 2, f"{key}-{id}")
        other = "ab"[id == "a"]
        actor: Any = PairActor if kind == "Take" else AccountActor
        made: dict[str, Callable[[], Any]] = {
            "Deposit": lambda: Deposit(amount, marker),
            "Withdraw": lambda: Withdraw(amount, marker),
            "Transfer": lambda: Transfer(other, amount, marker),
            "Witness": lambda: Witness([other], marker),
            "Take": lambda: Take(f"p-{other}", amount, marker),
        }
        message = made[kind]()
        name, target = (f"p-{id}", f"Pair/p-{id}") if kind == "Take" else (id, f"Account/{id}")
        payload = {field: getattr(message, field) for field in message.__struct_fields__}
        call = Call(marker, target, 0, 0, Result.UNKNOWN, 0, {"type": kind, "payload": payload}, key=key)
        instance.submit(call, actor, name, message)
        instance.turn(turns)

    @precondition(lambda self: any(instance.ready for instance in self.instances))
    @rule(number=st.integers(0, MOST), id=st.sampled_from(ACCOUNTS))
    def read(self, number: int, id: str) -> None:
        ready = [instance for instance in self.instances if instance.ready]
        ready[number % len(ready)].read(Call("", f"Account/{id}", 0, 0, Result.UNKNOWN), id)

    @precondition(lambda self: any(instance.ready for instance in self.instances))
    @rule(number=st.integers(0, MOST), id=st.sampled_from(ACCOUNTS), key=st.sampled_from(("k1", "k2", "never sent")))
    def ask(self, number: int, id: str, key: str) -> None:
        """For the outcome of a key: a barrier, where it is not on record."""
        ready = [instance for instance in self.instances if instance.ready]
        payload: dict[str, Any] = {"amount": 2, "marker": f"{key}-{id}"}
        command = {"type": "Withdraw", "payload": payload}
        call = Call(payload["marker"], f"Account/{id}", 0, 0, Result.UNKNOWN, 0, command)
        call.key = key
        ready[number % len(ready)].ask(call, id)

    @precondition(lambda self: any(instance.ready for instance in self.instances))
    @rule(number=st.integers(0, MOST), leads=st.booleans())
    def lead(self, number: int, leads: bool) -> None:
        ready = [instance for instance in self.instances if instance.ready]
        ready[number % len(ready)].lead(leads)

    @precondition(lambda self: any(instance.ready for instance in self.instances))
    @rule(number=st.integers(0, MOST))
    def leave(self, number: int) -> None:
        ready = [instance for instance in self.instances if instance.ready]
        ready[number % len(ready)].leave()

    @precondition(lambda self: self.world.wire)
    @rule(index=st.integers(0, 5), turns=st.integers(0, 3))
    def land(self, index: int, turns: int) -> None:
        self.world.land(index % len(self.world.wire))
        for instance in self.instances:
            instance.turn(turns)

    @rule(index=st.integers(1, 20), turns=st.integers(0, 3))
    def land_again(self, index: int, turns: int) -> None:
        """Kafka's client has written a record twice."""
        record = self.world.log.partitions[0][-index:][0]
        self.world.wire.append((record.key, record.value))
        self.land(-1, turns)

    @precondition(lambda self: self.world.wire)
    @rule()
    def land_all(self) -> None:
        while self.world.wire:
            self.world.land(0)

    @precondition(lambda self: self.world.wire)
    @rule(index=st.integers(0, 5))
    def vanish(self, index: int) -> None:
        del self.world.wire[index % len(self.world.wire)]

    @rule(seconds=st.sampled_from((0.05, 1.0, 11.0)))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule()
    def locks_end(self) -> None:
        for each in (self.world.cache.locks, self.world.cache.tips, self.world.cache.folds):
            each.clear()

    @rule()
    def cache_lost(self) -> None:
        self.world.cache.forget_all()

    @rule()
    def cache_saved(self) -> None:
        self.world.backups.append(copy.deepcopy(self.world.cache.scopes))

    @precondition(lambda self: self.world.backups)
    @rule(index=st.integers(0, 3))
    def cache_older(self, index: int) -> None:
        older = copy.deepcopy(self.world.backups[index % len(self.world.backups)])
        self.world.cache.scopes.clear()
        self.world.cache.scopes.update(older)

    @rule(count=st.integers(1, 3))
    def replies_lost(self, count: int) -> None:
        self.world.losing = count

    def teardown(self) -> None:
        world = self.world
        world.losing = 0
        for instance in list(self.instances):
            instance.crash()
        while world.wire:
            world.land(0)
        self.locks_end()
        world.instances.append(last := Instance(world))
        try:
            self.is_well(last)
            log, fold = [Record(*msgspec.structs.astuple(message)) for message in world.log.partitions[0]], Fold()
            for record in log:
                fold.take(record)
            events = [
                OnTopic(n, e.key, json.dumps(e.value).encode(), dict(e.headers)) for n, e in enumerate(fold.events)
            ]
            findings = check(Evidence(log, events, world.cache_evidence(), "memory"), world.history)
            assert not findings, "\n".join(map(str, findings))
        finally:
            for instance in (*world.dead, *world.instances):
                instance.cancel_tasks()

    def is_well(self, last: Instance) -> None:
        """A fresh instance takes a command for each account, and brings the cache up to the end."""
        for id in ("", *ACCOUNTS):
            if id:
                call = Call(f"last-{id}", f"Account/{id}", 0, 0, Result.UNKNOWN)
                call.command = {"type": "Deposit", "payload": {"amount": 1, "marker": call.marker}}
                last.submit(call, AccountActor, id, Deposit(1, call.marker))
            for _ in range(TURNS):
                last.turn()
                self.world.now += 0.01
                while self.world.wire:
                    self.world.land(0)
                scope = self.world.cache.scopes.get(0)
                applied = scope is not None and scope.watermark.offset == len(self.world.log.partitions[0])
                if last.ready and not last.calls and applied:
                    break
            assert last.ready, "a fresh instance is not ready"
            assert not last.calls
            assert not id or call.result is Result.ACCEPTED, call


def test_every_interleaving_leaves_what_the_checker_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "FAR", FAR)
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=60, stateful_step_count=50, suppress_health_check=list(HealthCheck)),
    )
