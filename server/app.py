"""The FastAPI application."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

import server.auth.routes
import server.enrolment.routes
import server.generators.routes
import server.reports.routes
import server.runs.routes
import server.samples.routes
import server.sites.routes
import server.users.routes
from medsynx import __version__
from server import bodies, metrics, problems
from server.database import open_database
from server.folder import ServerFolder

ROOMS = (
    server.auth,
    server.users,
    server.enrolment,
    server.generators,
    server.samples,
    server.reports,
    server.runs,
    server.sites,
)


def create_app(path: Path) -> FastAPI:
    """The API over one server folder. Raises ``server-not-initialised``."""
    folder = ServerFolder(path)
    app = FastAPIOffline(  # whose page /docs loads nothing from elsewhere
        redoc_url=None,
        title="MedSynX",
        version=__version__,
        description="Synthetic patients, published together by hospitals that never pool real ones. Errors are RFC 9457 problems.",
    )
    app.state.folder, app.state.engine = folder, open_database(folder)
    app.state.began, app.state.answered = time.monotonic(), Counter()
    app.add_middleware(bodies.Bounded)
    app.add_middleware(metrics.Answered, counts=app.state.answered)
    app.state.limiter = server.auth.routes.limiter
    server.auth.routes.limiter.reset()
    problems.install(app)
    for room in ROOMS:
        app.include_router(room.routes.router)
    app.include_router(metrics.router)

    @app.get("/health", tags=["health"], summary="Is the server up")
    def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    return app
