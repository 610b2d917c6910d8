"""``medsynx site ledger``, ``acknowledge`` and ``backup``: the site's books, for its privacy officer and its IT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medsynx.errors import MedsynxError

Folder = Annotated[Path, typer.Option("--dir", help="The site's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")]


def ledger(
    dir: Folder,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="Draw spending over time against the limit into this SVG.")] = None,
) -> None:
    """Show what each data set's patients have spent, after the hash chain was verified."""
    from rich.console import Console
    from rich.table import Table

    from site_agent import books
    from site_agent.policy import SiteFolder

    folder = SiteFolder(dir)
    found = books.summary(folder)
    if plot is not None:
        if plot.suffix.lower() != ".svg":
            raise MedsynxError("request-invalid", "the chart is an SVG", hint="Give a name that ends in .svg.")
        books.plot(folder, plot)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, value in found["spent"].items():
        left = max(0.0, found["limit"] - value)
        typer.echo(
            f"{name}: epsilon {value:.3g} of {found['limit']:g} spent, {left:.3g} left, delta {found['delta']:g}"
        )
    table = Table("began", "data set", "study", "run", "steps charged", "handed over", "epsilon")
    for r in found["runs"]:
        steps = str(r["charged"]), str(r["handed_over"])
        table.add_row(r["began"][:10], r["dataset"], r["study"][:12], r["run"], *steps, f"{r['epsilon']:.3g}")
    if found["runs"]:
        Console().print(table)
    for warning in found["warnings"]:
        typer.secho(f"warning: {warning}", fg="red", err=True)


def acknowledge(
    dir: Folder,
    by: Annotated[str | None, typer.Option(help="Who acknowledges; the user of this machine when omitted.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Privacy officer: go on after the ledger or the audit log was restored, or the clock was put right.

    What only the witness still holds is charged again. What neither holds is not known to anybody: take it off `epsilon_lifetime` yourself. Secure
    sums that are under way are given up: a restored one may be older than what this site has answered.
    """
    from site_agent.audit import Audit
    from site_agent.books import warnings
    from site_agent.ledger import Ledger
    from site_agent.policy import SiteFolder, check_approver, me
    from site_agent.secure_sum import SecureSums

    folder = SiteFolder(dir)
    check_approver(folder.policy(), by or me())
    book, log = Ledger(dir / "ledger.sqlite"), Audit(dir / "audit.sqlite")
    for warning in warnings(book, book.chain.entries()):
        typer.echo(f"  {warning}")
    if not yes:
        typer.confirm("Go on with these books?", abort=True)
    typer.echo(f"secure sums given up: {SecureSums(folder, log).close()}")
    for what, chain in (("ledger", book.chain), ("audit log", log.chain)):
        if not chain.witness.rows()[1]:
            typer.echo(f"  the witness of the {what} is damaged or absent: what only it held may be lost", err=True)
        typer.echo(f"{what}: {chain.acknowledge(by or me())} entries recovered from the witness")


def backup(
    dir: Folder, file: Annotated[Path, typer.Argument(help="Written with mode 0600: it holds the site's keys.")]
) -> None:
    """Copy policy, keys, approvals and books into one tar file. Restore: unpack it into the folder, then `medsynx site acknowledge`.

    Not in it: the witness, which says how old a restored ledger is; half-done runs and secure sums, which must not come back; the vault.
    """
    from site_agent.backup import write_backup

    typer.echo(
        f"{write_backup(dir, file)} files in {file}; it holds the site's keys: keep it where only its officer can read it"
    )
