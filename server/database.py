"""One engine an app, one session a request."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel, create_engine

from server.folder import ServerFolder


def open_database(folder: ServerFolder) -> Engine:
    """The folder's engine, tables made when absent. Raises ``server-not-initialised``."""
    import server.auth.models
    import server.enrolment.models
    import server.generators.models
    import server.runs.models
    import server.users.models  # noqa: F401  # registers the tables

    folder.secret()
    engine = create_engine(f"sqlite:///{folder.database}", connect_args={"check_same_thread": False, "timeout": 30})
    SQLModel.metadata.create_all(engine)
    return engine


def _session(request: Request) -> Iterator[Session]:
    with Session(request.app.state.engine) as session:
        yield session


#: given back before the answer is sent: a download that stalls holds none
Db = Annotated[Session, Depends(_session, scope="function")]


def now() -> datetime:
    """The present in UTC; SQLModel keeps and returns times with their zone."""
    return datetime.now(UTC)
