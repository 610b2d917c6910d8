"""A finished run becomes a signed bundle with its report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from evaluation import results
from evaluation.report import render
from medsynx import __version__
from medsynx.bundle import Bundle, fingerprint, read_bundle, write_bundle
from medsynx.errors import MedsynxError
from medsynx.privacy import statement
from medsynx.study import Study
from strategies.rounds import Outcome, rounds_json

SIMULATED = "plain addition in one process: stands in for a secure sum, hides nothing from the operator"
SECURE = "secure sums of masked vectors: the coordinator sees totals, unless more sites than tolerated conspire with it"
UPDATES = "; updates of models are seen one by one, each with the noise of its own training"


def privacy_statement(outcome: Outcome, *, simulated: bool) -> dict[str, Any]:
    """``privacy.json``: both guarantees, every event, and how vectors were really added."""
    study = outcome.study
    plan = outcome.plan if outcome.private else outcome.plan.without_noise()
    body = statement(study.privacy, study.rounds.quorum, plan, noise=outcome.private)
    if study.privacy.trust == "local":
        body["aggregation"] = "plain addition of locally noised vectors"
    else:
        body["aggregation"] = SIMULATED if simulated else SECURE
        body["aggregation"] += UPDATES if any(s.step.cargo == "model-update" for s in plan.steps) else ""
    body["simulated"] = simulated
    return body


def epsilons(privacy: dict[str, Any]) -> tuple[float, float]:
    """Epsilon against researchers and against the coordinator; infinite when the statement says null."""
    by = {g["adversary"]: g["epsilon"] for g in privacy["guarantees"]}
    researcher, coordinator = (math.inf if by[a] is None else float(by[a]) for a in ("researcher", "coordinator"))
    return researcher, coordinator


def publish(
    outcome: Outcome, folder: Path, key_file: Path, *, simulated: bool, direct: dict[str, Any] | None = None
) -> tuple[Path, Path, dict[str, Any]]:
    """Judge, report, sign.

    Args:
        folder: existing; gets ``NAME.medsynx.zip``, ``report.html`` and ``evaluation.json``.
        direct: figures computed outside the door on a hold-out file, or None.

    Returns:
        Paths of bundle and report, and the evaluation.
    """
    study, privacy = outcome.study, privacy_statement(outcome, simulated=simulated)
    rounds = rounds_json(outcome.rounds)
    evaluation = results.build(
        study,
        figures=outcome.figures,
        direct=direct,
        judged=outcome.judged,
        synthetic=outcome.synthetic,
        rounds=rounds,
        sites=outcome.sites,
        privacy=privacy,
        notes=outcome.artefact.notes,
    )
    html = render(evaluation)
    files = {
        "study.json": study.model_dump_json().encode(),
        "privacy.json": _json(privacy),
        "sampler.json": _json(outcome.artefact.sampler),
        "rounds.json": _json({"run": outcome.run, "seconds": round(outcome.seconds, 2), "rounds": rounds}),
        "evaluation.json": _json(evaluation),
        "report.html": html.encode(),
        "card.md": _card(outcome, privacy).encode(),
    } | {f"artefact/{n}": b for n, b in outcome.artefact.files.items()}
    bundle, report = _places(folder, study)
    report.write_text(html, "utf-8")
    (folder / "evaluation.json").write_bytes(files["evaluation.json"])
    write_bundle(bundle, files, key_file)
    return bundle, report, evaluation


def published(folder: Path, study: Study, key_file: Path) -> tuple[Path, Path, Bundle] | None:
    """Paths of bundle and report, and the bundle as read, when the run came this far before; None when its bundle is not there whole.

    A second bundle of one run would differ in its seconds at least, and so be a second generator at the server.
    """
    bundle, report = _places(folder, study)
    try:
        own = fingerprint(key_file.with_name(f"{key_file.name}.pub").read_bytes())
        held = read_bundle(bundle, trusted=frozenset({own}))
        return (bundle, report, held) if held.study.digest == study.digest else None
    except (MedsynxError, OSError):
        return None


def _places(folder: Path, study: Study) -> tuple[Path, Path]:
    return folder / f"{study.name}.medsynx.zip", folder / "report.html"


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _card(outcome: Outcome, privacy: dict[str, Any]) -> str:
    study = outcome.study
    researcher, coordinator = epsilons(privacy)
    return "\n".join(
        [
            f"# {study.title or study.name}",
            "",
            f"Synthetic patients from {len(outcome.sites)} sites, made by MedSynX {__version__} with the family `{study.family.name}`.",
            "",
            f"- Private: {'yes' if outcome.private else 'NO, noise was off'}",
            f"- Epsilon {researcher:.4g} against researchers, {coordinator:.4g} against the coordinator, delta {study.privacy.delta:g}",
            f"- Unit: one patient of one site ({privacy['note']})",
            f"- Aggregation: {privacy['aggregation']}",
            *(f"- {note}" for note in outcome.artefact.notes),
            f"- Study digest: `{study.digest}`",
            "",
        ]
    )
