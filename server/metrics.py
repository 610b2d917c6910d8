"""``/metrics`` in Prometheus' text format: sums over what the API lists anyway, for a token of this scope or a coordinator. No patient, no person."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from sqlmodel import select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsynx import __version__
from server.auth.principal import Watcher
from server.database import Db
from server.generators.models import Generator
from server.problems import RESPONSES
from server.runs.models import Run

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
TYPE = "text/plain; version=0.0.4; charset=utf-8"
router = APIRouter(prefix="/metrics", tags=["health"], responses=RESPONSES)


class Answered:
    """Counts answers by method and class of status (``2xx``), as ASGI middleware; ``counts`` is the application's."""

    def __init__(self, app: ASGIApp, counts: Counter[tuple[str, str]]) -> None:
        self.app, self.counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; count the start of each answer."""

        method = str(scope["method"]) if scope.get("method") in METHODS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.counts[method, f"{message['status'] // 100}xx"] += 1
            await send(message)

        try:
            await self.app(scope, receive, counted if scope["type"] == "http" else send)
        except Exception:  # answered further out
            self.counts[method, "5xx"] += 1
            raise


@router.get("", summary="Figures for Prometheus", response_class=PlainTextResponse)
def metrics(who: Watcher, db: Db, request: Request) -> PlainTextResponse:
    """Answers since the start, generators and runs by state, sites of the latest run by state."""
    state = request.app.state
    generators = Counter(str(s) for s in db.exec(select(Generator.status)).all())
    runs = db.exec(select(Run)).all()
    latest = max(runs, key=lambda r: r.updated_at, default=None)
    sites = Counter(s["status"] for s in latest.sites) if latest else Counter[str]()
    text = [
        *_lines("medsynx_info", "gauge", "Release.", {(("version", __version__),): 1}),
        *_lines("medsynx_up_seconds", "gauge", "Since the start.", {(): round(time.monotonic() - state.began, 1)}),
        *_lines(
            "medsynx_http_answers_total",
            "counter",
            "Answers of the API.",
            {(("method", m), ("status", s)): n for (m, s), n in sorted(state.answered.items())},
        ),
        *_by_state("medsynx_generators", "Registered generators.", generators),
        *_by_state("medsynx_runs", "Runs.", Counter(r.status for r in runs)),
        *_by_state("medsynx_latest_run_sites", "Sites of the run last heard of.", sites),
    ]
    return PlainTextResponse("\n".join(text) + "\n", media_type=TYPE)


def _by_state(name: str, what: str, counts: Counter[str]) -> Iterator[str]:
    return _lines(name, "gauge", what, {(("state", s),): n for s, n in sorted(counts.items())})


def _lines(name: str, kind: str, what: str, values: dict[tuple[tuple[str, str], ...], float]) -> Iterator[str]:
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        shown = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels)
        yield f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
