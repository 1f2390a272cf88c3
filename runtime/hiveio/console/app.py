"""The console as an ASGI application: its paths, and what each of them reads."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from importlib import resources
from urllib.parse import parse_qs, quote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.console import states, steps, trace
from hiveio.console.dead import DeadLetters, by_key, of_key
from hiveio.console.guard import Guard
from hiveio.console.history import EVERY_S, History
from hiveio.console.html import Child, h
from hiveio.console.layout import ROWS, code, frame, link, process_path, section
from hiveio.console.pages import aggregates as aggregate_pages
from hiveio.console.pages import dead as dead_pages
from hiveio.console.pages import log as log_pages
from hiveio.console.pages import overview as overview_pages
from hiveio.console.pages import processes as process_pages
from hiveio.console.records import Books, ScopeRecords
from hiveio.errors import HiveError, NotFound
from hiveio.kafka.threads import blocking
from hiveio.status import Collector
from hiveio.status.processes import Kept, kept, listed
from hiveio.transaction.cache import Cache
from hiveio.transaction.process import RUNNING, STUCK
from hiveio.types import App

LIVE_S = 2.0
MOST_BODY = 10_000  # bytes of a form
SEARCHED = 64  # scopes that are judged for a search over all of them
FILES = {"console.css": "text/css", "console.js": "text/javascript", "console.svg": "image/svg+xml"}

logger = logging.getLogger("hiveio.console")


class Console:
    """The pages of one service. ``write`` lets them change dead letters and stuck processes."""

    def __init__(self, settings: Settings, contracts: Sequence[Contract], collector: Collector, *, write: bool) -> None:
        self.settings, self.write = settings, write
        self.contracts = {contract.name: contract for contract in contracts}
        self.collector, self.history = collector, History(collector)
        self.books, self.dead = Books(settings), DeadLetters(settings)

    def application(self, token: str) -> App:
        """The application; with a token only for those who have it, without one only on loopback."""
        routes = [
            Route("/", self.overview),
            Route("/status.json", self.status_json),
            Route("/log", self.logs),
            Route("/log/{scope:int}", self.log),
            Route("/log/{scope:int}/{offset:int}", self.record),
            Route("/aggregates", self.aggregates),
            Route("/aggregate", self.aggregate),
            Route("/transaction", self.transaction),
            Route("/find", self.find),
            Route("/processes", self.processes),
            Route("/processes/{name:path}", self.process),
            Route("/processes/{name:path}", self.ask, methods=["POST"]),
            Route("/dead", self.dead_groups),
            Route("/dead/{group}", self.dead_group),
            Route("/dead/{group}", self.act, methods=["POST"]),
            Route("/dead/{group}/{topic}/{partition:int}/{offset:int}", self.dead_letter),
            Route("/groups", self.groups),
            Route("/groups/{group:path}", self.group),  # Kafka allows any name
            Route("/instances", self.instances),
            *(Route(f"/{name}", self.file) for name in FILES),
        ]
        made = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: self._problem, HiveError: self._problem, Exception: self._fault},
        )
        return Guard(made, token)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.history.start()
        try:
            yield
        finally:
            await self.history.stop()
            await self.collector.stop()
            await blocking(self.books.close)
            await blocking(self.dead.close)

    # -- pages

    async def overview(self, request: Request) -> Response:
        status, samples = await self.history.now(), list(self.history.samples)
        return self._page(
            request, "Overview", overview_pages.overview(status, samples, _first(request)), live_s=EVERY_S
        )

    async def status_json(self, request: Request) -> Response:
        return Response(msgspec.json.encode(await self.history.now()), media_type="application/json")

    async def groups(self, request: Request) -> Response:
        found = overview_pages.groups(await self.history.now())
        return self._page(request, "Consumers", [found], live_s=EVERY_S)

    async def group(self, request: Request) -> Response:
        name = request.path_params["group"]
        group = next((group for group in (await self.history.now()).groups if group.name == name), None)
        if group is None:
            raise NotFound(f"There is no consumer group {name} that reads topics of this service.")
        return self._page(request, f"Group {name}", overview_pages.group_page(group, _first(request)), live_s=EVERY_S)

    async def instances(self, request: Request) -> Response:
        status = await self.history.now()
        found = [
            overview_pages.instances(status, _first(request)),
            section("Quarantined aggregates", overview_pages.quarantined(status)),
        ]
        return self._page(request, "Instances", found, live_s=EVERY_S)

    async def logs(self, request: Request) -> Response:
        await self._count()
        return RedirectResponse("/log/0")

    async def log(self, request: Request) -> Response:
        scope, count = await self._scope(request)
        below, void = _whole(request, "below"), request.query_params.get("void") == "1"
        end = scope.end if below is None else min(below, scope.end)
        if void:
            offsets = [offset for offset in scope.voids if offset < end][-log_pages.PAGE :]
            rows = await blocking(scope.rows_at, offsets)
        else:
            rows = await blocking(scope.rows, max(0, end - log_pages.PAGE), end)
        content = log_pages.scope_log(scope, rows[::-1], count, below, void=void)
        live_s = LIVE_S if below is None or not scope.complete else 0.0
        return self._page(request, f"Log of scope {scope.partition}", content, live_s=live_s)

    async def record(self, request: Request) -> Response:
        scope, _ = await self._scope(request)
        offset = request.path_params["offset"]
        rows = await blocking(scope.rows, offset, offset + 1) if offset < scope.end else []
        if not rows:
            raise NotFound(f"{scope.where} has no record at {offset}; it ends at {scope.end}.")
        live_s = LIVE_S if not scope.complete and rows[0].accepted is None else 0.0
        return self._page(
            request, f"Record {scope.partition}:{offset}", log_pages.record_page(scope, rows[0]), live_s=live_s
        )

    async def aggregates(self, request: Request) -> Response:
        scopes, count = await self._scopes()
        begins, after = (request.query_params.get(name, "") for name in ("begins", "after"))
        content = await blocking(aggregate_pages.aggregates, scopes, begins, after)
        return self._page(
            request, "Aggregates", [log_pages.progress_of(scopes, count), content], live_s=_until_judged(scopes)
        )

    async def aggregate(self, request: Request) -> Response:
        name = request.query_params.get("name", "")
        scopes, count = await self._scopes()
        scope = next((scope for scope in scopes if name in scope.touched), None)
        if scope is None:
            if live_s := _until_judged(scopes):
                return self._page(request, name, [log_pages.progress_of(scopes, count)], live_s=live_s, query=name)
            what = name or "an aggregate without a name"
            raise NotFound(f"No accepted record of {what} is {log_pages.searched(scopes, count)}.")
        touched = list(scope.touched[name])
        if len(touched) > states.FOLDED:
            text = f"It has {len(touched):,} records; states are shown of aggregates with up to {states.FOLDED:,}. "
            latest = [link(f"/log/{scope.partition}/{at}", f"{at:,}") for at in touched[:-21:-1]]
            content: list[Child] = [h("p", text), h("p", "Its latest records: ", [[each, " "] for each in latest])]
        else:
            rows = await blocking(scope.rows_at, touched)
            found = await blocking(states.steps, name, rows, self.contracts)
            content = aggregate_pages.aggregate(name, scope, found, len(touched), _whole(request, "last"))
        return self._page(request, name, content, query=name)

    async def transaction(self, request: Request) -> Response:
        id = request.query_params.get("id", "")
        scopes, count = await self._scopes()
        found = await blocking(trace.find, self.settings, scopes, id)
        if found is None:
            if live_s := _until_judged(scopes):
                return self._page(
                    request, "Transaction", [log_pages.progress_of(scopes, count)], live_s=live_s, query=id
                )
            what = id[:200] or "without an id"
            raise NotFound(f"No record of the transaction {what} is {log_pages.searched(scopes, count)}.")
        content = log_pages.transaction(found, self.settings.written_topic, await self._handlers(found))
        return self._page(request, "Transaction", content, live_s=EVERY_S, query=id)

    async def _handlers(self, found: trace.Trace) -> list[tuple[str, str]]:
        """Each group that reads the service's topics, and what it has done about the events."""
        groups = (await self.history.now()).groups if found.events else []
        said = []
        for group in groups:
            listed = (await blocking(self.dead.look, group.name)).listed if group.dead.count else []
            at = self.settings.written_topic, found.scope.partition
            said.append((group.name, trace.handled(group, *at, found.events, {each.origin for each in listed})))
        return said

    async def find(self, request: Request) -> Response:
        text = request.query_params.get("q", "").strip()[:1000]
        path = "/aggregate?name=" if "/" in text else "/transaction?id="
        return RedirectResponse(path + quote(text, safe="") if text else "/", 303)

    # -- processes

    async def processes(self, request: Request) -> Response:
        caches, first = await self._caches(), _first(request)
        only = request.query_params.get("only") == "stuck"
        stuck = await listed(caches, STUCK, *((first, ROWS) if only else (0, 0 if first else process_pages.FEW)))
        running = await listed(caches, RUNNING, first, 0 if only else ROWS)
        content = process_pages.processes(running, stuck, first, only_stuck=only)
        return self._page(request, "Processes", content, live_s=EVERY_S)

    async def process(self, request: Request) -> Response:
        each, cache = await self._process(request)
        scope = await self.books.scope(each.partition, await self._count())
        rows = await blocking(scope.rows_at, scope.touched.get(each.name, [])[-steps.READ :])
        found = steps.moments(each.name, each.partition, rows)
        asked = (await cache.asked(each.partition)).get(each.name, "").partition(" ")[0]
        content = process_pages.one(each, scope, found, _whole(request, "last"), asked, write=self.write)
        return self._page(request, each.name, [log_pages.progress(scope), content], live_s=LIVE_S, query=each.name)

    async def ask(self, request: Request) -> Response:
        """Ask for a confirmation, and with it ask the leader."""
        kind, which, confirmed = await self._asked(request, process_pages.ACTIONS)
        each, cache = await self._process(request)
        waiting = each.process.waiting
        if not waiting or waiting[0].name != which:
            raise NotFound("It is not the first input that waits any more: it was handled or skipped.")
        if not confirmed:
            return self._page(request, process_pages.ACTIONS[kind], process_pages.confirmation(each, kind))
        await cache.ask(each.partition, each.name, kind if kind == "retry" else f"{kind} {which}")
        logger.info("%s: asked to %s %s", each.name, kind, which)
        return RedirectResponse(process_path(each.name), 303)

    async def _process(self, request: Request) -> tuple[Kept, Cache]:
        """Raises NotFound."""
        name = request.path_params["name"]
        caches = await self._caches()
        found = await asyncio.gather(*(kept(cache, partition, [name]) for partition, cache in caches))
        for (_, cache), each in zip(caches, found, strict=True):
            if each and each[0].entry.process:
                return each[0], cache
        raise NotFound(f"The cache has no process {name}.")

    # -- dead letters

    async def dead_groups(self, request: Request) -> Response:
        return self._page(request, "Dead letters", dead_pages.groups(await self.history.now()), live_s=EVERY_S)

    async def dead_group(self, request: Request) -> Response:
        name = request.path_params["group"]
        found = await blocking(self.dead.look, name)
        content = dead_pages.group(name, found, _first(request), write=self.write)
        return self._page(request, f"Dead letters of {name}", content, live_s=EVERY_S)

    async def dead_letter(self, request: Request) -> Response:
        name, given = request.path_params["group"], request.path_params
        found = await blocking(self.dead.look, name)
        place = f"{given['topic']}/{given['partition']}/{given['offset']}"
        dead = next((each for each in found.listed if dead_pages.place(each) == place), None)
        if dead is None:
            raise NotFound(f"{place} is no open dead letter: it was handled or dropped.")
        original = await blocking(self.dead.original, name, dead)
        behind = len(of_key(found.listed, dead)) - 1
        again = found.failed.get(dead.origin, "")
        content = dead_pages.one(name, dead, original, behind, again, write=self.write)
        return self._page(request, f"Dead letter {dead.origin}", content)

    async def act(self, request: Request) -> Response:
        """Ask for a confirmation, and with it write the mark."""
        name = request.path_params["group"]
        kind, which, confirmed = await self._asked(request, dead_pages.ACTIONS)
        found = await blocking(self.dead.look, name)
        chosen = found.listed
        if which != "all":
            dead = next((each for each in found.listed if dead_pages.place(each) == which), None)
            chosen = of_key(found.listed, dead) if dead is not None else []
        if not chosen:
            raise NotFound("It is no open dead letter any more: it was handled or dropped.")
        if len(chosen) > confirmed:  # some may have come since it was confirmed, which nobody has seen
            content = dead_pages.confirmation(name, kind, which, len(chosen))
            return self._page(request, dead_pages.ACTIONS[kind], content)
        marked = [together[0] for together in by_key(chosen)] if kind == "retry" else chosen
        count = await blocking(self.dead.write, name, kind, marked)
        logger.info("dead letters of %s: %s, %d of them", name, kind, count)
        return RedirectResponse(f"/dead/{quote(name, safe='')}", 303)

    # -- what pages share

    async def _asked(self, request: Request, actions: Collection[str]) -> tuple[str, str, int]:
        """What a form asks for, with what, and for how many things that is confirmed."""
        if not self.write:
            raise HTTPException(403, "The console only reads: it was started without --write.")
        form = parse_qs((await _body(request)).decode("utf-8", "replace"))
        kind, which, confirmed = (form.get(field, [""])[-1] for field in ("action", "which", "confirmed"))
        if kind not in actions:
            raise HTTPException(400, f"The action must be {' or '.join(actions)}.")
        return kind, which, _number(confirmed) or 0

    async def file(self, request: Request) -> Response:
        name = request.url.path.lstrip("/")
        body = resources.files("hiveio.console").joinpath("static", name).read_bytes()
        return Response(body, media_type=FILES[name])

    async def _count(self) -> int:
        """The number of scopes. Raises NotFound where there is no log."""
        count = (await self.history.now()).partitions
        if not count:
            raise NotFound("There is no transaction log: EVENT_STORE_TOPIC names that of no stream processor.")
        return count

    async def _caches(self) -> list[tuple[int, Cache]]:
        """Of each scope that has one. Raises NotFound where there are none."""
        if not (await self._count() and (found := self.collector.caches)):
            raise NotFound("Nothing of the cache is known: CACHE_URL is not set, or no instance has started yet.")
        return found

    async def _scope(self, request: Request) -> tuple[ScopeRecords, int]:
        count, partition = await self._count(), request.path_params["scope"]
        if partition >= count:
            raise NotFound(f"There is no scope {partition}: the log has 0 to {count - 1}.")
        return await self.books.scope(partition, count), count

    async def _scopes(self) -> tuple[list[ScopeRecords], int]:
        """Those that are searched, and how many there are."""
        count = await self._count()
        return await self.books.first(min(count, SEARCHED), count), count

    def _page(
        self,
        request: Request,
        title: str,
        content: Sequence[Child],
        *,
        live_s: float = 0.0,
        query: str = "",
        status: int = 200,
    ) -> Response:
        topic = self.settings.written_topic or ", ".join(self.settings.read_topics)
        text = frame(title, request.url.path, content, live_s=live_s, topic=topic, query=query)
        return HTMLResponse(text, status)

    async def _problem(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            status, text = error.status_code, str(error.detail)
        else:
            status, text = (404 if isinstance(error, NotFound) else 503), str(error)
        title = {404: "Not found", 503: "Not reachable"}.get(status, "Not possible")
        # What was to be seen may come (back). What was to be done is not asked for again, and its answer stays.
        live_s = EVERY_S if request.method == "GET" else 0.0
        return self._page(request, title, [h("p", text)], live_s=live_s, status=status)

    async def _fault(self, request: Request, error: Exception) -> Response:
        content = [h("p", "This is a fault of the console. Its log has the traceback."), code(type(error).__name__)]
        return self._page(request, "Fault", content, status=500)


def _until_judged(scopes: Sequence[ScopeRecords]) -> float:
    return 0.0 if all(scope.complete for scope in scopes) else LIVE_S


def _whole(request: Request, name: str) -> int | None:
    return _number(request.query_params.get(name, ""))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _first(request: Request) -> int:
    """The number of the first row that is shown."""
    return _whole(request, "first") or 0


async def _body(request: Request) -> bytes:
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > MOST_BODY:
            raise HTTPException(413, "The form is too large.")
    return found
