"""Who sends a request: real roles, an issuer in a process of its own, and tokens of attackers."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from hiveio.auth.fetching import Fetcher, FetchFailed
from hiveio.auth.keys import KeySet, NoKeys
from tests.integration.conftest import Make
from tests.integration.topics import read_all
from tests.issuer import PATH, Issuer, Key, document, hostile
from tests.process import Role, wait_until
from tests.services import Kafka, Redis

BASE = """
from hiveio import Actor, Command, Context, Query

class Say(Command):
    text: str
class Whoami(Query):
    pass

class Guarded(Actor):
    path = "/guarded"
    requires = "say:things"

    def perform(self, message: Say | Whoami, context: Context) -> list[str]:
        if isinstance(message, Say) and message.text == "fail":
            raise ValueError("a bug of the actor")
        return [context.identity.subject, *sorted(context.identity.scopes)]
"""
ACTOR = """
from hiveio import Actor, Command, Context, Event, Model

class Open(Command):
    owner: str
class Opened(Event):
    owner: str
    by: str
class Account(Model):
    owner: str

class AccountActor(Actor):
    path = "/accounts/{id}"
    requires = "accounts:write"

    def perform(self, account: Account | None, command: Open, context: Context) -> Opened:
        return Opened(command.owner, context.identity.subject)

    def replay(self, account: Account | None, event: Opened) -> Account:
        return Account(event.owner)
"""
NOTES = """
from hiveio import Actor, Command, Event

class Note(Command):
    text: str
class Noted(Event):
    text: str

class Notes(Actor):
    path = "/notes"

    def perform(self, message: Note) -> Noted:
        return Noted(message.text)
"""
READER = """
from hiveio import Actor, Context, Event, Query

class Noted(Event):
    text: str
class Seen(Query):
    path = "/seen"

class Reader(Actor):
    single_process = True

    def start(self) -> None:
        self.seen: list[str] = []

    def perform(self, message: Noted | Seen, context: Context) -> list[str] | None:
        if isinstance(message, Seen):
            return [context.identity.subject, *self.seen]
        assert context.identity is None
        self.seen.append(context.headers["hive-subject"])
        return None
