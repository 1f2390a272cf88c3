"""A stand-in for the clients of Kafka and Redis, for what commands say of data that a test makes up."""

from typing import Self


class Backend:
    """A client that is there, and has nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def topic_id(self, topic: str) -> str:
        return "id"

    async def stop(self) -> None:
        pass
