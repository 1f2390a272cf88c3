"""`hiveio dev`: Kafka, Valkey and the services of a folder, from the start to Ctrl-C."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.markup import escape
from watchfiles import PythonFilter, watch

from hiveio.config import Settings
from hiveio.dev.actors import Found, Look, distinct
from hiveio.dev.addresses import preferred
from hiveio.dev.output import Output
from hiveio.dev.process import Service
from hiveio.dev.project import FIRST_PORT, environment, ordered, project_name, topics_of
from hiveio.dev.running import Running, RunningConsole
from hiveio.dev.services import Services, console, step
from hiveio.dev.spares import Spares
from hiveio.errors import ConfigError, HiveError
from hiveio.kafka import ensure_topic

KEPT = ".hiveio"
KAFKA_PORT, REDIS_PORT = 9092, 6379
CONSOLE_PORT = 3030
READY_S = 60.0
QUIET_MS, TOGETHER_MS, LOOK_MS = 50, 300, 400  # a change is waited for until there is none for QUIET_MS


class Session:
    """Of one folder, which has one at a time. `words` name its services, or all are found."""

    def __init__(self, folder: Path, words: Sequence[str], output: Output, *, host: str = "") -> None:
        self.folder, self.words, self.host = folder.resolve(), words, host
        self.kept = self.folder / KEPT
        self.project = project_name(self.folder)
        self.output = output
        self.running: dict[str, Running] = {}
        self.consoles: dict[str, RunningConsole] = {}  # by the stream processor
        self._spares = Spares()
        self._faults: dict[str, str] = {}

    def run(self, *, fresh: bool) -> int:
        """Until a signal raises SystemExit or KeyboardInterrupt. The exit code is 1 if Kafka or Valkey ended.

        Raises ConfigError, ServiceUnavailable and ServiceFailed.
        """
        with self._alone(), contextlib.ExitStack() as stack:
            if fresh:
                for each in ("data", "kafka", "redis"):
                    shutil.rmtree(self.kept / each, ignore_errors=True)
            (self.kept / "data").mkdir(exist_ok=True)
            look = Look(self.folder, self.words)
            stack.callback(look.cancel)
            stack.callback(self._spares.close)
            self._spares.fill()
            self.services = stack.enter_context(
                Services(
                    kafka_port=preferred(KAFKA_PORT),
                    redis_port=preferred(REDIS_PORT),
                    folder=self.kept,
                    host=self.host,
                )
            )
            stack.callback(self._stop)
            self._begin(look.result())
            self._spares.fill()
            return self._watch()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.kept.mkdir(exist_ok=True)
        (self.kept / ".gitignore").write_text("*\n")
        with (self.kept / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"hiveio dev runs in {self.folder} already; end that one first") from None
            yield

    # -- the services

    def _begin(self, found: list[Found]) -> None:
        if not found:
            raise ConfigError(f"{self.folder} has no actor: no module there defines a class derived from hiveio.Actor")
        with step("Services"):
            self._adopt(found)
            self._show()
            self._wait([*self.running.values(), *self.consoles.values()])
        console.print()
        console.print(escape(str(self.services.here)))
        if outside := self.services.outside:
            console.print(escape(f"From containers:\n{outside}"))
        for each in (*self.running.values(), *self.consoles.values()):
            each.introduce()
        console.print("\n[dim]Each is restarted when its files change. Ctrl-C ends all of it.[/]\n")

    def _adopt(self, found: list[Found]) -> None:
        """Start what is new, stop what is gone, and start again what has another environment now."""
        found = distinct(found)
        self._say_faults(found)
        good = ordered([each for each in found if not each.fault])
        failed = {each.name for each in found if each.fault}
        # One that cannot be loaded now is what it was, or others would be given other topics while it is half written.
        kept = [each.found for name, each in self.running.items() if name in failed]
        topics = topics_of(self.project, [*good, *kept])
        asyncio.run(self._make_topics({topic for each in topics.values() for topic in each.all}))
        for name in self.running.keys() - {each.name for each in good} - failed:
            self.running.pop(name).stop()
        self.output.know([each.short for each in good])
        for each in good:
            before = self.running.get(each.name)
            port = before.port if before else self._free_port()
            data, here = self.kept / "data", self.services.here
            environ = environment(each, self.project, self.folder, data, port, here, topics[each.name])
            if before is not None and (before.found.role, before.environ) == (each.role, environ):
                continue
            if before is not None:
                before.stop()
            self.running[each.name] = Running(each, port, environ, self.folder, self.output, self._spares)
            self.running[each.name].start()

    def _say_faults(self, found: list[Found]) -> None:
        """Each once, until it is another one."""
        faults = {each.name: each.fault for each in found if each.fault}
        for name, fault in faults.items():
            if self._faults.get(name) != fault:
                self.output.say(name, fault, "red")
        self._faults = faults

    def _show(self) -> None:
        """A console for each stream processor."""
        others = sorted(each.url for each in self.running.values() if each.found.role != "stream-processor")
        writers = {name: each for name, each in self.running.items() if each.found.role == "stream-processor"}
        for name in self.consoles.keys() - writers.keys():
            self.consoles.pop(name).stop()
        for name, writer in writers.items():
            before = self.consoles.get(name)
            port = before.port if before else self._free_port(CONSOLE_PORT)
            made = RunningConsole(writer, port, others, self.folder, self.output)
            if before is not None and (before.words, before.environ) == (made.words, made.environ):
                continue
            if before is not None:
                before.stop()
            self.consoles[name] = made
            made.start()

    def _free_port(self, first: int = FIRST_PORT) -> int:
        taken = {each.port for each in (*self.running.values(), *self.consoles.values())}
        return preferred(next(port for port in range(first, 65536) if port not in taken))

    async def _make_topics(self, names: set[str]) -> None:
        """Ahead, so that no consumer waits for the start of who writes."""
        # The number of partitions is that of the services, which do not start with fewer.
        given = {name: value for name, value in os.environ.items() if name.startswith("EVENT_STORE_PARTITIONS")}
        settings = Settings.read({**given, "EVENT_STORE_BROKERS": self.services.here.brokers})
        made = await asyncio.gather(*(ensure_topic(settings, name) for name in sorted(names)), return_exceptions=True)
        for error in made:
            if isinstance(error, HiveError):
                self.output.say("dev", str(error), "red")
            elif isinstance(error, BaseException):
                raise error

    def _wait(self, started: Sequence[Running]) -> None:
        if not started:
            return
        pool = ThreadPoolExecutor(len(started))
        try:
            for each, ready in zip(started, pool.map(lambda each: each.wait(READY_S), started), strict=True):
                if not ready:
                    self._say_not_ready(each)
                    each.said_ended = True
        finally:
            pool.shutdown(wait=False)  # after Ctrl-C each wait ends with its service

    def _say_not_ready(self, each: Running) -> None:
        if each.ended is not None:
            text = f"ended with exit code {each.ended}; it is started again when a file changes"
        else:
            text = f"is not ready after {READY_S:.0f} s: {each.waits_for()}"
        self.output.say(each.name, text, "red")

    def _stop(self) -> None:
        """All at once, while Kafka still takes what they flush."""
        if running := [*self.running.values(), *self.consoles.values()]:
            with ThreadPoolExecutor(len(running)) as pool:
                list(pool.map(Running.stop, running))

    # -- changes

    def _watch(self) -> int:
        for changes in watch(
            self.folder,
            watch_filter=PythonFilter(ignore_paths=[self.kept]),
            step=QUIET_MS,
            debounce=TOGETHER_MS,
            rust_timeout=LOOK_MS,
            yield_on_timeout=True,
        ):
            if changes:
                self._changed({Path(path) for _, path in changes})
            elif (ended := self.services.ended(self._ended_by_itself)) is not None:
                console.print(escape(ended.log_tail()))
                return 1
            self._say_ended()
        return 0

    def _changed(self, paths: set[Path]) -> None:
        started = time.monotonic()
        if all(path.name.startswith(("test_", "conftest")) for path in paths):
            return
        touched = [each for each in self.running.values() if each.files & paths or each.ended is not None]
        if touched:
            with ThreadPoolExecutor(len(touched)) as pool:
                list(pool.map(_restart, touched))
            self._wait(touched)
            for each in touched:
                if each.ended is None:
                    self.output.say(each.name, f"restarted in {time.monotonic() - started:.1f} s", "green")
        for shown in self.consoles.values():
            if shown.files & paths or shown.ended is not None:
                _restart(shown)
        self._reconsider()
        self._spares.fill()

    def _reconsider(self) -> None:
        """A changed module may have another role, take other events, or be new."""
        try:
            found = Look(self.folder, self.words).result()
        except ConfigError as error:
            self.output.say("dev", str(error), "red")
            return
        before = {*self.running.values(), *self.consoles.values()}
        self._adopt(found)
        self._show()
        new = [each for each in (*self.running.values(), *self.consoles.values()) if each not in before]
        self._wait(new)
        for each in new:
            each.introduce()

    def _say_ended(self) -> None:
        for each in (*self.running.values(), *self.consoles.values()):
            if each.ended is not None and not each.said_ended:
                self._say_not_ready(each)
                each.said_ended = True

    def _ended_by_itself(self, service: Service) -> None:
        console.print(f"[red]✗[/] {service.name} on port {service.port} ended by itself")


def _restart(each: Running) -> None:
    each.stop()
    each.start()
