"""The report a privacy officer signs for: counts, kept attributes, reasons, pictures; JSON signed with the site's key, HTML to read.

It holds no value of any file and no source name. The signature is Ed25519 with a key derived from the site's secret, over the canonical JSON;
the JSON names every clean file by its SHA-256, so a changed file or a changed report is found by :func:`verify`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from medsynx import __version__, files
from medsynx.errors import MedsynxError
from site_agent.deid.catalogue import Catalogue
from site_agent.deid.keys import SiteKey
from site_agent.deid.quarantine import REASONS
from site_agent.deid.recipe import OPTION_CODES

TOOLS = (
    "pydicom",
    "highdicom",
    "nibabel",
    "simpleitk",
    "pydeface",
    "rapidocr-onnxruntime",
    "onnxruntime",
    "pillow",
    "deid",
)


def build(catalogue: Catalogue, root: Path, dataset: str, key: SiteKey) -> dict[str, Any]:
    """The report's content, unsigned."""
    row = catalogue.dataset(dataset)
    if row is None:
        raise MedsynxError("dataset-unknown", f"there is no data set {dataset}")
    reasons: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    actions: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}  # kind of file -> modality, '' where none is stated -> files
    notes: Counter[str] = Counter()
    tables: list[dict[str, Any]] = []
    labels: Counter[str] = Counter()
    outputs: set[str] = set()
    changed = 0
    for f in catalogue.files(dataset):
        if f["reason"]:
            reasons[f["reason"]] += 1
        if f["verdict"] != "clean":
            continue
        outputs.add(f["output"])
        kinds.setdefault(f["kind"], Counter())[f["modality"] or ""] += 1
        changed += f["changed"]
        kept.update(json.loads(f["kept"]))
        actions.update(json.loads(f["actions"]))
        note = json.loads(f["notes"])
        notes.update(k for k in ("face_possible", "rule") if note.get(k))
        labels.update([note["label"]] if "label" in note else [])
        if note.get("face"):
            notes[note["face"]] += 1
        if f["kind"] == "table":
            tables.append({k: note[k] for k in ("rows", "columns", "small_cells", "emptied")})
    notes["issuer_missing"] = catalogue.issuer_missing(dataset)
    totals = catalogue.totals(dataset)
    return {
        "report": 1,
        "dataset": dataset,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {
            "in": sum(totals[v] for v in ("clean", "quarantined", "failed")),
            **totals,
            "changed_pixels": changed,
        },
        "outputs": len(outputs),
        "outputs_sha256": _listed(catalogue, dataset),
        "labels": dict(labels.most_common()),
        "kinds": {kind: dict(modalities.most_common()) for kind, modalities in kinds.items()},
        "reasons": dict(reasons.most_common()),
        "actions": dict(actions.most_common()),
        "kept": dict(sorted(kept.items())),
        "notes": dict(+notes),
        "tables": tables,
        "recipe": {"digest": row["recipe_digest"], **json.loads(row["recipe"])},
        "profile": row["edition"],
        "key": row["key"],
        "tools": {"medsynx": __version__, **{t: version(t) for t in TOOLS}},
    }


def write(catalogue: Catalogue, root: Path, dataset: str, key: SiteKey, stem: str = "report") -> Path:
    """Write ``STEM.json`` (signed) and ``STEM.html`` below the root; returns the HTML's path."""
    body = build(catalogue, root, dataset, key)
    private = _private_key(key)
    signature = {
        "algorithm": "Ed25519",
        "public": private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex(),
        "value": private.sign(_canonical(body)).hex(),
    }
    signed = {"body": body, "signature": signature}
    write_private(root / f"{stem}.json", json.dumps(signed, indent=1, sort_keys=True).encode())
    page = root / f"{stem}.html"
    write_private(page, _html(signed, catalogue.pictures(dataset)).encode())
    return page


def verify(catalogue: Catalogue, root: Path, dataset: str, key: SiteKey, stem: str = "report") -> dict[str, Any]:
    """The report's body, after its signature and every file's digest were checked.

    Raises:
        MedsynxError: ``report-invalid``.
    """
    try:
        signed = json.loads((root / f"{stem}.json").read_text("utf-8"))
        body, value = signed["body"], bytes.fromhex(signed["signature"]["value"])
        _private_key(key).public_key().verify(value, _canonical(body))
    except (OSError, ValueError, KeyError, TypeError, InvalidSignature):
        raise MedsynxError(
            "report-invalid", f"the report of {dataset} is missing, changed, or signed with another key"
        ) from None
    if body["dataset"] != dataset:
        raise MedsynxError("report-invalid", f"the report is about {body['dataset']}, not {dataset}")
    files = {f["output"]: f["sha256"] for f in catalogue.files(dataset, verdict="clean")}
    if _listed(catalogue, dataset) != body["outputs_sha256"]:
        raise MedsynxError("report-invalid", f"data set {dataset} changed after its report was signed")
    for name, digest in files.items():
        path = root / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise MedsynxError("report-invalid", f"a file of {dataset} is missing or is not the one that was read back")
    return dict(body)


def _listed(catalogue: Catalogue, dataset: str) -> str:
    """SHA-256 over what training relies on of every clean file: its name and digest, whose it is, and the label its folder gave it."""
    lines = set()
    for f in catalogue.files(dataset, verdict="clean"):
        note = json.loads(f["notes"])
        about = (f["output"], f["sha256"], f["patient"], note.get("label"), note.get("unnamed", False))
        lines.add(json.dumps(about))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _private_key(key: SiteKey) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(key.subkey("report"))


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def write_private(path: Path, data: bytes) -> None:
    """Write a whole file with mode 0600, or none. Raises ``disk-full`` with what the disk says."""
    try:
        files.write(path, data, files.PRIVATE)
    except OSError as error:
        raise MedsynxError("disk-full", f"{path} cannot be written: {error.strerror}") from None


def _html(signed: dict[str, Any], pictures: list[dict[str, Any]]) -> str:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    shown = [
        {
            "caption": p["caption"],
            "modality": p["modality"],
            "before": base64.b64encode(p["before"]).decode(),
            "after": base64.b64encode(p["after"]).decode(),
        }
        for p in pictures
    ]
    options = [(name, code, signed["body"]["recipe"][name]) for name, (code, _) in OPTION_CODES.items()]
    return environment.get_template("report.html.j2").render(
        r=signed["body"], signature=signed["signature"], pictures=shown, reasons=REASONS, options=options
    )
