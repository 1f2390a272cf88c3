"""A log of the first format, on which instances work, is raised to the newest by ``hiveio upgrade``."""

import itertools
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import msgspec
import redis as redis_client

from hiveio.transaction.record import FORMAT, Barrier, CommandId, Commit, Format, Write, encode
from tests.integration.accounts import ACTOR, send  # noqa: F401 - ACTOR is what `processor` starts
from tests.integration.conftest import Make
from tests.integration.test_outcomes import FOREVER, LOG
from tests.integration.topics import make_topic, write
from tests.process import Role, wait_until
from tests.services import Kafka, Redis

OLDER = "0123456789abcdef"  # the transaction ids of an instance that knows format 1 only


def fill(kafka: Kafka, topic: str) -> None:
    """A log as a version wrote it that knows format 1 only: no record says what its writer has seen."""
    make_topic(kafka.brokers, f"{topic}.transactions", config=LOG | FOREVER)
    make_topic(kafka.brokers, topic, config=FOREVER)
    name, writes = "AccountActor/ada", []
    for version, (kind, payload) in enumerate([("Opened", {"owner": "ada"}), ("Deposited", {"amount": 5})]):
        event = msgspec.Raw(json.dumps({"type": kind, "payload": payload}).encode())
        head = f"{OLDER}-{version}" if version else ""
        writes.append(Commit(CommandId(name, f"k{version}"), (Write(name, head, version, (event,)),), keyed=True))
    records = [("format-0", Format(1, 1, "crc32", 10_000, 3_600_000))]
    records += [(f"{OLDER}-{number}", record) for number, record in enumerate(writes, 1)]  # type: ignore[misc]
    write(kafka.brokers, f"{topic}.transactions", [(0, tx, encode(record), {}) for tx, record in records])


def test_a_log_of_the_first_format_is_upgraded_while_instances_work(
    processor: Make, kafka: Kafka, redis: Redis, topic: str
) -> None:
    fill(kafka, topic)
    log = f"{topic}.transactions"
    with processor() as a, processor() as b:

        def hiveio(*words: str) -> "subprocess.CompletedProcess[str]":
            tool = str(Path(sys.executable).parent / "hiveio")
            return subprocess.run(
                [tool, *words], env=a.environ, capture_output=True, text=True, timeout=90, check=False
            )

        def balance(role: Role) -> int:
            return int(httpx.get(f"{role.url}/accounts/ada", timeout=30).json()["payload"]["balance"])

        deposits = 0

        def deposit(*roles: Role) -> None:
            nonlocal deposits
            for role in roles:
                deposits += 1
                answer = send(role, "ada", "Deposit", {"Idempotency-Key": f"d{deposits}"}, amount=1)
                assert answer.status_code == 200, answer.text
                assert balance(role) == 5 + deposits

        deposit(a, b)
        upgrade = hiveio("upgrade")
        assert upgrade.returncode == 1, upgrade
        is_older = re.compile(rf"{re.escape(log)}/0: format 1 at offset \d+")
        assert is_older.match(upgrade.stdout), upgrade
        assert "Nothing was changed" in upgrade.stdout

        # An instance of an older version is at work: it moves a cache of its own.
        started, ended = threading.Event(), threading.Event()
        mark = f"hive:{{{log}/0}}:deadbeef"

        def older() -> None:
            with redis_client.Redis.from_url(redis.url) as client:
                key = next(client.scan_iter(f"hive:{{{log}/0/*")).decode()
                topic_id = key.partition("}")[0].removeprefix(f"hive:{{{log}/0/")  # may have a slash
                for offset in itertools.count(5):
                    client.set(mark, f"{offset}|0|{topic_id}|generation|{OLDER}-2")
                    started.set()
                    if ended.wait(0.1):
                        return

        thread = threading.Thread(target=older)
        thread.start()
        try:
            assert started.wait(10)
            upgrade = hiveio("upgrade", "--yes")
            assert upgrade.returncode == 20, upgrade
            assert is_older.fullmatch(upgrade.stdout.strip()), upgrade
            assert f"does not know format {FORMAT} is at work: it has moved its cache {mark}" in upgrade.stderr
        finally:
            ended.set()
            thread.join()

        deposit(a, b)
        upgrade = hiveio("upgrade", "--yes")
        assert upgrade.returncode == 0, upgrade
        assert f"{log}/0: format {FORMAT} at offset " in upgrade.stdout
        upgrade = hiveio("upgrade", "--yes")
        assert (upgrade.returncode, upgrade.stdout.count("\n")) == (0, 1), upgrade  # there is nothing to do any more
        deposit(a, b)
        repeated = send(b, "ada", "Deposit", {"Idempotency-Key": "d1"}, amount=1)
        assert (repeated.status_code, balance(b)) == (200, 5 + deposits)  # from the time before
        # A record that the older instance had on its way, and a copy of what it had written.
        records: list[tuple[str, Barrier]] = [
            (f"{OLDER}-{number}", Barrier(("AccountActor/ada",))) for number in (3, 2)
        ]
        write(kafka.brokers, log, [(0, tx, encode(record), {}) for tx, record in records])
        deposit(a, b)
        with processor() as c:
            deposit(c, a, b, c)
        listed = hiveio("log").stdout
        assert f"upgrade to format {FORMAT}" in listed
        assert f"accepted  {OLDER}-3  barrier" in listed
        assert f"VOID      {OLDER}-2  barrier" in listed
        wait_until(lambda: hiveio("verify").returncode == 0, 60, "applied and published")
