"""The service of one worker process: its actors and the components that its role needs, with one life.

Actors start first, then the components in the order in which they were registered; everything stops in reverse. So an
actor is open before the first message that a component brings it, and closed after the last.
"""

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import Handler
from hiveio.errors import HiveError, StartRaises, contained, is_cancelled, text_of
from hiveio.fault import log_fault
from hiveio.identity import Identity
from hiveio.messages import Command
from hiveio.peers import Health, Peers
from hiveio.types import App, Observer

START_TIMEOUT_S = 300.0  # that the start of one actor may take; then the process ends
READY_TIMEOUT = 1.5  # seconds that one answer to "are you ready?" may take

logger = logging.getLogger("hiveio")


class Component(Protocol):
    """A part of a service with a start and an end of its own: a producer, a consumer loop, a cache."""

    name: str

    async def start(self) -> None:
        """Begin. May raise Stop, which ends the process. Waiting for a backend belongs in ``ready``."""

    async def stop(self) -> None:
        """End, and flush what was accepted. Called when no request is in flight any more, or their time is over.

        Also called when ``start`` failed or was cancelled.
        """

    async def ready(self) -> str | None:
        """None if it is ready, or else the reason why not. It has ``READY_TIMEOUT`` to answer."""

    def alive(self) -> bool:
        """Whether its own loops turn. No backend may count here, because a restart would not bring it back."""


class Authenticator(Protocol):
    """Says who sends a request, where AUTH_JWKS_URL is set: ``hiveio.auth.authenticator``."""

    async def identify(self, authorization: bytes | None) -> Identity:
        """Who sends a request with this Authorization. Raises Unauthorized (401), Unavailable (503)."""


C = TypeVar("C", bound=Component)


class Channel(NamedTuple):
    """What an actor sends to, or receives from, a topic or the topics of a ``^regex``: see /asyncapi.json.

    With ``cloudevents`` the value of a record is the payload alone, and what surrounds it is in ``ce_`` headers.
    """

    action: Literal["send", "receive"]
    topic: str
    actor: str
    messages: tuple[type, ...]
    cloudevents: bool = False
    group: str = ""  # where it is not EVENT_STORE_GROUP_ID


class Untraced:
    """What wraps the edge and the handlers of a role where TELEMETRY is off: nothing.

    ``hiveio.telemetry.Telemetry`` adds spans and metrics.
    """

    active = False

    def serving(self, app: App, template: Callable[[bytes], str | None]) -> App:
        return app

    def transacting(self, handler: Handler, contract: Contract) -> Handler:
        return handler

    def processing(self, handler: Handler, group: str = "") -> Handler:
        return handler

    def observer(self) -> Observer | None:
        """Is called with each record that a Sender takes."""
        return None


