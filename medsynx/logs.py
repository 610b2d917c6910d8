"""Logs without patients: of an exception its type and places are written, never its message, which may quote a cell. Text or JSON lines.

A :class:`~medsynx.errors.MedsynxError` is written whole: its sentences name columns, files and counts only. What came from outside may hold control
characters that move a terminal's cursor: they are written as ``?``.
"""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

VARIABLE = "MEDSYNX_LOG"  #: ``json`` for one JSON object a line, else text


def printable(text: str) -> str:
    """One line for a terminal: control, bidirectional and other characters that show nothing become ``?``."""
    return "".join(c if c.isprintable() else "?" for c in text)


class _Text(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """On one line."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, info: Any) -> str:
        """Type and places."""
        kind, _, trace = info
        return "\n".join([f"{kind.__module__}.{kind.__name__}", *(f"  at {place}" for place in _places(trace))])


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One object: at, level, logger, message, and for an exception its type and places."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "at": at,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        if record.exc_info and record.exc_info[0]:
            kind, _, trace = record.exc_info
            line |= {"error": f"{kind.__module__}.{kind.__name__}", "places": _places(trace)}
        return json.dumps(line, ensure_ascii=False)


def start(stream: TextIO, level: int = logging.INFO) -> None:
    """Send every log of this process to ``stream``, in the form the environment asks for."""
    handler = logging.StreamHandler(stream)
    as_json = os.environ.get(VARIABLE, "").lower() == "json"
    handler.setFormatter(_Json() if as_json else _Text("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def _places(trace: Any) -> list[str]:
    """Where an exception passed, innermost last; no line of code, for it may hold a constant that was typed in."""
    return [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(trace)]
