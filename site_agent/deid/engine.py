"""The engine: sources -> worker processes -> a folder of clean files, its catalogue and its report.

``run`` is the whole flow. A file goes aside, is read back, is renamed into place, and only then gets its row: a kill at any moment leaves
either nothing or a whole file, and the next run goes on from the rows.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from medsynx.errors import MedsynxError
from medsynx.processes import alone
from site_agent.deid import reader
from site_agent.deid.catalogue import Catalogue, Entry
from site_agent.deid.keys import SiteKey
from site_agent.deid.recipe import Recipe
from site_agent.deid.sources import Source, find
from site_agent.deid.worker import Outcome, Settings, start, work
from site_agent.deid.written import split

IN_FLIGHT = 4  # files a process has waiting: enough to keep it busy, few enough to keep memory flat


class Place(Protocol):
    """Where clean files go: a folder (:class:`Folder`) or the vault."""

    root: Path
    catalogue: Catalogue

    def output(self, entry: Entry, name: str) -> str:
        """Path below ``root`` for a clean file."""


class Folder:
    """``DST/PATIENT/NAME``, with the catalogue and work in progress in ``DST/.medsynx`` (0700)."""

    def __init__(self, root: Path) -> None:
        self.root, self.private = root, root / ".medsynx"
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.private.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise MedsynxError("source-invalid", f"{root} cannot be written: {error.strerror}") from None
        if not (os.access(root, os.W_OK | os.X_OK) and os.access(self.private, os.W_OK | os.X_OK)):
            raise MedsynxError("source-invalid", f"{root} cannot be written: no permission")
        self.catalogue = Catalogue(self.private / "catalogue.sqlite")

    def output(self, entry: Entry, name: str) -> str:
        """A folder for each patient; tables hold many."""
        return f"{entry.patient or 'tables'}/{name}"


@dataclass
class Tally:
    """What a run did, for the screen. Source names are in it: it is never stored."""

    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    refused: list[tuple[str, str, str]] = field(default_factory=list)  # source, reason, detail
    outputs: dict[str, str | None] = field(default_factory=dict)


def check(roots: list[Path], *written: Path) -> None:
    """Refuse before anything is made: the sources are there and hold files, and what is written lies apart from them.

    Raises:
        MedsynxError: ``source-invalid``.
    """
    if next(find(roots), None) is None:
        raise MedsynxError("source-invalid", f"there is no file in {', '.join(map(str, roots))}")
    for root in (r.resolve() for r in roots):
        for path in written:
            if path.resolve().is_relative_to(root) or root.is_relative_to(path.resolve()):
                raise MedsynxError("source-invalid", f"{root} and {path} lie inside each other")


Progress = Callable[[int, str], None]


def run(
    roots: list[Path],
    place: Place,
    dataset: str,
    key: SiteKey,
    recipe: Recipe,
    *,
    jobs: int = 1,
    progress: Progress = lambda done, name: None,
) -> Tally:
    """De-identify everything below the roots into a place.

    Args:
        progress: called with the number of files done and the source's name.

    Raises:
        MedsynxError: ``ingest-busy``, ``key-changed``, ``recipe-changed``, ``source-invalid``, ``disk-full``.
    """
    check(roots, place.root)
    aside = place.catalogue.path.parent / "aside"
    vault = place.catalogue.path.parent
    with alone(vault / "lock", MedsynxError("ingest-busy", f"another run is writing to {vault.parent}")):
        shutil.rmtree(aside, ignore_errors=True)  # what a killed run left
        aside.mkdir(mode=0o700, exist_ok=True)  # one of its workers may have written on while it was emptied
        place.catalogue.open_dataset(dataset, key, recipe)
        filing = _Filing(place, dataset, key)
        settings = Settings(key, recipe, aside, place.catalogue.withdrawn())
        try:
            with closing(_outcomes(find(roots), filing, settings, jobs)) as outcomes:
                for done, (source, outcome) in enumerate(outcomes, 1):
                    filing.file(source, outcome)
                    progress(done, source.name)
            filing.finish()
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return filing.tally


class _Filing:
    """The parent's half: what is done already, renaming into place, rows, and the checks that need all files."""

    def __init__(self, place: Place, dataset: str, key: SiteKey) -> None:
        self.place, self.dataset, self.key, self.catalogue = place, dataset, key, place.catalogue
        self.tally = Tally()
        self._names: dict[str, str] = {}
        self._needles: dict[str, set[str]] = {}
        self._mixed: set[str] = set()

    def mac(self, source: Source) -> str:
        """Names a source file by its place, size and time, and tells nobody what it is called."""
        return self.key.mac("source", source.name, str(source.size), str(source.modified)).hex()

    def known(self, source: Source, mac: str) -> bool:
        """Whether an earlier run finished this file; if so, count it."""
        row = self.catalogue.done(self.dataset, mac)
        if row is None or row["verdict"] == "failed":
            return False
        if row["output"] and not (self.place.root / row["output"]).is_file():
            return False
        self.tally.skipped += 1
        self._count(source, row["verdict"], row["reason"], row["detail"], row["output"])
        return True

    def file(self, source: Source, outcome: Outcome | None) -> None:
        """Put one outcome in its place; None was counted already."""
        if outcome is None:
            return
        entry = outcome.entry
        if outcome.aside is not None:
            entry.output = self._move(entry, outcome)
        self.catalogue.put(self.dataset, entry)
        if entry.verdict == "clean" and entry.patient:
            known = self._needles.setdefault(entry.patient, set(outcome.patient_needles))
            if known != outcome.patient_needles:
                self._mixed.add(entry.patient)
                known |= outcome.patient_needles
        self._names[entry.source] = source.name
        self._count(source, entry.verdict, entry.reason, entry.detail, entry.output)

    def _move(self, entry: Entry, outcome: Outcome) -> str | None:
        """Rename into place, unless the same bytes lie there under another source name."""
        assert outcome.aside is not None
        twin = self.catalogue.same_content(self.dataset, entry.content)
        if twin and twin["kind"] == "dicom" and (self.place.root / twin["output"]).is_file():
            outcome.aside.unlink()
            entry.sha256, entry.pictures = twin["sha256"], []
            return str(twin["output"])
        output = self.place.output(entry, outcome.name)
        owner = self.catalogue.owner_of(self.dataset, output)
        if owner and owner["sha256"] != entry.sha256 and owner["source"] != entry.source:
            # two objects with one UID: keep both, tell them apart by their content
            stem, dot, suffix = outcome.name.partition(".")
            output = self.place.output(entry, f"{stem}-{entry.content[:8]}{dot}{suffix}")
        target = self.place.root / output
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            outcome.aside.chmod(0o600)
            outcome.aside.replace(target)
        except OSError as error:
            raise MedsynxError("disk-full", f"cannot write to {self.place.root}: {error.strerror}") from None
        return output

    def finish(self) -> None:
        """What can only be seen across files: one identifier with two people, and one file's secret in another file of the patient."""
        for patient in self.catalogue.two_people(self.dataset):
            for row in list(self.catalogue.files(self.dataset, patient=patient, verdict="clean")):
                if row["kind"] == "dicom":
                    self._take_back(row, "two-patients")
        for patient in sorted(self._mixed):
            needles = reader.Needles(names=self._needles[patient])
            for row in list(self.catalogue.files(self.dataset, patient=patient, verdict="clean")):
                if row["patient"] != patient:
                    continue
                blob, payload = split((self.place.root / row["output"]).read_bytes(), row["kind"])
                if reader.found(blob, needles, payload=payload):
                    self._take_back(row, "left-over")

    def _take_back(self, row: dict[str, Any], reason: str) -> None:
        path = self.place.root / row["output"]
        if self.catalogue.references(row["output"]) <= 1:
            path.unlink(missing_ok=True)
            if path.parent != self.place.root and not any(path.parent.iterdir()):
                path.parent.rmdir()
        self.catalogue.quarantine(row["id"], reason)
        name = self._names.get(row["source"], "a file of an earlier run")
        self.tally.verdicts["clean"] -= 1
        self.tally.verdicts["quarantined"] += 1
        self.tally.reasons[reason] += 1
        self.tally.refused.append((name, reason, ""))
        if name in self.tally.outputs:
            self.tally.outputs[name] = None

    def _count(self, source: Source, verdict: str, reason: str | None, detail: str | None, output: str | None) -> None:
        self.tally.verdicts[verdict] += 1
        self.tally.outputs[source.name] = output
        if reason:
            self.tally.reasons[reason] += 1
            self.tally.refused.append((source.name, reason, detail or ""))


