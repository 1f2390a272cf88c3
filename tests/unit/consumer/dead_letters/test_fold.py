"""The fold of a dead-letter partition: which dead letters are open, and which came too late to count."""

from typing import Any

from confluent_kafka import Message

from hiveio.consumer.dead_letters.fold import Fold
from hiveio.consumer.dead_letters.format import OWNER, dead_letter, mark
from hiveio.kafka.assigned import CommitMetadata, Owner
from hiveio.kafka.session_clients import Outgoing


class Partition:
    """Of a dead-letter topic."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def write(self, made: Outgoing) -> Message:
        message: Any = Message
        headers = [(name, text.encode() if isinstance(text, str) else text) for name, text in made.headers]
        at = len(self.messages)
        self.messages.append(message(topic="t.g.dead", partition=0, offset=at, key=made.key, headers=headers))
        return self.messages[-1]

    def dead_letter(self, owner: str, offset: int, key: bytes = b"a") -> Message:
        message: Any = Message
        record = message(topic="t", partition=0, offset=offset, key=key, value=b"{}", timestamp=(1, 7))
        made = dead_letter(record, "failed", "ValueError: no", 1, frozenset({"Actor"}), owner=owner)
        if not owner:  # an older version's
            made = made._replace(headers=[pair for pair in made.headers if pair[0] != OWNER])
        return self.write(made)

    def fold(self, *owners: Owner | None) -> Fold:
        folded = Fold(0, owners)
        for message in self.messages:
            folded.add(message)
        return folded


def opened(folded: Fold) -> int:
    assert folded.count == sum(entry.count for entry in folded.entries.values())
    return folded.count


def test_a_letter_that_came_late_is_void_for_the_owner_and_for_the_next_one() -> None:
    partition, first, second = Partition(), Owner("first", 0), Owner("second", 1)
    partition.dead_letter("first", 3)
    assert opened(partition.fold(first)) == 1
    late = partition.dead_letter("first", 5, b"b")
    own = partition.dead_letter("second", 4, b"b")
    for owners in ([second], [first, second], [second, Owner("third", 3)]):
        folded = partition.fold(*owners)
        assert (opened(folded), list(folded.void)) == (2, [1])
    partition.write(mark("void", late))
    for owners in ([second], [second, Owner("third", 3)], [Owner("third", 3), Owner("fourth", 4)]):
        folded = partition.fold(*owners)
        assert (opened(folded), list(folded.void)) == (2, [])
    # Also where nothing is known of who had the partition then: the dead letter behind it is no copy of it.
    entry = partition.fold().entries[b"b"]
    assert entry.count == 1
    assert entry.open(own.offset() or 0)


def test_letters_count_where_it_is_not_known_who_had_the_partition() -> None:
    partition = Partition()
    partition.dead_letter("", 1)
    partition.dead_letter("one", 2)
    assert opened(partition.fold()) == opened(partition.fold(None, Owner("two", 2))) == 2
    partition.dead_letter("", 3)  # an older version at the same time, which had lost the partition
    folded = partition.fold(Owner("two", 2))
    assert (opened(folded), list(folded.void)) == (2, [2])


def test_a_dead_letter_topic_that_was_made_anew_is_written_by_its_owner() -> None:
    partition, before, present = Partition(), Owner("before", 0), Owner("present", 500)
    partition.dead_letter("present", 700)
    assert opened(partition.fold(before, present)) == 1


def test_a_letter_that_is_written_twice_counts_once() -> None:
    partition = Partition()
    for offset in (3, 4, 3, 4):
        partition.dead_letter("one", offset)
    assert opened(partition.fold()) == 2


def test_the_metadata_of_a_commit() -> None:
    for note in (
        CommitMetadata(),
        CommitMetadata("0:1:0", "id", "sub"),
        CommitMetadata("-", "", "sub", Owner("0a1b", 17)),
    ):
        assert CommitMetadata.of(str(note)) == note
    assert CommitMetadata.of("0:1:0") == CommitMetadata("0:1:0")
    assert CommitMetadata.of("0:1:0 id -") == CommitMetadata("0:1:0", "id")
    assert CommitMetadata.of("whatever another program writes") == CommitMetadata("whatever another program writes")
    assert CommitMetadata.of("") == CommitMetadata()
