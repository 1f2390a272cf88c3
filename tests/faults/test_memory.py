"""Fault 62: a cache with large snapshots is lost. What comes back is folded in bounded memory."""

import asyncio
import os
import time

import psutil  # type: ignore[import-untyped]
import pytest
import redis as redis_client

from tests.faults.stage import Broker
from tests.integration.pages import Writer
from tests.integration.topics import write
from tests.process import Role, wait_until
from tests.services import HOST, Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(300, func_only=True)]

PAGES = 1_500  # of 700 kB: more than Redis takes in one call, and than may be held
MORE_MB = 450  # than before, in all processes of the service


def resident_mb(role: Role) -> float:
    processes = [psutil.Process(role.process.pid), *role.workers()]
    return float(sum(process.memory_info().rss for process in processes)) / 1e6


@pytest.mark.fault(62)
async def test_62_large_snapshots_come_back_in_bounded_memory(broker: Broker) -> None:
    topic = f"fault-{os.urandom(4).hex()}"
    with Redis(options={"appendonly": "no"}) as redis, redis_client.Redis(host=HOST, port=redis.port) as client:
        settings = {
            "EVENT_STORE_BROKERS": broker.kafka.brokers,
            "EVENT_STORE_TOPIC": topic,
            "CACHE_URL": redis.url,
        }
        with Role("stream-processor", settings, actor_path="tests/integration", module="pages:Pages") as role:
            before, peak, end = resident_mb(role), 0.0, 1
            writer, log = Writer(), f"{topic}.transactions"

            def watermark() -> int:
                marks = [client.get(key) for key in client.scan_iter(match="hive:{*") if key.count(b":") == 2]
                return max((int(mark.partition(b"|")[0]) for mark in marks if mark.count(b"|") >= 4), default=0)

            def applied() -> bool:
                nonlocal peak
                peak = max(peak, resident_mb(role))
                return watermark() >= end

            for what, pages in (("first", PAGES), ("after the loss", 1)):
                if what != "first":
                    client.flushall()
                began, end = time.monotonic(), end + pages
                await asyncio.to_thread(write, broker.kafka.brokers, log, writer.records(range(pages)))
                await asyncio.to_thread(wait_until, applied, 120, f"{what}, all in the cache: {role.complaints()}")
                seconds = time.monotonic() - began
                print(f"{what}: {seconds:.1f} s; {before:.0f} MB before, {peak:.0f} MB at most")
            role.ready()
            found = client.info("memory")["used_memory"] / 1e6
            assert found > 0.7 * PAGES, found
            assert peak - before < MORE_MB
            assert not [line for line in role.complaints() if line["level"] in ("error", "critical")][:3]
