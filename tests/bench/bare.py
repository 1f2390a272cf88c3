"""The bare ASGI application: reads the body, answers with as many bytes as the base role, and does nothing else.

It is served by the runtime's own gunicorn worker with the runtime's settings, so the difference to a role is that
role's edge and handler. ``BARE_WORKER=stock`` serves it with gunicorn's ``asgi`` worker as it comes.
"""

import asyncio
import os
from typing import Any

from gunicorn.workers.gasgi import ASGIWorker  # type: ignore[import-untyped]

from hiveio import logs
from hiveio.config import Settings
from hiveio.server.http1 import Http1Connection
from hiveio.server.process import Application, Master
from hiveio.server.worker import BACKLOG, Worker, settle_memory

BODY = b'{"type":"Fee","payload":{"amount":10000,"fee":50}}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["method"] == "POST":
        while (await receive()).get("more_body"):
            pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


class BareWorker(Worker):
    async def _serve(self) -> None:
        self.asgi: Any = application
        beat = asyncio.create_task(self._beat())
        for listener in self.sockets:
            self.servers.append(
                await self.loop.create_server(lambda: Http1Connection(self), sock=listener.sock, backlog=BACKLOG)
            )
        settle_memory()
        await self._end.wait()
        beat.cancel()
        for connection in list(self.connections):
            connection.close()


class BareApplication(Application):
    def load_config(self) -> None:
        super().load_config()
        self.cfg.set("worker_class", ASGIWorker if os.environ.get("BARE_WORKER") == "stock" else BareWorker)

    def load(self) -> Any:
        return application


if __name__ == "__main__":
    logs.configure()
    Master(BareApplication(Settings.read(), [], lambda service: [])).run()
