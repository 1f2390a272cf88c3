"""``hiveio replay``: rebuild a projection from the log.

It runs in the image of the consumer, with the environment of the service. There are two ways:

- The default is for actors of ``hiveio.projection`` that keep a store. It builds a *shadow* next to the store in use,
  which goes on taking events and answering queries. When the shadow has caught up, it replaces the store in one
  transaction.
- ``--reset`` is for any actor with ``reset()``. It empties the store, sets the offsets of the group back and reads
  again. The instances of the service have to be stopped for the reset. Once they are started again they take part, and
  the answers to queries say how old they are (``Age``).
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

STALLED_S = 60.0  # without progress, after which it gives up


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
        raise HiveError("--from needs --reset: a shadow is always built from the start")
    if any(topic.startswith("^") for topic in settings.read_topics):
        raise HiveError("EVENT_STORE_CONSUMER_TOPIC is an expression; set it to the names of the topics to replay")
    contracts = [
        contract for contract in load(settings) if (contract.subscribes or contract.tombstones) and not contract.process
    ]
    logs.configure()
    logging.getLogger().setLevel(logging.ERROR)
    with Reader(settings, settings.group_id) as reader:
        partitions = [partition for topic in settings.read_topics for partition in reader.partitions(topic)]
        if not partitions:
            raise HiveError(f"the topic {', '.join(settings.read_topics)} does not exist")
        ends = {partition: reader.bounds(*partition)[1] for partition in partitions}
        if arguments.reset:
            begins = {partition: _begin(reader, partition, arguments.origin) for partition in partitions}
            return asyncio.run(_reset(settings, contracts, reader, begins, ends, wait=not arguments.no_wait))
        begins = {partition: reader.bounds(*partition)[0] for partition in partitions}
        return asyncio.run(_shadow(settings, contracts, reader, begins, ends))


def _begin(reader: Reader, partition: Partition, origin: str) -> int:
    first, end = reader.bounds(*partition)
    if origin == "start":
        return first
    if origin.isdecimal():
        return min(max(first, int(origin)), end)
    try:
        at = datetime.fromisoformat(origin)
    except ValueError:
        raise HiveError(
            f"--from={origin} is wrong: it takes start, an offset, or a time like 2026-01-31T12:00:00+00:00"
        ) from None
    return reader.offset_at(*partition, int(at.timestamp() * 1000))


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
            raise ConfigError(f"{contract.name} has no method reset(), so its store cannot be emptied")
    if members := reader.members(settings.group_id):
        raise Unsafe(f"the group {settings.group_id} has {members} members: stop the service, then replay it")
    await _start(contracts)
    try:
        for contract in contracts:
            await _settled(_actor(contract).reset())
            if (begin_at := getattr(contract.actor, "begin_at", None)) is not None:
                for partition, offset in begins.items():
                    await _settled(begin_at(*partition, offset))
        # These records are read again, so their dead letters are forgotten.
        owner, owners = secrets.token_hex(4), dict[Partition, Owner]()
        for topic in {topic for topic, _ in begins}:
            dead_partitions = reader.partitions(dead_topic(topic, settings.group_id))
            reader.write([(*partition, forget()) for partition in dead_partitions])
            dead_ends = {partition[1]: reader.bounds(*partition)[1] for partition in dead_partitions}
            own = [partition for partition in begins if partition[0] == topic]
            owners |= {partition: Owner(owner, dead_ends.get(partition[1], 0)) for partition in own}
        reader.commit(begins, owners)  # a dead letter of a former member that lands after this is void
        print(f"the store is empty; the group {settings.group_id} begins anew")
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
            raise ConfigError(
                f"{contract.name} cannot build a shadow: derive it from hiveio.projection, or use --reset"
            )
        try:
            await _settled(_actor(contract).begin_shadow())
        except ValueError as error:
            raise ConfigError(str(error)) from None
    # It reads with a group of its own, so that its failures do not park keys of the service.
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
                        raise HiveError(
                            f"the shadow does not catch up with the store: no progress for {STALLED_S:.0f} s"
                        )
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
    """Handle all records below ``ends``. The consumer goes on reading after that; the caller has to stop it.

    With ``reader``, instances of the service take part, and the offsets that they have committed count too.
    """
    consumer = Consumer(settings, [(contract, performing(contract)) for contract in contracts])
    await consumer.start()
    total = sum(ends[partition] - begins[partition] for partition in ends)
    done, moved = -1, time.monotonic()
    try:
        while True:
            at = consumer.positions()
            if reader and (elsewhere := [partition for partition in ends if partition not in at]):
                at |= await blocking(reader.committed, elsewhere)
            reached = {partition: min(at.get(partition, begins[partition]), ends[partition]) for partition in ends}
            now = sum(reached[partition] - begins[partition] for partition in ends)
            if now != done:
                done, moved = now, time.monotonic()
                _progress(done, total)
            if done >= total:
                break
            _check(consumer)
            if time.monotonic() - moved > STALLED_S:
                raise HiveError(f"no record was handled for {STALLED_S:.0f} s; {done} of {total} are done")
            await asyncio.sleep(0.1)
    except BaseException:
        await consumer.stop()
        raise
    return consumer


def _check(consumer: Consumer) -> None:
    if stopped := consumer.stopped():
        raise HiveError(f"the replay stopped: {stopped}")


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
    """The actor, whose methods were checked before."""
    return contract.actor


async def _settled(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
