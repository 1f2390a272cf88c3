"""A tally: the smallest aggregate there is. Tests serve it and fold it in memory, and benchmarks measure it."""

from hiveio import Actor, Command, Event, Model


class Add(Command):
    amount: int
    times: int = 1


class Added(Event):
    amount: int


class Tally(Model):
    sum: int = 0
    count: int = 0


class Tallies(Actor):
    path = "/tallies/{id}"
    name = "Tally"

    def perform(self, tally: Tally | None, command: Add) -> Added | list[Added]:
        added = Added(command.amount)
        return added if command.times == 1 else [added] * command.times

    def replay(self, tally: Tally | None, event: Added) -> Tally:
        return Tally(tally.sum + event.amount, tally.count + 1) if tally else Tally(event.amount, 1)
