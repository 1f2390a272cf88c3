"""``hiveio saga``: the processes that are stuck, and the inputs that wait for them.

A process is stuck where its ``perform`` raised at an input. That input and those behind it wait, and nothing of them is
lost. ``retry`` gives the first one again, and those behind it if that works; ``skip`` drops the first one for good. The
leader of the process' scope does both, so an instance of the service has to run.
"""

import argparse
import asyncio
import time

import msgspec

from hiveio.actor import Contract
from hiveio.cli.judging import count_scopes
from hiveio.cli.shown import shown, shown_lines
from hiveio.config import Settings
from hiveio.errors import HiveError
from hiveio.kafka.reader import Reader
from hiveio.loader import load
from hiveio.redis import connect
from hiveio.status.processes import Kept, kept
from hiveio.status.text import clock
from hiveio.transaction.cache import Cache, fingerprint
from hiveio.transaction.process import STUCK, Waiting
from hiveio.transaction.rule import scope_of

MOST = 10_000  # processes of a scope that are listed
WAIT_S = 30.0  # for the leader to do what is asked
LOOK_S = 0.2
AGAIN_S = 2.0  # until it is asked again
LONGEST = 200  # characters of an event in a line


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "show", "retry", "skip"])
    parser.add_argument("process", nargs="?", metavar="ACTOR/ID", help="the process, as `list` names it")
    parser.add_argument("--all", action="store_true", help="retry: all that are stuck")


def run(arguments: argparse.Namespace) -> int:
    """0 if it is done; 1 where a process is still stuck, is not stuck, or does not exist."""
    one = arguments.action in ("show", "skip") or (arguments.action == "retry" and not arguments.all)
    if one != bool(arguments.process):
        raise HiveError("name one process as ACTOR/ID (or, to retry all, --all); `hiveio saga list` names them")
    settings = Settings.read()
    settings.need(brokers="the log is in Kafka", written_topic="its log is that of the service", cache_url="it is read")
    with Reader(settings) as reader:
        log_id = reader.topic_id(settings.log_topic)
    return asyncio.run(_run(settings, load(settings), log_id, count_scopes(settings), arguments))


async def _run(
    settings: Settings, contracts: list[Contract], log_id: str, scopes: int, arguments: argparse.Namespace
) -> int:
    redis = connect(settings.cache_url)
    processes = _Processes(Cache(redis, settings.log_topic, log_id, fingerprint(contracts)), contracts, scopes)
    try:
        if arguments.action == "list":
            return await _list(processes)
        if arguments.action == "show":
            return _show(await processes.one(arguments.process))
        chosen = await processes.stuck() if arguments.all else [await processes.one(arguments.process)]
        return max([await _ask(processes, found, arguments.action) for found in chosen], default=0)
    finally:
        await redis.stop()


class _Processes:
    """What the cache has of the processes of a service."""

    def __init__(self, cache: Cache, contracts: list[Contract], scopes: int) -> None:
        self.cache, self._scopes = cache, scopes
        self._contracts = {contract.name: contract for contract in contracts if contract.process}

    async def stuck(self) -> list[Kept]:
        found: list[Kept] = []
        for scope in range(self._scopes):
            _, names = await self.cache.processes(scope, STUCK, 0, MOST)
            found += await kept(self.cache, scope, [name for name, _ in names])
        return found

    async def one(self, name: str) -> Kept:
        """Raises HiveError where there is no such process."""
        actor, _, id = name.partition("/")
        if (contract := self._contracts.get(actor)) is None:
            raise HiveError(f"there is no process manager {actor!r} here; there are: {', '.join(self._contracts)}")
        found = await kept(self.cache, scope_of(contract.actor.scope(id), self._scopes), [name])
        if not found or not found[0].entry.head:
            raise HiveError(f"there is no process {name}")
        return found[0]


async def _list(processes: _Processes) -> int:
    stuck = await processes.stuck()
    for each in stuck:
        print(shown(f"{each.name}  waiting inputs: {len(each.process.waiting)}  {each.process.stuck}"))
    print(f"stuck processes: {len(stuck)}")
    return 0


def _show(found: Kept) -> int:
    process, state = found.process, bytes(found.entry.snapshot).decode("utf-8", "replace")
    if process.ended:
        print(shown(f"{found.name}  version {found.entry.version}\nit has ended"))
        return 0
    print(shown(f"{found.name}  version {found.entry.version}  {state or 'no state'}"))
    print(shown_lines(f"stuck: {process.stuck}" if process.stuck else "it is not stuck"))
    for each in process.waiting:
        print(shown(f"  waits  {each.name}  {_event(each)}"))
    for name, due in process.deadlines.items():
        print(shown(f"  deadline  {name}, due at {clock(due.at)} by the log's clock"))
    for position, sent in process.sent.items():
        print(f"  command  {found.partition}:{position}, sent at {clock(sent)} by the log's clock, is not answered")
    print(f"  {len(process.sources)} inputs taken")
    return 0


def _event(waiting: Waiting) -> str:
    event = msgspec.json.decode(waiting.event)
    return f"{event['type']} {bytes(msgspec.json.encode(event.get('payload'))).decode()}"[:LONGEST]


async def _ask(processes: _Processes, found: Kept, action: str) -> int:
    """Ask the leader, and wait until it has done it."""
    if not found.process.waiting:
        print(shown(f"{found.name}: nothing waits"))
        return 1
    first, head = found.process.waiting[0], found.entry.head
    until, asked_at, after, done = time.monotonic() + WAIT_S, float("-inf"), found, False
    while (now := time.monotonic()) < until:
        if now - asked_at > AGAIN_S and not done:
            what = "retry" if action == "retry" else f"skip {first.name}"
            await processes.cache.ask(found.partition, found.name, what)
            asked_at = now
        await asyncio.sleep(LOOK_S)
        after = await processes.one(found.name)
        done = not after.process.waiting or after.process.waiting[0].name != first.name
        if done and not after.process.stuck and after.process.waiting:
            continue  # it goes on with those behind it
        if done or (action == "retry" and after.entry.head != head):
            return _report(after)
    if done:
        return _report(after)
    print(shown(f"{found.name}: no instance has done it within {WAIT_S:.0f} s: is the service running?"))
    return 1


def _report(after: Kept) -> int:
    if after.process.stuck:
        print(shown(f"{after.name} is stuck: {after.process.stuck}"))
        return 1
    waiting = f"; {len(after.process.waiting):,} more inputs wait for their turn" if after.process.waiting else ""
    print(shown(f"{after.name} goes on{waiting}"))
    return 0