"""
KEY, OTHER = Key("first"), Key("second", "RS256")
TRACE = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
SAY = {"type": "Say", "payload": {"text": "hello"}}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def say(role: Role, token: str | None, **more: Any) -> httpx.Response:
    headers = {} if token is None else bearer(token)
    return httpx.post(role.url + "/guarded", json=SAY, headers=headers, timeout=20, **more)


def fetched(url: str) -> bytes:
    return asyncio.run(Fetcher(url).fetch())


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer(KEY) as running:
        yield running


@pytest.fixture(scope="module")
def base(issuer: Issuer) -> Iterator[Role]:
    with Role("base", {**issuer.settings, "HTTP_VERSION": "2", "REQUEST_TIMEOUT": "8000"}, actor=BASE) as role:
        yield role


def test_a_token_of_the_issuer_is_let_in_over_both_versions_of_http(base: Role) -> None:
    token = KEY.token(scope="say:things other")
    assert say(base, token).json() == ["ada", "other", "say:things"]
    assert httpx.get(base.url + "/guarded", headers=bearer(token)).json() == ["ada", "other", "say:things"]
    with httpx.Client(http1=False, http2=True) as client:
        answer = client.post(base.url + "/guarded", json=SAY, headers=bearer(token))
        assert (answer.http_version, answer.json()[0]) == ("HTTP/2", "ada")
        refused = client.post(base.url + "/guarded", json=SAY)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert not base.complaints()


def test_tokens_of_attackers_are_refused_with_a_problem_and_do_no_harm(base: Role, issuer: Issuer) -> None:
    asked = issuer.asked
    for name, token in hostile(KEY, Key("first")).items():
        try:
            answer = say(base, token)
        except httpx.LocalProtocolError:
            continue  # the client does not send such a header
        shown = (name, answer.status_code, answer.text)
        assert answer.status_code in (401, 431), shown  # a header that is larger than the server reads is 431
        assert answer.headers["content-type"] == "application/problem+json", shown
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token"'), shown
        assert "root" not in answer.text, shown
    assert issuer.asked <= asked + 3, "clients made the service knock at the issuer"
    assert say(base, KEY.token(scope="say:things")).status_code == 200
    assert not base.complaints()
    numbers = httpx.get(base.url + "/metrics").text
    assert 'hiveio_auth_refused_total{reason="signature"}' in numbers
    assert "hiveio_auth_keys_fetched_timestamp_seconds" in numbers


def test_a_scope_that_is_missing_is_403_and_probes_are_open(base: Role) -> None:
    answer = say(base, KEY.token(scope="other"))
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:hiveio:problem:forbidden")
    assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="say:things"'
    for path in ("/livez", "/readyz", "/metrics", "/ping", "/openapi.json"):
        assert httpx.get(base.url + path).status_code == 200, path
    described = httpx.get(base.url + "/openapi.json").json()
    assert described["paths"]["/guarded"]["post"]["security"] == [{"token": ["say:things"]}]


def test_two_tokens_and_a_body_that_nobody_reads(base: Role) -> None:
    """Two of them may be read in two ways. A body is refused unread, and the connection goes on or ends."""
    token = KEY.token(scope="say:things")
    with socket.create_connection(("127.0.0.1", base.port)) as client:
        head = "".join(f"authorization: Bearer {each}\r\n" for each in (token, "x"))
        client.sendall(f"POST /guarded HTTP/1.1\r\nhost: x\r\n{head}content-length: 2\r\n\r\n{{}}".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    with socket.create_connection(("127.0.0.1", base.port)) as client:
        client.sendall(b"POST /guarded HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 900000\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 401")  # and not 100: the body is not asked for


def test_unknown_keys_in_great_number_do_not_knock_at_the_issuer_and_hold_up_nobody(base: Role, issuer: Issuer) -> None:
    good, asked = bearer(KEY.token(scope="say:things")), issuer.asked

    async def flood() -> tuple[list[int], list[int]]:
        async with httpx.AsyncClient(base_url=base.url, timeout=20) as client:
            unknown = [bearer(KEY.token({"kid": f"k{number}"}, scope="say:things")) for number in range(300)]
            sent = [client.post("/guarded", json=SAY, headers=each) for each in [*unknown, *[good] * 50]]
            statuses = [answer.status_code for answer in await asyncio.gather(*sent)]
            return statuses[:300], statuses[300:]

    refused, served = asyncio.run(flood())
    assert set(refused) <= {401, 503}  # 503: those that too many others wait with
    assert served == [200] * 50
    assert issuer.asked <= asked + 2  # one that was due, and one that a token caused
    assert not base.complaints()


def test_no_line_and_no_answer_of_the_service_shows_a_token(base: Role) -> None:
    tokens = [KEY.token(scope="say:things", sub=f"reader-{number}") for number in range(3)]
    failed = httpx.post(base.url + "/guarded", json={**SAY, "payload": {"text": "fail"}}, headers=bearer(tokens[0]))
    expired, foreign = KEY.token(exp=1), OTHER.token({"kid": KEY.kid, "alg": "RS256"})
    answers = [failed, say(base, tokens[1]), say(base, expired), say(base, foreign), say(base, tokens[2] + "x")]
    assert [answer.status_code for answer in answers] == [500, 200, 401, 401, 401]
    open_to_all = [httpx.get(base.url + path).text for path in ("/metrics", "/readyz?verbose", "/openapi.json")]
    text = "".join((base.text(), *open_to_all, *(answer.text + str(answer.headers) for answer in answers)))
    assert "a bug of the actor" in text
    for token in (*tokens, expired, foreign):
        assert not [part for part in token.split(".") if part in text]


def test_an_issuer_that_is_away_slow_or_wrong_at_the_start_keeps_the_service_from_being_ready() -> None:
    with Issuer(KEY) as issuer:
        issuer.answer(status=500, body="no")
        with Role("base", issuer.settings, actor=BASE, wait=False) as role:
            wait_until(lambda: role.port, what="the port")
            wait_until(lambda: "the answer is 500" in httpx.get(role.url + "/readyz?verbose").text, 10, "the reason")
            assert httpx.get(role.url + "/readyz").status_code == 503
            refused = say(role, KEY.token(scope="say:things"))
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert issuer.url not in refused.text
            issuer.answer(drip_s=0.01)
            wait_until(lambda: "no answer within 5 s" in httpx.get(role.url + "/readyz?verbose").text, 30, "the reason")
            assert httpx.get(role.url + "/livez").status_code == 200
            issuer.keys(KEY)
            role.ready(60)
            assert say(role, KEY.token(scope="say:things")).status_code == 200
            away = [line["message"] for line in role.complaints()]
            assert len(away) <= 4, away  # few lines, whatever it does
            assert any("is away" in line for line in away)
            assert any("is back" in line["message"] for line in role.logs())


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"status": 404, "body": "no"}, "the answer is 404"),
        ({"status": 204}, "the answer is 204"),
        ({"location": "/keys"}, "the answer is 302"),
        ({"body": "<html>"}, "no JSON Web Key Set"),
        ({"body": '{"keys": []}'}, "no key in it can be used"),
        ({"body": document(KEY).decode(), "missing": 10}, "ended 10 bytes too early"),
        ({"body": "x" * (1 << 20) + "x"}, "more than 1048576 bytes"),
    ],
    ids=lambda given: "" if isinstance(given, dict) else given,
)
def test_what_is_no_set_of_keys_is_none(issuer: Issuer, behaviour: dict[str, Any], reason: str) -> None:
    issuer.answer(**behaviour)
    try:
        with pytest.raises((FetchFailed, NoKeys), match=reason):
            KeySet(fetched(issuer.url + PATH))
    finally:
        issuer.keys(KEY)


def test_keys_over_https_are_taken_from_who_has_a_certificate_for_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, authority = tmp_path / "issuer.pem", tmp_path / "authority.pem"
    trusted, stranger = trustme.CA(), trustme.CA()
    trusted.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    trusted.cert_pem.write_to_path(authority)
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    with Issuer(KEY, pem=pem, authority=authority) as issuer:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert KeySet(fetched(issuer.url + PATH)).ids == ["first"]
        with pytest.raises(FetchFailed, match="certificate is not valid for 'localhost'"):
            fetched(issuer.url.replace("127.0.0.1", "localhost") + PATH)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "stranger.pem"))
        with pytest.raises(FetchFailed, match="unable to get local issuer certificate"):
            fetched(issuer.url + PATH)
        issuer.answer(drip_s=0.01)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        before = time.monotonic()
        with pytest.raises(FetchFailed, match="no answer within 5 s"):
            fetched(issuer.url + PATH)
        assert time.monotonic() - before < 8
        wait_until(lambda: not [each for each in threading.enumerate() if each.name == "issuer's keys"], 5, "its end")


def test_known_keys_go_on_while_the_issuer_is_away_and_a_rotated_key_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with Issuer(KEY) as issuer, Role("base", issuer.settings, actor=BASE) as role:
        before = KEY.token(scope="say:things")
        assert say(role, before).status_code == 200
        port = issuer.stop()
        assert say(role, KEY.token(scope="say:things", sub="bob")).status_code == 200
        assert httpx.get(role.url + "/readyz").status_code == 200
        after = OTHER.token(scope="say:things")
        # 10 s after the look at the start, the service asks again: it may not say 401 while it cannot know.
        wait_until(lambda: say(role, after).status_code == 503, 30, "503 for an unknown key")
        issuer.start(port)
        issuer.keys(OTHER)
        wait_until(lambda: say(role, after).status_code == 200, 30, "the new key")
        assert say(role, before).status_code == 401, "the issuer has withdrawn this key"


def test_half_of_the_settings_and_a_scope_without_them_stop_the_start() -> None:
    for environ, line in (
        ({}, "Guarded.requires is 'say:things', and AUTH_JWKS_URL is not set"),
        ({"AUTH_ISSUER": "i"}, "AUTH_ISSUER is set and AUTH_JWKS_URL is not"),
        ({"AUTH_JWKS_URL": "http://localhost/k"}, "AUTH_ISSUER is not set"),
        ({"AUTH_JWKS_URL": "localhost/k"}, "AUTH_JWKS_URL='localhost/k' is wrong"),
        ({"AUTH_JWKS_URL": "https://ada:secret@localhost/k"}, "AUTH_JWKS_URL='https://…' is wrong"),
    ):
        with Role("base", environ, actor=BASE, wait=False) as role:
            assert role.ended() == 2
            assert role.errors[-1].startswith(line), role.errors


def test_a_service_that_asks_nobody_says_so() -> None:
    with Role(
        "base", actor=BASE.replace('requires = "say:things"', "").replace("context.identity.", "'' and ")
    ) as role:
        assert [line["level"] for line in role.logs() if "are not authenticated" in line["message"]] == ["info"]


# -- who did it


def test_a_stream_processor_writes_who_did_it_and_answers_nobody_else(
    kafka: Kafka, redis: Redis, topic: str, issuer: Issuer, processor: Make
) -> None:
    ada, bob = (bearer(KEY.token(sub=name, scope="accounts:write")) for name in ("ada", "bob"))
    with processor(**issuer.settings, EVENT_HEADERS="x-tenant,x-b3-*,x-name") as role:

        def open_account(id: str, who: dict[str, str], owner: str = "o", **more: str) -> httpx.Response:
            meta = {"hive-subject": "root"}
            body = {"type": "Open", "payload": {"owner": owner}, "meta": meta}
            forged = {"hive-subject": "root", "Hive-Subject": "root", "x-tenant": "north"}
            return httpx.post(f"{role.url}/accounts/{id}", json=body, headers={**forged, **more, **who})

        first = open_account("1", ada, **{"idempotency-key": "k"})
        assert (first.status_code, first.json()["payload"]["by"]) == (200, "ada")
        again = open_account("1", ada, **{"idempotency-key": "k"})
        assert (again.content, again.headers["hive-position"]) == (first.content, first.headers["hive-position"])
        other = open_account("1", bob, **{"idempotency-key": "k"})
        assert (other.status_code, other.json()["payload"]["by"], other.headers["etag"]) == (200, "bob", '"2"')
        reused = open_account("1", ada, "another", **{"idempotency-key": "k"})
        assert (reused.status_code, reused.json()["title"]) == (422, "Idempotency-Key Reused")
        assert "ada" not in reused.text
        assert open_account("1", {}).status_code == 401
        assert httpx.get(f"{role.url}/accounts/1").status_code == 401
        assert httpx.get(f"{role.url}/accounts/1", headers=bob).status_code == 200
        assert httpx.get(f"{role.url}/transactions/anything").status_code == 401
        assert httpx.get(f"{role.url}/transactions/anything", headers=bob).status_code == 404
        body = {"type": "Open", "payload": {"owner": "o"}}
        several = [("x-b3-traceid", "1"), ("X-B3-SpanId", "2"), ("x-tenant", "north"), ("x-tenant", "south")]
        raw = [(name.encode(), value.encode()) for name, value in [*several, *ada.items(), ("x-other", "no")]]
        traced = httpx.post(f"{role.url}/accounts/2", json=body, headers=[*raw, (b"x-name", "Zoë".encode()), TRACE])
        assert traced.status_code == 200
        large = httpx.post(f"{role.url}/accounts/3", json=body, headers=[*raw, (b"x-name", b"n" * 4_096)])
        assert (large.status_code, large.json()["type"]) == (431, "urn:hiveio:problem:headers-too-large")
        assert httpx.get(f"{role.url}/accounts/3", headers=ada).status_code == 404
        published = wait_until(lambda: len(found := read_all(kafka.brokers, topic)) >= 3 and found, 20, "the events")
        tool = [str(Path(sys.executable).parent / "hiveio"), "verify"]
        verified = subprocess.run(tool, env=role.environ, capture_output=True, text=True, timeout=90, check=False)
        assert verified.returncode == 0, verified.stdout
    third = [pair for pair in published.pop().headers() or [] if not pair[0].startswith(("hive-", "content-"))]
    assert sorted(third) == sorted(
        [
            (TRACE[0].decode(), TRACE[1]),
            *((name.lower(), value.encode()) for name, value in several),
            ("x-name", "Zoë".encode()),  # the bytes that came
        ]
    )
    headers = [dict(message.headers() or []) for message in published]
    assert [each["hive-subject"] for each in headers] == [b"ada", b"bob"]
    assert [each["x-tenant"] for each in headers] == [b"north", b"north"]
    assert [sum(name == "hive-subject" for name, _ in message.headers() or []) for message in published] == [1, 1]


def test_a_producer_writes_who_did_it_and_a_consumer_reads_it(
    kafka: Kafka, redis: Redis, topic: str, issuer: Issuer
) -> None:
    shared = {"EVENT_STORE_BROKERS": kafka.brokers, "EVENT_STORE_TOPIC": topic, **issuer.settings}
    ada, bob = (bearer(KEY.token(sub=name)) for name in ("ada", "bob"))
    note = {"type": "Note", "payload": {"text": "n"}}
    with Role("producer", {**shared, "CACHE_URL": redis.url}, actor=NOTES) as role:
        url = role.url + "/notes"
        assert httpx.post(url, json=note).status_code == 401
        assert httpx.post(url, json=[note, note]).status_code == 401
        keyed = {"idempotency-key": "k", "hive-subject": "root"}
        first = httpx.post(url, json=note, headers=keyed | ada)
        again = httpx.post(url, json=note, headers=keyed | ada)
        other = httpx.post(url, json=note, headers=keyed | bob)
        positions = [answer.headers["hive-position"] for answer in (first, again, other)]
        assert positions[0] == positions[1] != positions[2]
        batch = httpx.post(url, json=[note, note], headers=keyed | bob)
        assert [each["status"] for each in batch.json()] == [200, 200]
        event = {
            "specversion": "1.0", "id": "1", "source": "s", "type": "Note", "hivesubject": "root", "data": {"text": "n"}
        }  # fmt: skip
        form = {"content-type": "application/cloudevents+json"}
        assert httpx.post(url, json=event, headers=form | bob).status_code == 200
        form = {"content-type": "application/cloudevents-batch+json"}
        assert httpx.post(url, json=[{**event, "id": "2"}], headers=form | ada).status_code == 200
        binary = {"ce-specversion": "1.0", "ce-id": "3", "ce-source": "s", "ce-type": "Note", "ce-hivesubject": "root"}
        assert httpx.post(url, json={"text": "n"}, headers=binary | keyed | ada).status_code == 422  # the key was used
        del keyed["idempotency-key"]
        assert httpx.post(url, json={"text": "n"}, headers=binary | keyed | ada).status_code == 200
    found = [dict(message.headers() or [])["hive-subject"] for message in read_all(kafka.brokers, topic)]
    assert found == [b"ada", b"bob", b"bob", b"bob", b"bob", b"ada", b"ada"]
    reading = {**shared, "EVENT_STORE_GROUP_ID": f"{topic}-readers", "EVENT_STORE_FROM_START": "true"}
    with Role("consumer", reading, actor=READER) as role:
        assert httpx.get(role.url + "/seen").status_code == 401
        seen = ["bob", "ada", "bob", "bob", "bob", "bob", "ada", "ada"]
        wait_until(lambda: httpx.get(role.url + "/seen", headers=bob).json() == seen, 20, "all events")
        assert not role.complaints()
