"""Registering, releasing and opening bundles. Everything fails closed."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, select

from medsynx.bundle import Bundle, read_bundle
from medsynx.errors import MedsynxError
from server.auth.principal import Principal
from server.auth.service import trusted
from server.folder import ServerFolder
from server.generators.models import Generator, Status
from server.generators.schemas import Summary
from server.users.models import Role

TITLE = 200  #: characters of a title that are kept


def register(db: Session, folder: ServerFolder, content: bytes, who: Principal) -> Generator:
    """Verify and store a bundle; the same bundle twice is the same generator.

    Raises:
        MedsynxError: ``bundle-unreadable``, ``bundle-signature`` (also when nobody is trusted yet), ``bundle-changed`` or ``bundle-not-private``.
    """
    bundle = read_bundle(content, trusted=trusted(db))
    if not bundle.private:
        raise MedsynxError("bundle-not-private", "this bundle says of itself that it is not private")
    identity = bundle.digest[:32]
    if found := db.get(Generator, identity):
        return found
    study = bundle.study
    generator = Generator(
        id=identity,
        file=folder.keep(content),
        name=study.name,
        title=study.title[:TITLE],
        family=study.family.name,
        study_digest=study.digest,
        bundle_digest=bundle.digest,
        signer=bundle.signer,
        has_report="report.html" in bundle.files and "evaluation.json" in bundle.files,
        summary=_summary(bundle).model_dump(mode="json"),
        changed_by=who.name,
    )
    db.add(generator)
    try:
        db.commit()
    except IntegrityError:  # it was uploaded twice at once
        db.rollback()
        return db.get_one(Generator, identity)
    db.refresh(generator)
    return generator


def _summary(bundle: Bundle) -> Summary:
    privacy = bundle.json("privacy.json")
    evaluation = bundle.json("evaluation.json") if "evaluation.json" in bundle.files else None
    try:
        guarantees = privacy["guarantees"]
        epsilon = {g["adversary"]: g["epsilon"] for g in guarantees}
        told = {
            "epsilon": epsilon["researcher"],
            "epsilon_coordinator": epsilon["coordinator"],
            "delta": guarantees[0]["delta"],
            "unit": guarantees[0]["unit"],
            "trust": privacy["trust"],
        }
        judged = {"gate": evaluation["gate"], "evaluation": evaluation["figures"]} if evaluation else {}
        return Summary.model_validate({"gate": None, "evaluation": None, "privacy": told, **judged})
    except (KeyError, IndexError, TypeError, ValueError):
        raise MedsynxError("bundle-unreadable", "the bundle's privacy statement or evaluation is not whole") from None


def visible(db: Session, who: Principal) -> list[Generator]:
    """Newest first; researchers see released generators only."""
    found = db.exec(select(Generator)).all()
    return sorted((g for g in found if _may_see(g, who)), key=lambda g: g.created_at, reverse=True)


def find(db: Session, identity: str, who: Principal) -> Generator:
    """A generator the asker may see. Raises ``not-found``, alike when it is withheld from a researcher."""
    generator = db.get(Generator, identity)
    if generator is None or not _may_see(generator, who):
        raise MedsynxError("not-found", "there is no such generator")
    return generator


def _may_see(generator: Generator, who: Principal) -> bool:
    return generator.status == Status.RELEASED or who.role != Role.RESEARCHER


def set_status(db: Session, generator: Generator, status: Status, who: Principal) -> Generator:
    """Release or withhold. Raises ``gate-closed`` for a release without a report or with an unmet gate."""
    if status == Status.RELEASED:
        if not generator.has_report:
            raise MedsynxError("gate-closed", "the bundle has no report")
        gate = generator.summary.get("gate")
        if not isinstance(gate, dict) or gate.get("passed") is not True:
            raise MedsynxError("gate-closed", "the study's release gate is not met")
    generator.status, generator.changed_by = status, who.name
    db.add(generator)
    db.commit()
    db.refresh(generator)
    return generator


def released(generator: Generator) -> Generator:
    """The generator itself. Raises ``not-released``."""
    if generator.status != Status.RELEASED:
        raise MedsynxError("not-released", "a coordinator has not released this generator")
    return generator


def open_bundle(folder: ServerFolder, generator: Generator) -> Bundle:
    """The verified bundle of a generator; verified anew when it is not in memory."""
    return _read(folder.bundle(generator.file), generator.signer)


@lru_cache(maxsize=8)
def _read(path: Path, signer: str) -> Bundle:
    return read_bundle(path, trusted=frozenset({signer}))