def _outcomes(
    sources: Iterator[Source], filing: _Filing, settings: Settings, jobs: int
) -> Generator[tuple[Source, Outcome | None]]:
    """Outcomes in the order of the sources; None for what an earlier run finished. Survives a decoder that kills its process."""
    pool = _pool(settings, jobs)
    waiting: deque[tuple[Source, str, Future[Outcome] | None]] = deque()
    try:
        while True:
            while len(waiting) < jobs * IN_FLIGHT:
                source = next(sources, None)
                if source is None:
                    break
                mac = filing.mac(source)
                future = None if filing.known(source, mac) else _submitted(pool, source, mac)
                waiting.append((source, mac, future))
            if not waiting:
                return
            source, mac, future = waiting.popleft()
            try:
                yield source, future.result() if future else None
            except BrokenProcessPool:
                pool.shutdown(cancel_futures=True)
                yield source, _alone_again(source, mac, settings)
                pool = _pool(settings, jobs)
                again = list(waiting)
                waiting.clear()
                for other, other_mac, other_future in again:
                    if other_future and not (other_future.done() and other_future.exception() is None):
                        other_future = _submitted(pool, other, other_mac)
                    waiting.append((other, other_mac, other_future))
    finally:
        pool.shutdown(cancel_futures=True)  # waits: nothing may be written aside once the run has ended


def _submitted(pool: ProcessPoolExecutor, source: Source, mac: str) -> Future[Outcome]:
    """One file's outcome to come; of a pool that a file among the waiting has broken by now, that it is broken."""
    try:
        return pool.submit(work, source, mac)
    except BrokenProcessPool as broken:
        lost: Future[Outcome] = Future()
        lost.set_exception(broken)
        return lost


def _pool(settings: Settings, jobs: int) -> ProcessPoolExecutor:
    # spawn: a fresh interpreter; a forked one would inherit the native libraries' threads and locks
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=start, initargs=(settings, os.getpid()))


def _alone_again(source: Source, mac: str, settings: Settings) -> Outcome:
    """One file in a process of its own, after a process died while it was among the waiting."""
    with _pool(settings, 1) as single:
        try:
            return single.submit(work, source, mac).result()
        except BrokenProcessPool:
            return Outcome(Entry(mac, "", "failed", "crashed"))
