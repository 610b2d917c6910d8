"""One deployed run at the coordinator: wait for the sites, run the study, sign the bundle, hand it to the registry.

The coordinator's folder: ``studies/DIGEST.json`` (manifests), ``signing.pem`` (0600), ``registry.json`` (server URL, CA, service token; optional),
``runs/RUN/`` (``progress.json``, ``result.json``, bundle and report; :mod:`strategies.keeper` names what a run's service adds).
"""

from __future__ import annotations

import json
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsynx import files
from medsynx.errors import MedsynxError
from medsynx.keys import private_folder
from medsynx.study import Study, parse_study
from strategies import checkpoint
from strategies.federation import Federation
from strategies.publish import epsilons, publish, published
from strategies.registry import Registry
from strategies.rounds import Progress, QuorumLost, Run

MESSAGE = 500  #: characters of a message that the server takes


class CoordinatorFolder:
    """Reads and writes the coordinator's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add_study(self, study: Study) -> None:
        """Keep a manifest under its digest."""
        target = self.path / "studies" / f"{study.digest}.json"
        private_folder(self.path)
        target.parent.mkdir(exist_ok=True)
        files.write(target, study.model_dump_json())

    def study(self, digest: str) -> Study:
        """The manifest of this digest. Raises ``study-unreadable``."""
        try:
            study = parse_study(json.loads((self.path / "studies" / f"{digest}.json").read_text("utf-8")))
        except (OSError, ValueError):
            raise MedsynxError("study-unreadable", f"the coordinator has no study {digest[:16]}") from None
        if study.digest != digest:
            raise MedsynxError("study-unreadable", f"study {digest[:16]} is not what its name says")
        return study

    def run(self, name: str) -> Path:
        """The folder of a run, made when absent."""
        folder = self.path / "runs" / name
        private_folder(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def ask(self, study: Study, name: str) -> None:
        """Ask for a run of this study; the request is there whole or not at all. Raises ``run-exists`` or ``request-invalid``."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name):
            raise MedsynxError("request-invalid", f"{name!r} is no name of a run: lower case letters, digits, dashes")
        self.add_study(study)
        part = self.run(name) / f"request.{os.getpid()}.part"
        part.write_text(json.dumps({"study": study.digest}), "utf-8")
        try:
            os.link(part, part.with_name("request.json"))  # unlike a rename it takes nobody's place
        except FileExistsError:
            raise MedsynxError("run-exists", f"there is a run {name} already") from None
        finally:
            part.unlink()

    def request(self, name: str) -> dict[str, Any]:
        """What was asked for."""
        return _read(self.path / "runs" / name / "request.json") or {}

    def open_runs(self) -> list[str]:
        """Runs that were asked for and have no result, sorted."""
        asked = (file.parent for file in self.path.glob("runs/*/request.json"))
        return sorted(folder.name for folder in asked if not (folder / "result.json").exists())

    def attempts(self, name: str) -> list[dict[str, Any]]:
        """Every start of a run, oldest first."""
        return list((_read(self.path / "runs" / name / "attempts.json") or {}).get("starts", []))

    def add_attempt(self, name: str, attempt: dict[str, Any]) -> None:
        """Note a start."""
        _write(self.run(name) / "attempts.json", {"starts": [*self.attempts(name), attempt]})

    def exchanges(self, name: str) -> int:
        """How many exchanges of a run are finished, whoever conducted them."""
        return checkpoint.exchanges(self.path / "runs" / name / "checkpoint.npz")

    def result(self, name: str) -> dict[str, Any] | None:
        """``result.json`` of a run, or None while it goes on."""
        return _read(self.path / "runs" / name / "result.json")

    def progress(self, name: str) -> dict[str, Any] | None:
        """Latest ``progress.json`` of a run, or None before it starts."""
        return _read(self.path / "runs" / name / "progress.json")


