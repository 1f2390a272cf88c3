"""``hiveio replay``: build a projection anew from the log.

In the image of the consumer, with its environment. Two ways:

- the default, for actors of ``hiveio.projection`` that keep a store: build a *shadow* beside the one in use, which goes
  on being filled and asked; when the shadow has caught up it takes the other's place, in one transaction;
- ``--reset``, for any actor with ``reset()``: empty the store, set the group's offsets back and read again. The
  service's instances have to be stopped for the reset; started again they take part, and their queries say how old the
  answers are (``Age``).
"""

import argparse
import asyncio
import dataclasses
import inspect
import logging
import secrets
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from hiveio import logs
from hiveio.actor import Contract, performing
from hiveio.config import Settings
from hiveio.consumer import Consumer
from hiveio.consumer.dead_letters.format import dead_topic, forget
from hiveio.errors import ConfigError, HiveError, Unsafe
from hiveio.kafka.assigned import Owner, Partition
from hiveio.kafka.reader import Reader
from hiveio.kafka.threads import blocking
from hiveio.loader import load

STALLED_S = 60.0  # without a record


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reset", action="store_true", help="empty the store and read again, instead of a shadow")
    parser.add_argument(
        "--from", dest="origin", default="start", metavar="start|OFFSET|TIME",
        help="with --reset: begin there; a TIME is 2026-01-31T12:00:00+00:00 (default: start)",
    )  # fmt: skip
    parser.add_argument("--no-wait", action="store_true", help="with --reset: leave the reading to the service")


def run(arguments: argparse.Namespace) -> int:
    settings = Settings.read()
    settings.need(brokers="events are in Kafka", read_topics="events are read from it", group_id="it is replayed")
    if arguments.origin != "start" and not arguments.reset:
        raise HiveError("--from goes with --reset: a shadow is built from the start")
    if any(topic.startswith("^") for topic in settings.read_topics):
        raise HiveError("EVENT_STORE_CONSUMER_TOPIC is an expression; name the topics to replay")
    contracts = [contract for contract in load(settings) if contract.subscribes or contract.tombstones]
    logs.configure()
    logging.getLogger().setLevel(logging.ERROR)
    with Reader(settings, settings.group_id) as reader:
        places = [place for topic in settings.read_topics for place in reader.partitions(topic)]
        if not places:
            raise HiveError(f"there is no topic {', '.join(settings.read_topics)}")
        ends = {place: reader.bounds(*place)[1] for place in places}
        if arguments.reset:
            begins = {place: _begin(reader, place, arguments.origin) for place in places}
            return asyncio.run(_reset(settings, contracts, reader, begins, ends, wait=not arguments.no_wait))
        begins = {place: reader.bounds(*place)[0] for place in places}
        return asyncio.run(_shadow(settings, contracts, reader, begins, ends))


def _begin(reader: Reader, place: Partition, origin: str) -> int:
    first, end = reader.bounds(*place)
    if origin == "start":
        return first
    if origin.isdecimal():
        return min(max(first, int(origin)), end)
    try:
        at = datetime.fromisoformat(origin)
    except ValueError:
        raise HiveError(f"--from={origin} is wrong: it takes start, an offset or a time") from None
    return reader.offset_at(*place, int(at.timestamp() * 1000))


async def _reset(
    settings: Settings,
    contracts: list[Contract],
    reader: Reader,
    begins: dict[Partition, int],
    ends: dict[Partition, int],
    *,
    wait: bool,
) -> int:
    for contract in contracts:
        if not hasattr(contract.actor, "reset"):
            raise ConfigError(f"{contract.name} has no method reset(): it cannot be emptied")
    if members := reader.members(settings.group_id):
        raise Unsafe(f"the group {settings.group_id} has {members} members: stop the service, then replay it")
    await _start(contracts)
    try:
        for contract in contracts:
            await _settled(_actor(contract).reset())
            if (begin_at := getattr(contract.actor, "begin_at", None)) is not None:
                for place, offset in begins.items():
                    await _settled(begin_at(*place, offset))
        # What was kept of these records is met again.
        owner, owners = secrets.token_hex(4), dict[Partition, Owner]()
        for topic in {topic for topic, _ in begins}:
            letters = reader.partitions(dead_topic(topic, settings.group_id))
            reader.write([(*place, forget()) for place in letters])
            since = {place[1]: reader.bounds(*place)[1] for place in letters}
            owners |= {place: Owner(owner, since.get(place[1], 0)) for place in begins if place[0] == topic}
        reader.commit(begins, owners)  # a letter of a former member that lands after this is void
        print(f"emptied; the group {settings.group_id} begins anew")
        if wait:
            await (await _read(_from_start(settings), contracts, reader, begins, ends)).stop()
    finally:
        await _stop(contracts)
    return 0


