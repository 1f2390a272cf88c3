"""Logs: one JSON object a line on stdout, with the id of the request; readable text where stdout is a terminal."""

import logging
import sys
import time
from contextvars import ContextVar
from typing import Any

import msgspec

from hiveio.outages import worth_a_line

request_id: ContextVar[str] = ContextVar("request_id", default="")

_encoder = msgspec.json.Encoder(enc_hook=repr)
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields that a call gave as ``extra=``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", "pid", "request_id"?, "traceback"?, …extra}``"""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if request := request_id.get():
            line["request_id"] = request
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        line |= _fields(record)
        try:
            return _encoder.encode(line).decode()
        except (UnicodeEncodeError, RecursionError, TypeError):
            # A log line never raises: what cannot be encoded (a lone surrogate, say) is shown escaped.
            return _encoder.encode({name: ascii(value) for name, value in line.items()}).decode()


class TextFormatter(logging.Formatter):
    """For people: ``12:00:01 info    hiveio: listening port=3000``"""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        extra = "".join(f" {name}={value}" for name, value in _fields(record).items())
        request = f" [{request_id.get()}]" if request_id.get() else ""
        text = f"{clock} {record.levelname.lower():7} {record.name}:{request} {record.getMessage()}{extra}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure() -> None:
    """Send every log record of the process, and Python's warnings, to stdout. Called once, at the start."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(worth_a_line)
    handler.setFormatter(TextFormatter() if sys.stdout.isatty() else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a full or closed stdout costs log lines, not requests
