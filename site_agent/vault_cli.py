"""``medsynx site ingest`` and ``medsynx site datasets``: what enters the vault, what is in it, and how it leaves."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsynx.errors import MedsynxError

if TYPE_CHECKING:
    from site_agent.deid.keys import SiteKey

Folder = Annotated[Path, typer.Option("--dir", envvar="MEDSYNX_SITE", help="The site's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")]
app = typer.Typer(help="List, show and forget de-identified data sets.")


def ingest(
    src: Annotated[list[Path], typer.Argument(help="Folders, zip archives, DICOMDIRs or files.")],
    dataset: Annotated[str, typer.Option(help="Name of the data set: lower case letters, digits, dashes.")],
    dir: Folder = Path("."),
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe; `recipe.yaml` in the site's folder when omitted.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Files at once.")] = 1,
    as_json: AsJson = False,
) -> None:
    """De-identify files into the site's vault. A run that was stopped goes on where it was; the sources are never changed.

    Exit status: 0 all clean, 80 something was quarantined, 81 something could not be read.
    """
    from site_agent.deid.cli import execute, show
    from site_agent.deid.engine import check
    from site_agent.deid.recipe import load_recipe
    from site_agent.vault import Vault

    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", dataset):
        raise MedsynxError(
            "source-invalid", f"{dataset!r} is not a data set name", hint="Use lower case letters, digits and dashes."
        )
    check(src, dir / "vault")
    key = _key(dir)
    own = dir / "recipe.yaml"
    rules = load_recipe(recipe or (own if own.exists() else None))
    vault = Vault(dir)
    tally = execute(src, vault, dataset, key, rules, jobs)
    show(tally, vault.sign(dataset, key), as_json)


@app.callback(invoke_without_command=True)
def datasets(context: typer.Context, dir: Folder = Path("."), as_json: AsJson = False) -> None:
    """List the data sets of the vault."""
    from site_agent.vault import Vault

    context.obj = dir
    if context.invoked_subcommand:
        return
    _key(dir)
    rows = Vault(dir).catalogue.datasets()
    if as_json:
        names = ("name", "created", "clean", "quarantined", "failed", "patients", "recipe_digest")
        typer.echo(json.dumps([{n: r[n] for n in names} for r in rows]))
        return
    if not rows:
        typer.echo("the vault is empty: run `medsynx site ingest SRC --dataset NAME`")
    for r in rows:
        typer.echo(
            f"{r['name']}: {r['patients']:,} patients, {r['clean']:,} files clean, {r['quarantined']:,} quarantined, "
            f"{r['failed']:,} failed; since {r['created'][:10]}, recipe {r['recipe_digest'][:12]}"
        )


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Data set.")],
    dir: Annotated[Path | None, typer.Option("--dir", help="The site's folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one data set after its report's signature and every file's digest were checked."""
    from site_agent.deid.quarantine import REASONS
    from site_agent.vault import Vault

    site = dir or context.obj or Path(".")
    vault = Vault(site)
    body = vault.verified(name, _key(site))
    if as_json:
        typer.echo(json.dumps(body))
        return
    files = body["files"]
    typer.echo(
        f"{name}: {files['patients']:,} patients, {files['clean']:,} of {files['in']:,} files clean; report valid, {body['at']}"
    )
    for kind, modalities in body["kinds"].items():
        for modality, n in modalities.items():
            typer.echo(f"  {n:,} {kind} {modality}".rstrip())
    for reason, n in body["reasons"].items():
        typer.secho(f"  {n:,} {reason}: {REASONS[reason]}", fg="yellow")
    typer.echo(f"report: {vault.root / 'reports' / name}.html")


@app.command()
def forget(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="A data set, a pseudonym (P-...), or a patient identifier.")],
    dir: Annotated[Path | None, typer.Option("--dir", help="The site's folder.")] = None,
    issuer: Annotated[
        str, typer.Option(help="Issuer of the patient identifier; none and those of the recipes when omitted.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a data set, or withdraw one patient from all of them for good."""
    from site_agent.vault import Vault

    site = dir or context.obj or Path(".")
    key, vault = _key(site), Vault(site)
    if vault.catalogue.dataset(what):
        if not yes:
            typer.confirm(f"Delete data set {what}?", abort=True)
        typer.echo(f"deleted {what}: {vault.forget_dataset(what):,} files")
        return
    named = re.fullmatch(r"P-[0-9A-F]{20}", what)
    patients = [what] if named else [key.pseudonym(i, what) for i in ([issuer] if issuer else vault.issuers())]
    if not yes:
        typer.confirm(f"Withdraw patient {' = '.join(patients)} from every data set?", abort=True)
    touched = Counter[str]()
    for patient in patients:
        touched.update(vault.forget_patient(patient, key))
    for dataset, files in touched.items():
        typer.echo(f"{dataset}: {files:,} files deleted or rewritten, report signed anew")
    if not touched:
        typer.echo(f"no file of {' = '.join(patients)} is in the vault; it will not be let in", err=True)


def _key(site: Path) -> SiteKey:
    from site_agent.deid.keys import SiteKey
    from site_agent.policy import SiteFolder

    return SiteKey(SiteFolder(site).key())
