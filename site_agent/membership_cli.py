"""``medsynx site`` commands of a site in a federation: enrol, identity, roster, rotate, leave, preflight, run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medsynx.errors import CODES, MedsynxError

Folder = Annotated[Path, typer.Option("--dir", help="The site's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def enrol(
    dir: Folder,
    url: Annotated[str, typer.Argument(help="The coordinator's https://HOST:PORT.")],
    token_file: Annotated[Path, typer.Option(help="File with the one-time token.")],
    ca_fingerprint: Annotated[
        str, typer.Option(help="SHA-256 of the server's CA, told by another way than the token.")
    ],
) -> None:
    """Join a federation: keys are made here, their public halves registered. One outbound port; nothing listens."""
    from medsynx.membership import fingerprint
    from site_agent.enrolment import enrol
    from site_agent.identity import public_identity
    from site_agent.policy import SiteFolder

    try:
        token = token_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise MedsynxError("invite-invalid", f"{token_file} cannot be read") from None
    told = enrol(SiteFolder(dir), url, token, ca_fingerprint)
    others = ", ".join(s for s in told.roster if s != told.site) or "none"
    typer.echo(f"site {told.site} is enrolled ({told.site_id}); others so far: {others}")
    typer.echo(f"identity {fingerprint(public_identity(dir))}")


def identity(dir: Folder) -> None:
    """Print this site's public identity, a line of the roster, for whoever collects the roster."""
    from medsynx.membership import encode
    from site_agent.identity import public_identity
    from site_agent.policy import SiteFolder

    typer.echo(json.dumps({SiteFolder(dir).policy().site: encode(public_identity(dir))}))


def roster(
    dir: Folder,
    file: Annotated[Path | None, typer.Argument(help="JSON object: site -> public identity, one entry a site.")] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Ask the coordinator for it in place of a file.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; with a file only.")] = False,
) -> None:
    """Install the roster: the sites whose vectors may be summed with this one's. Compare the keys with the sites over the telephone first.

    Studies of trust mode `secure-sum` are approved under one roster; after a change they must be approved again.
    """
    from medsynx.membership import fingerprint
    from site_agent.enrolment import compared, fetch_roster
    from site_agent.identity import ROSTER, public_identity, read_roster, write_roster
    from site_agent.policy import SiteFolder

    if (file is None) != fetch:
        raise typer.BadParameter("give a file, or --fetch")
    if fetch and yes:  # the coordinator could put itself between the sites
        raise MedsynxError(
            "request-invalid",
            "what the coordinator tells is installed only after a person has compared the keys",
            hint="Leave out --yes, or give a file of the lines that each site's `medsynx site identity` prints.",
        )
    folder = SiteFolder(dir)
    keys, mine = read_roster(file) if file else fetch_roster(folder), folder.policy().site
    if keys.get(mine) != public_identity(dir):
        hint = "Put the line that `medsynx site identity` prints here into it, and have it sent to every site anew."
        raise MedsynxError(
            "roster-mismatch", f"{file or 'the roster'} does not hold this site's own identity", hint=hint
        )
    before = read_roster(dir / ROSTER) if (dir / ROSTER).exists() else {}
    for site, mark in compared(keys, before).items():
        typer.echo(f"  {site}  {fingerprint(keys.get(site) or before[site])}  {mark}".rstrip())
    if not yes:
        typer.confirm("Are these the right sites and keys?", abort=True)
    write_roster(dir, keys)
    typer.echo(f"roster of {len(keys)} sites installed")


def rotate(dir: Folder, yes: Yes = False) -> None:
    """New keys for this site, signed for by the old identity. Rosters that name it, and approvals under them, must be renewed."""
    from medsynx.membership import fingerprint
    from site_agent.enrolment import rotate
    from site_agent.identity import public_identity
    from site_agent.policy import SiteFolder

    if not yes:
        typer.confirm("Replace this site's keys?", abort=True)
    rotate(SiteFolder(dir))
    typer.echo(f"new identity {fingerprint(public_identity(dir))}; tell the other sites, and install the new roster")


def leave(dir: Folder, yes: Yes = False) -> None:
    """Leave the federation: this site accepts nothing more, and the coordinator shuts its key out."""
    from site_agent.enrolment import leave
    from site_agent.policy import SiteFolder

    if not yes:
        typer.confirm("Leave the federation?", abort=True)
    leave(SiteFolder(dir))
    typer.echo("left; ledger, audit log and approvals stay in the folder")


def preflight(
    dir: Folder,
    url: Annotated[str | None, typer.Option(help="Before enrolment: the coordinator's https://HOST:PORT.")] = None,
    ca_fingerprint: Annotated[str | None, typer.Option(help="Before enrolment: SHA-256 of the server's CA.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look for what could keep this site from taking part. Sends nothing of the site.

    Exit status: 0, or that of the first problem: 210 keys, 211 disk, 212 proxy, 213 DNS, 214 port, 215 TLS interception or wrong CA, 216 clock,
    217 version, 218 server.
    """
    from site_agent import preflight as pf
    from site_agent.policy import SiteFolder

    SiteFolder(dir).policy()
    found = pf.preflight(pf.Bench.of(dir, url, ca_fingerprint))
    if as_json:
        rows = [{"check": f.check, "code": f.code, "says": f.says, "remedy": f.remedy} for f in found]
        typer.echo(json.dumps(rows, indent=1))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table("check", "problem", "", "remedy")
        for f in found:
            table.add_row(f.check, f.code or "", f.says, f.remedy)
        Console().print(table)
    if problem := next((f.code for f in found if f.code and f.problem), None):
        raise typer.Exit(CODES[problem][0])


def run(dir: Folder) -> None:
    """Take part: start this site's agent and keep it running until Ctrl-C or SIGTERM. For systemd and containers."""
    import contextlib
    import logging
    import sys

    from medsynx import logs
    from medsynx.processes import end_when_killed
    from site_agent.policy import SiteFolder
    from site_agent.run import run

    logs.start(sys.stdout)
    end_when_killed()
    with contextlib.suppress(KeyboardInterrupt):
        run(SiteFolder(dir), logging.getLogger("medsynx.site").info)


def health(dir: Folder, as_json: AsJson = False) -> None:
    """Say whether this site's agent runs, all of it, and how its books are; for health checks of containers and monitoring.

    Shows when it last answered, what it last refused, and which approvals end within 14 days. Not well: 220 (agent) or 35 (ledger or audit log).
    """
    from site_agent.condition import Condition
    from site_agent.policy import SiteFolder
    from site_agent.pulse import check

    folder = SiteFolder(dir)
    folder.policy()
    found, problem = Condition.of(folder), None
    try:
        check(dir)
    except MedsynxError as down:
        problem = down
    problem = problem or found.trouble
    if as_json:
        code, says = (problem.code, problem.message) if problem else (None, None)
        typer.echo(json.dumps({"problem": code, "says": says, **found.json()}))
        raise typer.Exit(problem.exit_status if problem else 0)
    typer.echo("\n".join(found.lines()))
    if problem:
        raise problem
    typer.echo("the agent runs")