def conduct(federation: Federation, folder_path: Path, run_config: dict[str, Any]) -> None:
    """Run the study ``run_config["study-digest"]`` under the name ``run_config["run"]``.

    Always ends with a ``result.json`` that says ``finished`` or ``failed`` with a code; raises when it failed, so that Flower's own state
    says so too.
    """
    import httpx

    folder, name = CoordinatorFolder(folder_path), str(run_config["run"])
    target = folder.run(name)
    registry = Registry.configured(folder_path / "registry.json")
    try:
        study = folder.study(str(run_config["study-digest"]))
    except MedsynxError as error:
        _write(target / "result.json", {"status": "failed", "code": error.code, "message": error.message})
        raise
    before = folder.progress(name) or {}  # of a start that died
    status: dict[str, Any] = {
        "study_name": study.name,
        "study_digest": study.digest,
        "family": study.family.name,
        "status": "waiting",
        "round": before.get("round", 0),
        "rounds": before.get("rounds", 0),
        "message": None,
        "started_at": before.get("started_at") or datetime.now(UTC).isoformat(timespec="seconds"),
        "sites": [],
        "epsilon": study.privacy.epsilon,
        "generator_id": None,
    }

    def tell(**changes: Any) -> None:
        status.update(changes)
        _write(target / "progress.json", status)
        registry.put_run(name, status)

    def watch(progress: Progress) -> None:
        tell(
            status="running",
            round=progress.round,
            rounds=progress.rounds,
            message=progress.step,
            sites=[_site(s, state) for s, state in progress.sites.items()],
        )

    try:
        tell()
        _await_sites(federation, study)
        run = Run(study, federation, name, watch, target / "checkpoint.npz")
        outcome = run.conduct()
        tell(message="report and bundle")
        key = folder_path / "signing.pem"
        if published(target, study, key) is None:
            publish(outcome, target, key, simulated=False)
        deliver(folder, name, study)
    except MedsynxError as error:
        fail(folder, name, error.code, error.message)
        raise
    except (
        OSError,
        httpx.HTTPError,
    ):  # the SuperLink or the disk, not the run: it may be started again behind the last exchange
        raise
    except Exception as error:
        fail(folder, name, "coordinator-failed", type(error).__name__)
        raise


def deliver(folder: CoordinatorFolder, name: str, study: Study) -> str | None:
    """Hand the bundle of a run to the server, if there is one, and end the run as finished; returns the generator's id.

    Sent again, after the run had failed here too, it is the same generator. The hospitals' budgets are spent; nobody is asked anything.

    Raises:
        MedsynxError: ``not-found`` for a run without a bundle of its own; ``federation-unreachable`` when the server does not take it.
    """
    target, registry = folder.run(name), Registry.configured(folder.path / "registry.json")
    made = published(target, study, folder.path / "signing.pem")
    if made is None:
        raise MedsynxError("not-found", f"run {name} has no bundle", hint="Only a run that came to its end has one.")
    bundle, report, held = made
    evaluation = held.json("evaluation.json")
    generator = registry.upload(bundle)
    progress = {**(folder.progress(name) or {}), "status": "finished", "message": None, "generator_id": generator}
    _write(target / "progress.json", progress)
    registry.put_run(name, progress)
    researcher, coordinator = epsilons(evaluation["privacy"])
    rounds = evaluation["rounds"]
    _write(
        target / "result.json",
        {
            "status": "finished",
            "seconds": round(held.json("rounds.json")["seconds"], 1),
            "rounds": len(rounds),
            "sites": sorted({site for r in rounds for site in r["answered"]}),
            "missing": {site: why for r in rounds for site, why in r["missing"].items()},
            "epsilon": researcher,
            "epsilon_coordinator": coordinator,
            "delta": study.privacy.delta,
            "figures": evaluation["figures"],
            "gate": evaluation["gate"],
            "bytes_per_site": sum(r["bytes_per_site"] for r in rounds),
            "bundle": str(bundle),
            "report": str(report),
            "generator_id": generator,
        },
    )
    return generator


def fail(folder: CoordinatorFolder, name: str, code: str, message: str) -> None:
    """End a run as failed: in its result, its progress and at the server."""
    _write(folder.run(name) / "result.json", {"status": "failed", "code": code, "message": message})
    if progress := folder.progress(name):
        progress |= {"status": "failed", "message": message[:MESSAGE]}
        _write(folder.run(name) / "progress.json", progress)
        Registry.configured(folder.path / "registry.json").put_run(name, progress)


def _await_sites(federation: Federation, study: Study) -> None:
    """Wait until the quorum is there, no longer than one deadline."""
    until = time.monotonic() + study.rounds.deadline_seconds
    while len(federation.sites()) < study.rounds.quorum:
        if time.monotonic() > until:
            raise QuorumLost("start", study.rounds.quorum, {})
        time.sleep(0.5)


def _site(name: str, state: str) -> dict[str, Any]:
    plain = {"asked": "online", "answered": "answered", "offline": "offline", "late": "late"}
    status = "late" if state == "set-aside" else plain.get(state, "failed")
    return {"name": name, "status": status, "reason": None if state in plain else state}


def _write(path: Path, value: dict[str, Any]) -> None:
    files.write(path, json.dumps(value, indent=1))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
