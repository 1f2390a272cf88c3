"""Serves an ASGI application with uvicorn as its extra "standard" has it: uvloop and httptools, one process, no access
log. The first line on stdout says the port."""

import json
import os
import socket
from typing import Any

import uvicorn

SETTINGS: dict[str, Any] = json.loads(os.environ["SETTINGS"])


def serve(application: Any) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(json.dumps({"level": "info", "message": "listening", "port": listener.getsockname()[1]}), flush=True)
        config = uvicorn.Config(application, loop="uvloop", http="httptools", access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])
