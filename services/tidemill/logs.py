"""Logs: one JSON object a line, whatever is in it."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Collection

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

#: From which level on libraries are logged that log each of their steps as INFO; Faust's timers warn of each half a
#: second that they were late, which the batch times show.
CHATTY = dict.fromkeys(("aiokafka", "asyncio", "faust", "mode", "uvicorn"), logging.WARNING) | {
    "mode.timers": logging.ERROR
}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, service, message, and what was given as `extra`.

    `others` are the services of a process of several, each in a thread of its name: a line is of the one whose thread
    or module logs it, else of `service`.
    """

    def __init__(self, service: str, others: Collection[str] = ()) -> None:
        super().__init__()
        self.service, self.others = service, others

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = time.gmtime(record.created)
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service(record),
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)

    def _service(self, record: logging.LogRecord) -> str:
        if record.threadName in self.others:
            return record.threadName or self.service
        return next((part for part in str(record.name).split(".") if part in self.others), self.service)


def setup(service: str, level: str) -> None:
    """Send all logs to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    send_to(handler, level)


def send_to(handler: logging.Handler, level: str) -> None:
    """Send all logs to this handler."""
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    if level == "INFO":
        for library, least in CHATTY.items():
            logging.getLogger(library).setLevel(least)
