"""``medsynx site``: what hospital IT and the privacy officer do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medsynx.errors import MedsynxError
from site_agent import approvals_cli, books_cli, membership_cli, vault_cli
from site_agent.approvals_cli import By, StudyOrDigest

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(vault_cli.ingest)
for command in (
    approvals_cli.studies,
    approvals_cli.refuse,
    membership_cli.enrol,
    membership_cli.preflight,
    membership_cli.run,
    membership_cli.health,
    membership_cli.identity,
    membership_cli.roster,
    membership_cli.rotate,
    membership_cli.leave,
    books_cli.ledger,
    books_cli.acknowledge,
    books_cli.backup,
):
    app.command()(command)
app.add_typer(vault_cli.app, name="datasets")
app.command(hidden=True)(vault_cli.show)  # the short forms of `datasets show` and `datasets forget`
app.command(hidden=True)(vault_cli.forget)
Folder = Annotated[Path, typer.Option("--dir", help="The site's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")]


@app.command()
def init(
    dir: Folder,
    name: Annotated[str, typer.Option(help="The site's name: lower case letters, digits, dashes.")],
    table: Annotated[
        Path | None,
        typer.Option(help="A table (CSV, Parquet) or labelled images (NPZ) to register as data set `table`."),
    ] = None,
    approver: Annotated[
        list[str] | None,
        typer.Option(help="Who may approve studies; repeat it. The user of this machine when omitted."),
    ] = None,
) -> None:
    """Make a site folder with a strict policy (`site.yaml`), a secret key and an empty ledger."""
    from pydantic import ValidationError

    from medsynx.tables import read_table
    from site_agent.images import read_images
    from site_agent.policy import Dataset, Limits, SiteFolder, SitePolicy

    if table:
        (read_images if table.suffix == ".npz" else read_table)(table)
    try:
        datasets = {"table": Dataset(path=table.resolve())} if table else {}
        policy = SitePolicy(site=name, datasets=datasets, limits=Limits(approvers=tuple(approver or ())))
    except ValidationError:
        raise MedsynxError(
            "policy-refused", f"{name!r} is not a site name", hint="Use lower case letters, digits and dashes."
        ) from None
    SiteFolder.create(dir, policy)
    typer.echo(f"site {name} set up in {dir}; read and edit {dir / 'site.yaml'} before you approve a study")


@app.command()
def check(
    dir: Folder,
    study: Annotated[Path, typer.Argument(help="Study manifest.")],
    dataset: Annotated[str, typer.Option(help="A data set of site.yaml.")] = "table",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse unknown columns and levels.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read the data set by the study's dictionary and show what would be clipped, unseen, missing or left out. Sends nothing.

    The study waits for the privacy officer afterwards, who finds it with `medsynx site studies`.
    """
    from medsynx.draft import refuse_marks
    from medsynx.progress import on_screen
    from medsynx.study import load_study
    from site_agent.approvals import pending
    from site_agent.datasets import load_dataset
    from site_agent.policy import SiteFolder, check_policy
    from site_agent.quality import examine, lines
    from site_agent.traffic import run_bytes

    folder, manifest = SiteFolder(dir), load_study(study)
    refuse_marks(study)
    policy = folder.policy()
    check_policy(policy, manifest, dataset, folder.sites)
    with on_screen():
        table = load_dataset(folder, dataset, manifest, strict=strict)
    table.require(policy.limits.minimum_patients)
    held = folder.decisions.find(manifest.digest)
    if held is None or held[0].status == "pending":
        folder.decisions.keep(manifest.digest, pending(manifest, dataset))
    planned, spoken = run_bytes(manifest, folder.sites)
    found = {**examine(table, manifest), "planned_bytes": planned, "message_bytes": spoken}
    typer.echo(json.dumps(found) if as_json else "\n".join([*lines(found), f"a run sends up to {planned:,} bytes"]))


@app.command()
def approve(
    dir: Folder,
    study: StudyOrDigest,
    dataset: Annotated[str | None, typer.Option(help="A data set of site.yaml.  [default: table]")] = None,
    expires: Annotated[str, typer.Option(help="Days (90), hours (24h) or a date: when the approval ends.")] = "365",
    by: By = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Privacy officer: approve exactly this study, by its digest, for one data set, until a date."""
    from evaluation.programme import priced_plan
    from medsynx.draft import refuse_marks
    from medsynx.privacy import guarantees
    from medsynx.until import until
    from site_agent.policy import SiteFolder

    folder, end = SiteFolder(dir), until(expires)
    digest, manifest = approvals_cli.resolve(folder, study)
    if manifest is None:
        raise MedsynxError("study-unreadable", f"the manifest of {digest[:16]} was never seen here: give its file")
    if Path(study).exists():
        refuse_marks(Path(study))
    held = folder.decisions.find(digest)
    dataset = dataset or (held[0].dataset if held else None) or "table"
    plan = priced_plan(manifest)
    typer.echo(f"{manifest.name}  {digest}")
    for s in plan.steps:
        what = s.step.leaves_as(manifest.privacy.trust)
        typer.echo(
            f"  {s.step.name}: {s.step.size:,} numbers of {s.step.part} patients leave as {what}, noise x{s.noise_multiplier:.3g}"
        )
    for g in guarantees(manifest.privacy, manifest.rounds.quorum, plan):
        typer.echo(f"  epsilon {g.epsilon:.3g} against the {g.adversary}, delta {g.delta:g}, per {g.unit}")
    typer.echo(f"  data set {dataset}, until {end:%Y-%m-%d %H:%M} UTC")
    if held and held[0].status == "refused":
        typer.echo(f"  it was refused on {held[0].at:%Y-%m-%d} by {held[0].by}: {held[0].reason}")
    if not yes:
        typer.confirm("Approve this study?", abort=True)
    folder.approve(manifest, dataset, by=by, expires=end)
    typer.echo("approved")


@app.command()
def audit(dir: Folder, as_json: AsJson = False) -> None:
    """Show everything that left this site or was refused, after the hash chain was verified."""
    from medsynx.logs import printable
    from site_agent.audit import Audit

    entries = Audit(dir / "audit.sqlite").chain.entries()
    if as_json:
        typer.echo(json.dumps(entries))
        return
    for e in entries:
        left = {e["exchange"]: e} if e["kind"] == "message" else e.get("arrays", {})
        decided = f"by {e['by']} until {(e['expires_at'] or '')[:10]} {e['reason']}" if "by" in e else ""
        what = (
            e.get("code")
            or decided
            or ", ".join(f"{n}: {a['bytes']:,} bytes, sha256 {a['sha256'][:12]}" for n, a in left.items())
        )
        typer.echo(printable(f"{e['at'][:19]}  {e['kind']}  {e['run'] or e['study'][:12]}  {e['step']}  {what}"))
