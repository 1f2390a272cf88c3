"""What a step of the story may do and look at: requests, the log, the snapshots, the event topics, the projection."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import msgspec
from rich.text import Text

from hiveio.transaction.record import Commit

from .display import Display, as_json
from .world import LOG, TOPIC, VISITS, Logged, World

WITHIN_S = 15.0  # what comes later than the answer (snapshot, event topic, projection) comes within this
JSON = {"content-type": "application/json"}


class Answer(NamedTuple):
    status: int
    body: Any
    headers: httpx.Headers


class Scene:
    """What a step may do and look at. Everything it does is shown as it happens, and what it expects is remembered."""

    def __init__(self, world: World, display: Display, client: httpx.Client) -> None:
        self._world, self._display, self._client = world, display, client
        self._seen = {LOG: 1, TOPIC: 0, VISITS: 0}  # records shown already; the log's first pins its format
        self.wrong: list[str] = []

    def send(self, role: str, method: str, path: str, message: Any = None, **headers: str) -> Answer:
        """Send a request. A 503 says that nothing happened and when to try again, which we do for a while."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._display.request(role, method, path, named, message)
        url = self._world.roles[role].url + path
        content = None if message is None else msgspec.json.encode(message)
        until = time.monotonic() + WITHIN_S
        while True:
            began = time.monotonic()
            found = self._client.request(method, url, content=content, headers={**JSON, **named})
            if found.status_code != 503 or time.monotonic() > until:
                break
            time.sleep(float(found.headers.get("retry-after", "1")) / 4)
        shown = [(name, found.headers[name]) for name in ("ETag", "Hive-Position") if name in found.headers]
        answer = Answer(found.status_code, found.json(), found.headers)
        self._display.answer(answer.status, shown, answer.body, (time.monotonic() - began) * 1000)
        return answer

    def log(self) -> list[Logged]:
        """What is new in the transaction log, with the rule's verdict on it."""
        records = self._world.log()[self._seen[LOG] :]
        self._seen[LOG] += len(records)
        for offset, record, accepted in records:
            if not isinstance(record, Commit):
                continue
            verdict = Text("accepted", "green") if accepted else Text("void", "red")
            lines = [Text.assemble(f"{LOG}/{self._world.scope}/{offset}  ", verdict)]
            for write in record.writes:
                for version, event in enumerate(write.events, write.version + 1):
                    shown = as_json(msgspec.json.decode(event))
                    lines.append(Text.assemble((write.aggregate, "bold"), f" v{version}  ") + shown)
            self._display.line("Kafka", *lines)
        if not records:
            self._display.line("Kafka", Text("nothing was written to the log", "dim"))
        return records

    def snapshots(self, *expected: tuple[str, int]) -> dict[str, Any]:
        """The snapshots in Redis of these aggregates, once they have these versions: they follow the answer."""
        names = {f"AccountActor/{id}": version for id, version in expected}

        def current() -> dict[str, Any] | None:
            found = self._world.snapshots()
            return found if all(found.get(name, (0,))[0] >= version for name, version in names.items()) else None

        found = self._within("waiting for the snapshot", current) or self._world.snapshots()
        lines = []
        for name in names:
            version, state = found.get(name, (0, None))
            lines.append(Text.assemble((name, "bold"), f" v{version}  ") + as_json(state))
        self._display.line("Redis", *lines)
        return {name.partition("/")[2]: found.get(name, (0, None))[1] for name in names}

    def events(self, topic: str, count: int) -> list[dict[str, Any]]:
        """What is new on an event topic, once there are ``count``: events are published right after the answer."""
        seen = self._seen[topic]

        def arrived() -> list[Any] | None:
            found = self._world.published(topic)[seen:]
            return found if len(found) >= count else None

        found = self._within(f"waiting for the topic {topic}", arrived) or self._world.published(topic)[seen:]
        self._seen[topic] += len(found)
        for event in found:
            at = Text.assemble(
                f"{topic}/{event.partition}/{event.offset}  ", (f"key {event.key}  " if event.key else "", "dim")
            )
            self._display.line("topic", at + as_json(msgspec.json.decode(event.value)))
        return [msgspec.json.decode(event.value) for event in found]

    def eventually(self, role: str, path: str, right: Callable[[Any], bool]) -> Answer:
        """Ask until the answer is the one expected: a projection follows the log at its own pace."""
        url = self._world.roles[role].url + path
        self._within("waiting for the projection", lambda: right(self._client.get(url).json()) or None)
        return self.send(role, "GET", path)

    def empty_redis(self) -> None:
        gone = Text.assemble(("FLUSHALL", "bold red"), "  snapshots, watermark and locks are gone")
        self._display.line("Redis", gone)
        self._world.empty_redis()

    def expect(self, text: str, expected: Any, found: Any) -> None:
        """Check one thing that must be so for the step to be right."""
        right = expected == found
        self._display.checked(text, right=right, found=repr(found))
        if not right:
            self.wrong.append(text)

    def _within(self, text: str, ask: Callable[[], Any]) -> Any:
        until = time.monotonic() + WITHIN_S
        with self._display.waiting(text):
            while time.monotonic() < until:
                if (found := ask()) is not None:
                    return found
                time.sleep(0.05)
        return None