async def _shadow(
    settings: Settings,
    contracts: list[Contract],
    reader: Reader,
    begins: dict[Partition, int],
    ends: dict[Partition, int],
) -> int:
    for contract in contracts:
        if not hasattr(contract.actor, "begin_shadow"):
            raise ConfigError(f"{contract.name} has no shadow: derive it from hiveio.projection, or use --reset")
        try:
            await _settled(_actor(contract).begin_shadow())
        except ValueError as error:
            raise ConfigError(str(error)) from None
    # A group of its own: what it cannot handle does not park the keys of the service.
    group = f"{settings.group_id}.replay-{secrets.token_hex(4)}"
    shadowing = dataclasses.replace(_from_start(settings), group_id=group, consumer_parked=0)
    await _start(contracts)
    swapped = False
    try:
        consumer = await _read(shadowing, contracts, None, begins, ends)
        try:
            for contract in contracts:
                at, moved = consumer.positions(), time.monotonic()
                while not await _settled(_actor(contract).end_shadow(swap=True)):
                    _check(consumer)
                    if at != consumer.positions():
                        at, moved = consumer.positions(), time.monotonic()
                    if time.monotonic() - moved > STALLED_S:
                        raise HiveError("the shadow does not catch up with the store in use")
                    await asyncio.sleep(0.05)
            swapped = True
        finally:
            await consumer.stop()
    finally:
        if not swapped:
            print("nothing was changed", file=sys.stderr)
            for contract in contracts:
                await _settled(_actor(contract).end_shadow(swap=False))
        await _stop(contracts)
        reader.delete(group)
    print("the new projection is in use")
    return 0


async def _read(
    settings: Settings,
    contracts: Sequence[Contract],
    reader: Reader | None,
    begins: dict[Partition, int],
    ends: dict[Partition, int],
) -> Consumer:
    """Handle everything up to the ends. It goes on reading then, and the caller stops it.

    With ``reader``, instances of the service take part, and what they have committed counts too.
    """
    consumer = Consumer(settings, [(contract, performing(contract)) for contract in contracts])
    await consumer.start()
    total = sum(ends[place] - begins[place] for place in ends)
    done, moved = -1, time.monotonic()
    try:
        while True:
            at = consumer.positions()
            if reader and (elsewhere := [place for place in ends if place not in at]):
                at |= await blocking(reader.committed, elsewhere)
            now = sum(min(at.get(place, begins[place]), ends[place]) - begins[place] for place in ends)
            if now != done:
                done, moved = now, time.monotonic()
                _progress(done, total)
            if done >= total:
                break
            _check(consumer)
            if time.monotonic() - moved > STALLED_S:
                raise HiveError(f"no record for {STALLED_S:.0f} s, at {done} of {total}")
            await asyncio.sleep(0.1)
    except BaseException:
        await consumer.stop()
        raise
    return consumer


def _check(consumer: Consumer) -> None:
    if stopped := consumer.stopped():
        raise HiveError(f"it stopped: {stopped}")


def _progress(done: int, total: int) -> None:
    if sys.stdout.isatty():
        bar = "#" * (done * 40 // max(1, total))
        print(f"\r[{bar:40}] {done}/{total} events", end="" if done < total else "\n", flush=True)
    elif done >= total:
        print(f"{total} events replayed", flush=True)


def _from_start(settings: Settings) -> Settings:
    return dataclasses.replace(settings, from_start=True)


async def _start(contracts: list[Contract]) -> None:
    for contract in contracts:
        await _settled(contract.actor.start())


async def _stop(contracts: list[Contract]) -> None:
    for contract in contracts:
        await _settled(contract.actor.stop())


def _actor(contract: Contract) -> Any:
    """An actor with the methods that were looked for."""
    return contract.actor


async def _settled(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
