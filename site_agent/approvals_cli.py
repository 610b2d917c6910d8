"""``medsynx site studies`` and ``refuse``: what the privacy officer has decided and has yet to decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsynx.errors import MedsynxError

if TYPE_CHECKING:
    from medsynx.study import Study
    from site_agent.policy import SiteFolder

Folder = Annotated[Path, typer.Option("--dir", help="The site's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")]
By = Annotated[str | None, typer.Option("--by", help="Who decides; the user of this machine when omitted.")]
StudyOrDigest = Annotated[str, typer.Argument(help="Study manifest, or (the beginning of) the digest of a study.")]


def studies(dir: Folder, as_json: AsJson = False) -> None:
    """List the studies: pending, approved, refused or expired, and what each would spend and send. Verifies the audit log."""
    from site_agent.policy import SiteFolder

    found = listing(SiteFolder(dir))
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    from medsynx.logs import printable

    for f in found:
        what = (
            "" if f["name"] is None else f"{f['name']}  {f['family']}, epsilon {f['epsilon']:g}, {f['bytes']:,} bytes"
        )
        until = f"until {f['expires_at'][:10]}" if f["expires_at"] else ""
        by = f"by {f['by']}" if f["by"] else ""
        parts = (f"{f['state']:8}", f["digest"][:12], what, until, by, f["note"])
        typer.echo(printable("  ".join(part for part in parts if part)))
    if not found:
        typer.echo("no study was checked, approved, refused or asked for at this site")


def refuse(
    dir: Folder,
    study: StudyOrDigest,
    reason: Annotated[str, typer.Option(help="For the audit log; it is not sent.")],
    by: By = None,
) -> None:
    """Privacy officer: refuse a study. It never runs here unless it is approved anew."""
    from site_agent.policy import SiteFolder

    folder = SiteFolder(dir)
    folder.policy()
    digest, manifest = resolve(folder, study)
    folder.refuse(digest, reason, study=manifest, by=by)
    typer.echo(f"refused {digest}")


def listing(folder: SiteFolder) -> list[dict[str, Any]]:
    """Every study this site has heard of, one mapping each; figures are None where only a digest is known."""
    from site_agent.audit import Audit
    from site_agent.traffic import run_bytes

    folder.policy()  # a site at all?
    out = []
    asked = Audit(folder.path / "audit.sqlite").undecided()
    for digest in sorted({*folder.decisions.digests(), *asked}):
        held = folder.decisions.find(digest)
        decision, study = held or (None, None)
        spoilt = held is None and digest in folder.decisions.digests()
        note = decision.reason if decision else "its file is spoilt: decide again" if spoilt else "asked for"
        out.append(
            {
                "digest": digest,
                "state": decision.state() if decision else "pending",
                "name": study.name if study else None,
                "family": study.family.name if study else None,
                "epsilon": study.privacy.epsilon if study else None,
                "bytes": run_bytes(study, folder.sites)[0] if study else None,
                "dataset": decision.dataset if decision else None,
                "by": decision.by if decision else None,
                "at": decision.at.isoformat() if decision else asked.get(digest),
                "expires_at": decision.expires_at.isoformat() if decision and decision.expires_at else None,
                "note": note,
            }
        )
    return out


def resolve(folder: SiteFolder, study: str) -> tuple[str, Study | None]:
    """Digest and manifest of a file, of a study this site has heard of, or of a whole digest it has not (then without manifest).

    Raises:
        MedsynxError: ``study-unreadable`` when it is neither a manifest nor a known digest, and what :func:`load_study` raises.
    """
    from medsynx.study import load_study
    from site_agent.approvals import is_digest
    from site_agent.audit import Audit

    if Path(study).exists():
        manifest = load_study(Path(study))
        return manifest.digest, manifest
    known = {*folder.decisions.digests(), *Audit(folder.path / "audit.sqlite").undecided()}
    fitting = [d for d in known if len(study) >= 8 and d.startswith(study)]
    if len(fitting) == 1:
        held = folder.decisions.find(fitting[0])
        return fitting[0], held[1] if held else None
    if is_digest(study):
        return study, None
    raise MedsynxError(
        "study-unreadable",
        f"{study} is neither a manifest nor the digest of a study of this site",
        hint="Give the manifest's file, or at least 8 characters of a digest that `medsynx site studies` lists.",
    )
