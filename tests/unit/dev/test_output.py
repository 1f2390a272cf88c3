"""One stream of the lines of all services."""

import io
import json

from rich.console import Console

from hiveio.cli.shown import shown
from hiveio.dev.output import Output


def test_each_line_has_the_name_of_its_service_and_what_it_says() -> None:
    stream = io.StringIO()
    output = Output(Console(file=stream, highlight=False, soft_wrap=True), shown)
    output.know(["items", "board"])
    record = {"time": "2026-11-29T12:00:01.000Z", "level": "info", "logger": "hiveio", "message": "listening", "pid": 7}
    output.said("items", json.dumps({**record, "port": 3001}))
    output.said(
        "board", json.dumps({**record, "level": "error", "message": "a [b] c", "traceback": "Trace\n  at\x1b[2J"})
    )
    output.said("board", "no JSON [/] \x1b[31m")
    output.said("board", '{"level": 5}')
    output.say("items", "restarted in 0.9 s", "green")
    assert stream.getvalue().splitlines() == [
        "items │ 12:00:01 info    listening port=3001",
        "board │ 12:00:01 error   a [b] c",
        "board │ Trace",
        "board │   at\\x1b[2J",
        "board │ no JSON [/] \\x1b[31m",
        'board │ {"level": 5}',
        "items │ restarted in 0.9 s",
    ]
