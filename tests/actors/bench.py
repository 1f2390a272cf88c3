"""What the benchmarks serve besides the tally: an actor for each role, which does as little as its role allows."""

import os
import time

from hiveio import Actor, Command, Event, Query

RECORDS = int(os.environ.get("BENCH_RECORDS", "0"))
WARM = RECORDS // 10  # records before the clock starts: the first ones find cold code


class Quote(Command):
    amount: int
    express: bool = False


class Fee(Event):
    amount: int
    fee: int


class Quotes(Actor):
    path = "/quotes"

    def perform(self, message: Quote) -> Fee:
        return Fee(message.amount, message.amount // 200)


class Visit(Command):
    page: str
    duration_ms: int


class Visited(Event):
    page: str
    duration_ms: int


class Visits(Actor):
    path = "/visits/{id}"

    def perform(self, message: Visit) -> Visited:
        return Visited(message.page, message.duration_ms)


class Progress(Query):
    path = "/progress"


class Views(Actor):
    """Does nothing with an event but count it. The clocks are read at the first record that counts and at the last."""

    path = "/views"

    def __init__(self) -> None:
        self.count = 0
        self.clocks: list[tuple[float, float, int]] = []  # seconds, CPU seconds, the count

    def perform(self, message: Visited | Progress) -> dict[str, object] | None:
        if isinstance(message, Progress):
            return {"count": self.count, "clocks": self.clocks}
        self.count += 1
        if self.count == WARM or self.count == RECORDS:
            self.clocks.append((time.monotonic(), time.process_time(), self.count))
        return None


class Lists(Views):
    """The same with lists of events."""

    def perform(self, message: list[Visited] | Progress) -> dict[str, object] | None:  # type: ignore[override]
        if isinstance(message, Progress):
            return {"count": self.count, "clocks": self.clocks}
        before, self.count = self.count, self.count + len(message)
        if before < WARM <= self.count or before < RECORDS <= self.count:
            self.clocks.append((time.monotonic(), time.process_time(), self.count))
        return None
