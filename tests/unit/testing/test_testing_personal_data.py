# mypy: disable-error-code="misc"
"""Personal data that can be made unreadable in a log that is kept for ever: the recipe of docs/operations.md."""

import base64
import secrets
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hiveio import Actor, Command, Event, Model, Query
from hiveio.testing import given

KEYS: dict[str, bytes] = {}  # the store of keys, which is no part of the log: a row for each person, and it forgets


class Register(Command):
    name: str


class Registered(Event):
    name: str  # encrypted with the key of this person


class Customer(Model):
    name: str


class CustomerActor(Actor):
    path = "/customers/{id}"

    async def perform(self, customer: Customer | None, command: Register, context: Any) -> Registered:
        key = KEYS.setdefault(context.id, AESGCM.generate_key(128))
        return Registered(sealed(key, command.name))

    def replay(self, customer: Customer | None, event: Registered) -> Customer:
        return Customer(event.name)  # as it is: replay is a pure function, and must give the same for ever


class Profile(Query):
    id: str


class Profiles(Actor):
    """A projection reads the name as long as there is a key."""

    path = "/profiles/{id}"
    single_process = True

    def start(self) -> None:
        self.names: dict[str, str] = {}

    def perform(self, message: Registered | Profile, context: Any) -> str | None:
        if isinstance(message, Profile):
            return opened(KEYS.get(message.id), self.names.get(message.id))
        self.names[context.id] = message.name
        return None


def sealed(key: bytes, text: str) -> str:
    nonce = secrets.token_bytes(12)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, text.encode(), b"")).decode()


def opened(key: bytes | None, text: str | None) -> str | None:
    """None where the key was deleted."""
    if key is None or text is None:
        return None
    raw = base64.b64decode(text)
    try:
        return AESGCM(key).decrypt(raw[:12], raw[12:], b"").decode()
    except InvalidTag:
        return None


def test_what_is_encrypted_with_a_key_that_is_deleted_is_gone_and_the_log_goes_on() -> None:
    written = given(CustomerActor, id="7").when(Register("Ada Lovelace"))
    (event,) = written.events
    assert isinstance(event, Registered)
    assert "Lovelace" not in event.name
    reader = given(Profiles, event, id="7")
    reader.when(Profile("7")).then_reply("Ada Lovelace")
    del KEYS["7"]
    reader.when(Profile("7")).then_reply(None)
    written.when(Register("Ada King")).then_state(Customer(written.events[0].name))  # type: ignore[attr-defined]
    reader = given(Profiles, event, id="7")
    reader.when(Profile("7")).then_reply(None)  # a new key does not open what the old one has sealed