class Service:
    """What a role is built on: ``settings``, ``contracts`` and the components that it uses."""

    def __init__(self, settings: Settings, contracts: list[Contract]) -> None:
        self.settings = settings
        self.contracts = contracts
        self.components: list[Component] = []
        self.channels: list[Channel] = []
        self.telemetry = Untraced()
        self.authenticator: Authenticator | None = None
        self.peers = Peers()
        self.slot = 0  # of this worker among them
        self.draining = False
        self.started = False
        self.failed: Callable[[BaseException], None] = lambda error: None
        self._running: list[tuple[str, Callable[[], Any]]] = []

    def use(self, component: C) -> C:
        """Register a component, and return it. The worker starts and stops it."""
        self.components.append(component)
        return component

    def sends(self, topic: str, contract: Contract, *, cloudevents: bool = False) -> None:
        """Say that this actor's events go to a topic."""
        if contract.events:
            kinds = tuple(contract.events.values())
            self.channels.append(Channel("send", topic, contract.name, kinds, cloudevents))

    def receives(self, topics: Iterable[str], contract: Contract) -> None:
        """Say that this actor takes events from topics."""
        if contract.subscribes:
            kinds = tuple(contract.subscribes.values())
            self.channels += [Channel("receive", topic, contract.name, kinds) for topic in topics]

    def takes_commands(self, topics: Iterable[str], contract: Contract, group: str) -> None:
        """Say that this actor takes commands of processes from topics, in a group of its own."""
        kinds = tuple(kind for kind in contract.commands.values() if issubclass(kind, Command))
        if kinds:
            self.channels += [Channel("receive", topic, contract.name, kinds, group=group) for topic in topics]

    def sends_commands(self, topic: str, contract: Contract) -> None:
        """Say that processes of this actor send commands to a topic."""
        if contract.sends:
            kinds = tuple(dict.fromkeys(kind for kinds in contract.sends.values() for kind in kinds))
            self.channels.append(Channel("send", topic, contract.name, kinds))

    def about(self) -> dict[str, str]:
        """Title, version and description of this service: its name, ``__version__`` and docstring of the actors' module
        (the version may stand in its package)."""
        module = self.contracts[0].kind.__module__ if self.contracts else ""
        loaded = [found for name in (module, module.partition(".")[0]) if (found := sys.modules.get(name)) is not None]
        version = next((str(found.__version__) for found in loaded if hasattr(found, "__version__")), "0.0.0")
        text = inspect.getdoc(loaded[0]) if loaded else None
        return {"title": self.settings.service_name, "version": version, "description": text or ""}

    def fail(self, error: BaseException) -> None:
        """Drain and end the process with this error, which a component met at run time.

        To be called on the loop.
        """
        self.failed(error)

    async def start(self) -> None:
        """Start actors, then components. Raises what they raise; ``stop`` then ends those that began."""
        for contract in self.contracts:
            self._running.append((contract.name, contract.actor.stop))
            await _start(contract)
        for component in self.components:
            self._running.append((component.name, component.stop))
            await component.start()
        self.started = True

    async def stop(self) -> None:
        """Stop what was started, in reverse order. One that fails does not keep the others from stopping."""
        while self._running:
            name, stop = self._running[-1]
            try:
                await awaited(stop())
            except BaseException as error:
                if is_cancelled(error):
                    raise
                logger.exception("%s did not stop cleanly", name)
            self._running.pop()

    @property
    def unfinished(self) -> list[str]:
        """The names of what is not stopped yet."""
        return [name for name, _ in reversed(self._running)]

    def details(self) -> dict[str, dict[str, Any]]:
        """What components add to /readyz?verbose, by their names."""
        return {component.name: getattr(component, "details", dict)() for component in self.components}

    def dead(self) -> list[str]:
        """The names of components whose loops do not turn, in any worker of this process."""
        stuck = ["another worker"] if Health.STUCK in self.peers.others(self.slot) else []
        return self._dead() + stuck

    def _dead(self) -> list[str]:
        return [component.name for component in self.components if not component.alive()]

    async def readiness(self) -> dict[str, str | None]:
        """For each dependency None, or the reason why it is not ready. Takes at most ``READY_TIMEOUT``.

        The workers of a process are ready together.
        """
        checks = await self._checks()
        if others := self.peers.others(self.slot):
            waiting = len(others) - others.count(Health.READY)
            checks["workers"] = (
                f"{waiting} of the other {len(others)} are not ready; the log says why" if waiting else None
            )
        return checks

    async def health(self) -> Health:
        """The health of this worker, for the others."""
        if self._dead():
            return Health.STUCK
        return Health.NOT_READY if any((await self._checks()).values()) else Health.READY

    async def _checks(self) -> dict[str, str | None]:
        if self.draining or not self.started:
            return {"service": "draining" if self.draining else "starting"}
        checks: dict[str, Callable[[], Any]] = {component.name: component.ready for component in self.components}
        checks |= {contract.name: contract.actor.ready for contract in self.contracts}
        answers = await asyncio.gather(*map(_answer, checks.values()))
        return dict(zip(checks, answers, strict=True))


async def awaited(result: Any) -> Any:
    """The result of an actor's method, which may be plain or async."""
    return await result if inspect.isawaitable(result) else result


async def _start(contract: Contract) -> None:
    """Raises Stop."""
    name = f"{contract.kind.__name__}.start"
    bound = asyncio.timeout(START_TIMEOUT_S)
    try:
        async with bound:
            await awaited(contract.actor.start())
    except (HiveError, asyncio.CancelledError) as error:
        if isinstance(error, HiveError) or is_cancelled(error):
            raise
        raise StartRaises(f"{name} awaited a task that was cancelled") from None
    except BaseException as error:
        log_fault(logger, error, contract, what=name)
        if bound.expired():
            raise StartRaises(f"{name} did not return within {START_TIMEOUT_S:g} s") from None
        raise StartRaises(f"{name} raised {type(error).__name__}: {text_of(error)}") from None


async def _asked(ready: Callable[[], Any]) -> Any:
    try:
        return await awaited(ready())
    except BaseException as error:  # in a task of its own, where SystemExit would end the loop
        if is_cancelled(error):
            raise
        raise contained(error)  # noqa: B904 - it is the same, or has it as its cause


async def _answer(ready: Callable[[], Any]) -> str | None:
    """The reason why something is not ready, or None. A component answers None or a reason, an actor true or false."""
    try:
        answer = await asyncio.wait_for(_asked(ready), READY_TIMEOUT)
    except TimeoutError:
        return f"no answer within {READY_TIMEOUT} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if answer is None or answer is True:
        return None
    return answer if isinstance(answer, str) and answer else "not ready"
