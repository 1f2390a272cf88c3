"""The position of an actor that stores it: where the actor goes on."""

import inspect
import logging

from hiveio.actor import Contract
from hiveio.errors import contained, is_cancelled
from hiveio.kafka import Start

logger = logging.getLogger("hiveio.consumer")


async def resume(contract: Contract, start: Start, usual: int) -> int:
    """The offset at which an actor goes on: its own position, unless that is of a topic that was deleted."""
    found = await position_of(contract, start.topic, start.partition)
    if found is None:
        return usual
    own, topic_id = found
    if topic_id and start.topic_id and topic_id != start.topic_id:
        logger.warning(
            "%s/%d: %s has a position in a topic of this name that was deleted; it begins at the first event of the "
            "new topic, %d",
            start.topic, start.partition, contract.name, start.low,
        )  # fmt: skip
        return start.low
    # A position without an id does not say in which topic it is; then the metadata of the group's commit does.
    return start.low if start.recreated and not topic_id else own


async def position_of(contract: Contract, topic: str, partition: int) -> tuple[int, str] | None:
    """The next offset to consume, and the id of its topic, where the actor keeps that."""
    ask = getattr(contract.actor, "position", None)
    if ask is None:
        return None
    try:
        found = ask(topic, partition)
        if inspect.isawaitable(found):
            found = await found
    except BaseException as error:
        if is_cancelled(error):
            raise
        raise contained(error)  # noqa: B904 - it is the same, or has it as its cause
    if found is None:
        return None
    offset, topic_id = found if isinstance(found, tuple) and len(found) == 2 else (found, "")
    if not (isinstance(offset, int) and offset >= 0 and isinstance(topic_id, str)):
        raise TypeError(
            f"{contract.name}.position returned {found!r}; it must return the next offset to consume, with the topic's "
            "id if it stores that, or None"
        )
    return offset, topic_id
