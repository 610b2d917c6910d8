"""Requests and replies as Flower records: arrays as an ArrayRecord, the rest as one JSON string. No pickle on the wire.

flwr is imported inside the functions: this module belongs to the shared language and must stay light.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsynx.errors import CODES
from medsynx.generators.base import Arrays, State
from medsynx.wire import Reply, Request

if TYPE_CHECKING:
    from flwr.app import RecordDict

ACTION = "query.step"  #: the one message type of a run


def app_folder() -> Path:
    """The stub app whose FAB both sides build and compare."""
    return Path(str(files("medsynx").joinpath("fab")))


def request_to_records(request: Request) -> RecordDict:
    """A request as records."""
    body = {"run": request.run, "study": request.study_digest, "step": request.step, "facts": request.state.facts}
    if request.exchange:
        body |= {"exchange": request.exchange, "message": request.message}
    return _records(body, request.state.arrays)


def request_from_records(records: RecordDict) -> Request:
    """Inverse of :func:`request_to_records`. Raises ValueError, KeyError or TypeError for anything else."""
    body, arrays = _plain(records)
    state, exchange = State(arrays, dict(body["facts"])), str(body.get("exchange", ""))
    return Request(
        str(body["run"]), str(body["study"]), str(body["step"]), state, exchange, dict(body.get("message", {}))
    )


def reply_to_records(reply: Reply) -> RecordDict:
    """A reply as records."""
    body = {"refusal": reply.refusal, "private": reply.private, "message": reply.message, "answers": reply.answers}
    return _records(body, reply.arrays)


def reply_from_records(records: RecordDict) -> Reply:
    """Inverse of :func:`reply_to_records`. A reply that does not say it is private is not."""
    body, arrays = _plain(records)
    refusal = body.get("refusal")
    message = dict(body.get("message", {}))
    known = (
        refusal if refusal is None or refusal in CODES else "reply-invalid"
    )  # what is recorded is a code of ours, never a site's words
    return Reply(arrays, known, body.get("private") is True, message, str(body.get("answers", "")))


def _records(body: dict[str, Any], arrays: Arrays) -> RecordDict:
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    return RecordDict(
        {
            "arrays": ArrayRecord({n: Array(a) for n, a in arrays.items()}),
            "body": ConfigRecord({"json": json.dumps(body)}),
        }
    )


def _plain(records: RecordDict) -> tuple[dict[str, Any], Arrays]:
    body = json.loads(str(records["body"]["json"]))
    if not isinstance(body, dict):
        raise ValueError("not a message of a run")
    return body, {n: a.numpy() for n, a in records.array_records["arrays"].items()}
