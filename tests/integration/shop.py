"""A shop in every role: the messages, types and answers that /openapi.json has to describe."""

from tests.integration.accounts import HEAD

BASE = '''
"""Orders, as the tests of /openapi.json see them."""
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID
from msgspec import Meta
from hiveio import Actor, Command, Event, Model, Query, Rejected

__version__ = "2.1.0"

class Colour(Enum):
    RED = "red"
    BLUE = "blue"
class Line(Model):
    """One article of an order."""
    sku: Annotated[str, Meta(min_length=1, max_length=20)]
    count: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    price: Decimal = Decimal(0)
    at: datetime | None = None
class Order(Command):
    lines: Annotated[list[Line], Meta(max_length=20)]
    colour: Colour = Colour.RED
    kind: Literal["gift", "own"] = "own"
    weight: float | None = None
    due: date | None = None
    reference: UUID | None = None
    picture: bytes = b""
    notes: dict[str, str] = {}
    anything: Any = None
class Cancel(Command):
    reason: str = ""
class Split(Command):
    into: Annotated[int, Meta(ge=0, le=5)]
class Ordered(Event):
    lines: list[Line]
    at: datetime | None = None
class Cancelled(Event):
    reason: str
class Part(Event):
    number: int
class Summary(Model):
    count: int
    tags: list[str]
class Overview(Query):
    id: str
    tags: list[str] = []
    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    deep: bool | None = None
class ByColour(Query):
    path = "/search/{shop}"
    shop: str
    colour: Colour = Colour.RED
    limit: int = 5
class ByWord(Query):
    path = "/search/{shop}"
    shop: str
    word: str = ""
    limit: str = ""

class Orders(Actor):
    path = "/orders/{id}"

    def perform(
        self, message: Order | Cancel | Split | Overview | ByColour | ByWord
    ) -> Ordered | Cancelled | list[Part] | Summary | dict[str, int] | None:
        match message:
            case Order(lines=[]):
                raise Rejected("an order has lines", least=1)
            case Order(lines=lines):
                return Ordered(lines, lines[0].at)
            case Cancel(reason=""):
                return None
            case Cancel(reason=reason):
                return Cancelled(reason)
            case Split(into=into):
                return [Part(number) for number in range(into)]
            case Overview(tags=tags, limit=limit):
                return Summary(limit, tags)
            case _:
                return {"found": 0}
'''

PRODUCER = """
from datetime import datetime
from hiveio import Actor, Event, Rejected

class Reading(Event):
    sensor: str
    celsius: float
    count: int = 0
    at: datetime | None = None

class Readings(Actor):
    path = "/readings"

    def perform(self, message: Reading) -> Reading | list[Reading] | None:
        if message.celsius < -273.15:
            raise Rejected("colder than possible")
        if message.count == 0:
            return None
        return message if message.count == 1 else [message, message]
"""

CONSUMER = """
from hiveio import Actor, Event, Model, Query

class Reading(Event):
    sensor: str
    celsius: float
class Latest(Query):
    sensor: str
class Warmest(Query):
    path = "/warmest"
    above: float = 0
    sensors: list[str] = []
class Temperature(Model):
    celsius: float | None

class Thermometer(Actor):
    path = "/readings/{sensor}"
    single_process = True

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def perform(self, message: Reading | Latest | Warmest) -> Temperature | list[Temperature] | None:
        match message:
            case Reading(sensor=sensor, celsius=celsius):
                self.latest[sensor] = celsius
                return None
            case Latest(sensor=sensor):
                return Temperature(self.latest.get(sensor))
            case Warmest(above=above):
                return [Temperature(celsius) for celsius in self.latest.values() if celsius > above]
"""

PROCESSOR = (
    HEAD
    + """
class Deposit(Command):
    amounts: list[Annotated[int, Meta(gt=0, lt=1_000_000_000)]]

class Accounts(Actor):
    path = "/accounts/{id}"

    def perform(self, account: Account | None, command: Open | Deposit) -> Opened | list[Deposited] | None:
        match command:
            case Open(owner=owner):
                if account and account.owner != owner:
                    raise Rejected("this account is open already", owner=account.owner)
                return None if account else Opened(owner)
            case Deposit(amounts=amounts):
                if not account:
                    raise Rejected("no such account")
                return [Deposited(amount) for amount in amounts[:5]]

    def replay(self, account: Account | None, event: Opened | Deposited) -> Account:
        match event:
            case Opened(owner=owner):
                return Account(owner)
            case Deposited(amount=amount):
                assert account
                return Account(account.owner, account.balance + amount)
"""
)
