"""``hiveio transaction ID``: the records of a transaction in the log, however old it is."""

import argparse

from hiveio.cli.judging import count_scopes, home_of, judged, searched
from hiveio.cli.log import as_text
from hiveio.config import Settings
from hiveio.transaction.command import Token
from hiveio.transaction.record import CommandId, Commit, Record, Transactional


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the transaction of a 504, a transaction id of the log, or an event's hive-id")


def run(arguments: argparse.Namespace) -> int:
    """0 if it was executed, refused or closed; 1 if it has no accepted record, which may still come."""
    settings = Settings.read()
    settings.need(brokers="the log is in Kafka", written_topic="the log is <topic>.transactions")
    count = count_scopes(settings)
    tx = command = None
    try:
        token = Token.parse(arguments.id)
        command, home = token.command, home_of(settings, token.command.target, count)
    except ValueError:
        tx, home = arguments.id.partition(".")[0], None
    outcome = ""
    for scope in searched(home, count):
        for found in judged(settings, scope):
            matches = found.message.key == tx or (command is not None and command_of(found.record) == command)
            if not matches:
                continue
            print(as_text(scope, found))
            if found.accepted and not outcome:
                where = f"{settings.log_topic}/{scope}/{found.message.offset}"
                outcome = f"{meaning(found.record)} at {where}"
        if outcome:
            break
    print(f"outcome: {outcome or 'not on record: nothing has happened so far'}")
    return 0 if outcome else 1


def command_of(record: Record) -> CommandId | None:
    return record.command if isinstance(record, Transactional) else None


def meaning(record: Record) -> str:
    if isinstance(record, Commit):
        return "refused" if record.refusal is not None else "accepted"
    return "closed without having been executed"
