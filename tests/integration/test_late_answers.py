"""What a client is asked, and answers after nobody waits for it any more."""

import subprocess
import sys

import pytest

from tests.faults.proxy import always
from tests.faults.stage import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120, func_only=True)]
# In a process of its own, which librdkafka would end. Each client lives on, as one does that others use at the time.
ASKS = """
import sys, threading

from hiveio.config import Settings
from hiveio.errors import Unavailable
from hiveio.kafka import lookup, reader, topics
from hiveio.kafka.client import client_config, make

clients = []


def keep(kind, config):
    clients.append(make(kind, config))
    return clients[-1]


lookup.make = topics.make = reader.make = keep
lookup.CALL_S = reader.TIMEOUT_S = 1.0
settings = Settings(brokers=sys.argv[1], topic="late", group_id="late")
looks = [lookup.Lookup(settings, client_config(settings) | {"group.id": "late"}) for _ in range(2)]
read = reader.Reader(settings, "late")
for look in looks:
    look.answer()
asks = [looks[0].group_is_left, looks[1].group_metadata, lambda: read.members("late"), lambda: read.delete("late")]
print("connected", flush=True)
sys.stdin.readline()


def ask(one):
    try:
        one()
    except Unavailable:
        pass


threads = [threading.Thread(target=ask, args=(one,)) for one in asks]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("given up", flush=True)
sys.stdin.readline()
for client in clients:
    client.list_topics(timeout=10)
    client.poll(0.5)
print("alive", flush=True)
"""


def test_a_coordinator_that_answers_too_late_ends_no_process() -> None:
    with Broker() as broker:
        command = [sys.executable, "-c", ASKS, broker.proxied]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == "connected\n"
            broker.proxy.down.hold(always)
            print(file=process.stdin, flush=True)
            assert process.stdout.readline() == "given up\n"
            broker.open()
            print(file=process.stdin, flush=True)
            assert process.stdout.readline() == "alive\n"
        assert process.returncode == 0
