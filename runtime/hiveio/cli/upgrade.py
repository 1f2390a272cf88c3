"""``hiveio upgrade``: raise the format of a transaction log to the newest that this version knows.

It appends a record to each partition, after which the rules of the new format hold for every reader. Versions that do
not know the format stop at that record and lose nothing, so no instance of such a version should be left.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from hiveio.cli.judging import Partition, Progress, count_scopes, decoded
from hiveio.config import Settings
from hiveio.errors import Corrupt, Unavailable, Unsafe
from hiveio.kafka.reader import Reader
from hiveio.kafka.session_clients import Outgoing
from hiveio.redis import Redis, connect
from hiveio.transaction.cache import former_marks
from hiveio.transaction.journal import fresh_ids
from hiveio.transaction.record import FORMAT, Barrier, Format, Upgrade, encode
from hiveio.transaction.rule import IdWindow, LogState

WATCH_S = 5.0  # an instance applies what is appended within this time
LOOK_S = 0.5  # between two looks at the cache


class ScopeFormat(NamedTuple):
    """The format of a scope at ``end``, up to which it was read."""

    scope: int
    format: int
    end: int


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="raise the format; without this nothing is changed")


def run(arguments: argparse.Namespace) -> int:
    """0 if every partition has the newest format; 1 if one does not, or if it is unknown whether it may have it."""
    settings = Settings.read()
    settings.need(
        brokers="the log is in Kafka",
        written_topic="the log is <topic>.transactions",
        cache_url="it shows whether instances of an older version are at work",
    )
    found = [_read(settings, scope) for scope in range(count_scopes(settings))]
    for scope in found:
        _print(settings, scope)
    older = [scope for scope in found if scope.format < FORMAT]
    if not older:
        return 0
    if not arguments.yes:
        print(
            f"Nothing was changed. With --yes, a record is appended to each partition with an older format; from there "
            f"on it has format {FORMAT}. Versions of hiveio that do not know format {FORMAT} stop there, so run this "
            "when every instance has a version that knows it. There is no way back to an older format."
        )
        return 1
    ids = fresh_ids()
    barrier, upgrade = encode(Barrier(())), encode(Upgrade(FORMAT))
    with Reader(settings) as writer:
        marks = asyncio.run(_former_marks(settings, writer.topic_id(settings.log_topic)))
        writer.write([(settings.log_topic, scope.scope, Outgoing(next(ids), barrier, [])) for scope in older])
        asyncio.run(_refuse_older_versions(settings, marks))
        writer.write([(settings.log_topic, scope.scope, Outgoing(next(ids), upgrade, [])) for scope in older])
    for scope in older:
        _print(settings, _read(settings, scope.scope))
    return 0


def _read(settings: Settings, scope: int) -> ScopeFormat:
    """Raises Corrupt for a partition that this version cannot read to its end, or that is no log."""
    with Partition(settings, settings.log_topic, scope) as log:
        end, state, progress = log.end(), LogState(IdWindow(0, 0)), Progress(log.where)
        for message in log.records(end):
            record = decoded(log.where, message)
            if not message.offset and not isinstance(record, Format):
                break
            state.take(message.offset, message.key, message.time, record)
            progress.at(message.offset + 1, end)
        else:
            if end:
                return ScopeFormat(scope, state.format, end)
        raise Corrupt(f"{log.where} does not begin with a format record, so it is not a transaction log")


def _print(settings: Settings, scope: ScopeFormat) -> None:
    print(f"{settings.log_topic}/{scope.scope}: format {scope.format} at offset {scope.end}", flush=True)


@asynccontextmanager
async def _cache(settings: Settings) -> AsyncIterator[Redis]:
    """The cache. Raises Unavailable if it does not answer."""
    redis = connect(settings.cache_url)
    try:
        yield redis
    except Unavailable as error:
        raise Unavailable(
            f"it is unknown whether older versions are at work, so no upgrade was made: {error}"
        ) from None
    finally:
        await redis.stop()


async def _former_marks(settings: Settings, topic_id: str) -> dict[bytes, bytes]:
    async with _cache(settings) as redis:
        return await former_marks(redis, settings.log_topic, topic_id)


async def _refuse_older_versions(settings: Settings, marks: dict[bytes, bytes]) -> None:
    """Raises Unsafe if an instance of an older version is at work: it applies the barrier that was appended to a cache
    with a layout of its own, and so moves the watermark there."""
    loop = asyncio.get_running_loop()
    until = loop.time() + WATCH_S
    async with _cache(settings) as redis:
        while marks and loop.time() < until:
            await asyncio.sleep(LOOK_S)
            for key, before in marks.items():
                if await redis.execute("GET", key) not in (before, None):
                    raise Unsafe(
                        f"an instance whose version does not know format {FORMAT} is at work: it has moved its cache "
                        f"{key.decode()}. No upgrade was made; stop such instances, and run this again"
                    )
