"""hiveio.testing gives a consumer what its topics have: events, also in lists, and records without a value."""

from hiveio import Actor, Context, Event, Model, Query, Tombstone
from hiveio.testing import given


class Added(Event):
    amount: int


class Total(Query):
    path = "/total"


class Sum(Model):
    amount: int
    said: list[str]


class Lists(Actor):
    """It takes lists of events."""

    def start(self) -> None:
        self.sum = Sum(0, [])

    def perform(self, message: list[Added] | Total, context: list[Context] | Context) -> Sum | None:
        if isinstance(message, Total):
            return self.sum
        assert isinstance(context, list)
        for event, each in zip(message, context, strict=True):
            self.sum = Sum(self.sum.amount + event.amount, [*self.sum.said, f"{each.key!r} {each.offset} {each.meta}"])
        return None


class Compacted(Actor):
    """It takes records without a value."""

    def start(self) -> None:
        self.amounts: dict[bytes | None, int] = {}

    def perform(self, message: Added | Tombstone | Total, context: Context) -> Sum | None:
        match message:
            case Total():
                return Sum(sum(self.amounts.values()), [])
            case Added(amount):
                self.amounts[context.key] = amount
            case Tombstone():
                self.amounts.pop(context.key, None)
        return None


def test_an_actor_that_takes_lists_is_given_lists_of_one() -> None:
    heard = given(Lists, Added(2), id="a").when(Added(3), id="b", meta={"by": "ada"}).then()
    heard.when(Total()).then_reply(Sum(5, ["b'a' 0 None", "b'b' 1 {'by': 'ada'}"]))


def test_an_actor_that_takes_tombstones_is_given_them_with_their_keys() -> None:
    given(Compacted, Added(2), Tombstone(), id="a").and_given(Compacted, "b", Added(3)).when(Total()).then_reply(
        Sum(3, [])
    ).when(Tombstone(), id="b").then().when(Total()).then_reply(Sum(0, []))


def test_what_an_actor_does_not_take_is_refused() -> None:
    given(Lists).when(Tombstone()).then_problem(422)
