"""``medsynx server federation``, ``invite`` and ``site``: who takes part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

Dir = Annotated[Path, typer.Option("--dir", help="The server's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")]
Expires = Annotated[str, typer.Option(help="Minutes (30m), hours (24h), days (7) or a date: how long the token works.")]
Name = Annotated[str, typer.Argument(help="The site's name.")]
invite_app = typer.Typer(no_args_is_help=True, help="Invite hospitals.")
site_app = typer.Typer(no_args_is_help=True, help="List, revoke and renew enrolled hospitals.")


def federation(
    dir: Dir,
    url: Annotated[str, typer.Option(help="https://HOST:PORT as hospitals reach it.")],
    ca: Annotated[Path, typer.Option(help="Certificate authority of the certificate shown there (PEM).")],
) -> None:
    """Say where hospitals reach the federation; every invitation repeats it."""
    from server.enrolment import service
    from server.folder import ServerFolder

    typer.echo(f"CA fingerprint {service.set_address(ServerFolder(dir), url, ca)}")


@invite_app.command("create")
def invite_create(
    dir: Dir,
    site: Annotated[str, typer.Option(help="The site's name: lower case letters, digits, dashes.")],
    expires: Expires = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a one-time token for a hospital; it is shown this once."""
    _invite(dir, site, expires, as_json, renews=False)


@site_app.command("list")
def site_list(dir: Dir, as_json: AsJson = False) -> None:
    """Show every site and its state, and invitations that are open."""
    from medsynx.membership import decode, fingerprint
    from server.cli import open_db
    from server.enrolment import service

    with open_db(dir) as db:
        sites = [m.model_dump(mode="json") for m in service.members(db)]
        open_ = [{"site": i.site, "expires_at": i.expires_at.isoformat()} for i in service.invited(db)]
    if as_json:
        typer.echo(json.dumps({"sites": sites, "invited": open_}, indent=1))
        return
    for s in sites:
        identity = fingerprint(decode(s["identity"]))  # as sites show it to each other
        typer.echo(f"{s['site']}  {s['status']}  since {s['changed_at'][:16]}  identity {identity}")
    for i in open_:
        typer.echo(f"{i['site']}  invited  until {i['expires_at'][:16]}")


@site_app.command("revoke")
def site_revoke(dir: Dir, site: Name) -> None:
    """End a site's part: its key opens nothing from the next look at this list on. Other sites notice nothing."""
    from server.cli import open_db
    from server.enrolment import service

    with open_db(dir) as db:
        service.revoke(db, site)
    typer.echo(f"revoked {site}; to bring it back, invite it again")


@site_app.command("rotate")
def site_rotate(dir: Dir, site: Name, expires: Expires = "24h", as_json: AsJson = False) -> None:
    """Invite an enrolled site to enrol anew: its present keys hold until it does."""
    _invite(dir, site, expires, as_json, renews=True)


def _invite(dir: Path, site: str, expires: str, as_json: bool, *, renews: bool) -> None:
    from medsynx.until import until
    from server.cli import open_db
    from server.enrolment import service
    from server.folder import ServerFolder

    end, (url, _, fingerprint) = until(expires), service.address(ServerFolder(dir))
    with open_db(dir) as db:
        token = service.invite(db, site, end, renews=renews)
    if as_json:
        told = {"site": site, "token": token, "expires_at": end.isoformat(), "url": url, "ca_fingerprint": fingerprint}
        typer.echo(json.dumps(told))
        return
    typer.echo(f"token (shown once, works once, until {end:%Y-%m-%d %H:%M} UTC): {token}")
    typer.echo("Send it to the hospital, and tell the fingerprint by another way, for example the telephone:")
    typer.echo(f"  medsynx site enrol {url} --token-file TOKEN --ca-fingerprint {fingerprint} --dir SITE")
