"""``medsynx server``: set up and serve the REST API."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medsynx.errors import MedsynxError
from server import enrolment_cli

if TYPE_CHECKING:
    from sqlmodel import Session

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
user_app = typer.Typer(no_args_is_help=True, help="Manage people.")
token_app = typer.Typer(no_args_is_help=True, help="Manage service tokens.")
app.add_typer(user_app, name="user")
app.add_typer(token_app, name="token")
app.command()(enrolment_cli.federation)
app.add_typer(enrolment_cli.invite_app, name="invite")
app.add_typer(enrolment_cli.site_app, name="site")

Dir = Annotated[Path, typer.Option("--dir", help="The server's folder.")]
Email = Annotated[str, typer.Option(help="E-mail address.")]
PasswordFile = Annotated[
    Path | None, typer.Option(help="File with the password; without it one is made and shown once.")
]


@app.command()
def init(dir: Dir, email: Email, password_file: PasswordFile = None) -> None:
    """Make a server folder with its first administrator."""
    from server.folder import ServerFolder
    from server.users import service
    from server.users.models import Role

    password = _password(password_file)
    service.check_new(email, password)  # a folder without an administrator could not be made anew
    ServerFolder(dir).create()
    _add(dir, email, password, Role.ADMIN, shown=password_file is None)


@user_app.command("add")
def user_add(
    dir: Dir,
    email: Email,
    role: Annotated[str, typer.Option(help="admin, coordinator or researcher.")],
    password_file: PasswordFile = None,
) -> None:
    """Add a person."""
    from server.users.models import Role

    if role not in list(Role):
        raise MedsynxError("request-invalid", f"{role!r} is not one of {', '.join(Role)}")
    _add(dir, email, _password(password_file), Role(role), shown=password_file is None)


@token_app.command("create")
def token_create(
    dir: Dir,
    name: Annotated[str, typer.Option(help="What it is for.")],
    days: Annotated[int, typer.Option(min=1, max=366, help="Valid for so many days.")] = 30,
    scope: Annotated[
        Literal["coordinator", "metrics"], typer.Option(help="What it opens: publishing, or /metrics and nothing else.")
    ] = "coordinator",
) -> None:
    """Make a service token; it is shown this once."""
    from server.auth.service import new_service_token

    with open_db(dir) as db:
        typer.echo(new_service_token(db, name, days, scope))


@app.command()
def trust(dir: Dir, public_key: Annotated[Path, typer.Argument(help="A coordinator's public key (PEM).")]) -> None:
    """Accept bundles signed with this key."""
    from server.auth import service

    with open_db(dir) as db:
        typer.echo(f"trusted {service.trust(db, public_key)}")


@app.command()
def serve(
    dir: Dir,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8400,
    tls_cert: Annotated[Path | None, typer.Option(help="Server certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
) -> None:
    """Serve the API. Without TLS it listens on loopback only."""
    import logging
    import sys

    import uvicorn

    from medsynx import logs
    from medsynx.listening import require_certificate, require_port
    from server.app import create_app

    if (tls_cert is None) != (tls_key is None):
        raise MedsynxError("request-invalid", "--tls-cert and --tls-key are given together or not at all")
    if tls_cert and tls_key:
        require_certificate(tls_cert, tls_key)
    elif host not in ("127.0.0.1", "localhost", "::1"):
        raise MedsynxError("request-invalid", "without --tls-cert the server listens on loopback only")
    logs.start(sys.stderr, logging.WARNING)
    require_port(host, port)
    application = create_app(dir)
    typer.echo(f"MedSynX server on {'https' if tls_cert else 'http'}://{host}:{port} (API description at /docs)")
    uvicorn.run(
        application,
        host=host,
        port=port,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        log_level="warning",
        log_config=None,
    )


@contextmanager
def open_db(dir: Path) -> Iterator[Session]:
    """A session on the folder's database."""
    from sqlmodel import Session

    from server.database import open_database
    from server.folder import ServerFolder

    with Session(open_database(ServerFolder(dir))) as db:
        yield db


def _password(file: Path | None) -> str:
    if file is None:
        return secrets.token_urlsafe(12)
    try:
        return file.read_text("utf-8").strip()
    except OSError:
        raise MedsynxError("request-invalid", f"{file} cannot be read") from None


def _add(dir: Path, email: str, password: str, role: str, *, shown: bool) -> None:
    from server.users import service
    from server.users.models import Role

    with open_db(dir) as db:
        service.add(db, email, password, Role(role))
    typer.echo(f"added {role} {email}" + (f", password (shown once): {password}" if shown else ""))
