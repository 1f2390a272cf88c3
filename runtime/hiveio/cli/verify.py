"""``hiveio verify``: is the cache the fold of the log, and the event topic its accepted events?

The log is folded with ``replay`` of the actors, up to the watermark that each answer of the cache carries, so it can
run while services work. It changes nothing. It needs about 1 kB of memory for each aggregate of a scope.
"""

import argparse
import asyncio
from collections.abc import Mapping

from hiveio.actor import Contract
from hiveio.cli.arguments import in_range
from hiveio.cli.comparing import CacheCheck, Differences, Events, Fold
from hiveio.cli.judging import count_scopes
from hiveio.cli.shown import shown
from hiveio.config import Settings
from hiveio.kafka.reader import Reader
from hiveio.loader import load
from hiveio.redis import connect
from hiveio.transaction.cache import Cache, fingerprint


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scope", type=int, help="verify only this scope")


def run(arguments: argparse.Namespace) -> int:
    """0 if there is no difference, 1 if there is one, or nothing to compare with."""
    settings = Settings.read()
    settings.need(
        brokers="the log is in Kafka", written_topic="the log is <topic>.transactions", cache_url="it is compared"
    )
    contracts = load(settings)
    count = count_scopes(settings)
    with Reader(settings) as reader:
        log_id = reader.topic_id(settings.log_topic)
    in_range("--scope", arguments.scope, 0, count - 1)
    scopes = range(count) if arguments.scope is None else [arguments.scope]
    return asyncio.run(_verify(settings, contracts, log_id, list(scopes)))


async def _verify(settings: Settings, contracts: list[Contract], log_id: str, scopes: list[int]) -> int:
    redis = connect(settings.cache_url)
    cache = Cache(redis, settings.log_topic, log_id, fingerprint(contracts))
    by_name = {contract.name: contract for contract in contracts}
    try:
        return 1 if sum([await _compare(settings, by_name, cache, scope) for scope in scopes]) else 0
    finally:
        await redis.stop()


async def _compare(settings: Settings, contracts: Mapping[str, Contract], cache: Cache, scope: int) -> int:
    found = Differences()
    fold = Fold(settings, scope, contracts)
    events = Events(settings, scope, found)
    check = CacheCheck(cache, scope, fold, events, found)
    try:
        await check.start()
        await check.entries()
        await check.ids()
        await check.processes()
        await check.writers()
        await check.verdicts()
        await check.unknown_entries()
        events.rest(check.offset)
    finally:
        for name, entry in fold.quarantine.entries.items():
            text = f"{name} is quarantined: {fold.log.where}/{entry.offset} cannot be folded: {entry.reason}"
            print(shown(text))
        for line in found.lines:
            print(shown(line))
        if found.count > len(found.lines):
            print(f"... and {found.count - len(found.lines)} more")
        fold.log.close()
        events.close()
    aggregates = sum(1 for entry in fold.view.entries.values() if entry.head)
    result = f"{found.count or 'no'} difference{'s' if found.count > 1 else ''}"
    result += f", {len(fold.quarantine.entries)} quarantined" if fold.quarantine.entries else ""
    print(
        f"{fold.log.where}: {check.offset:,} records ({fold.voids:,} void), {aggregates:,} aggregates, "
        f"{events.published:,} events published: {result}",
        flush=True,
    )
    return found.count
