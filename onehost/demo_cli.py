"""``medsynx demo``."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onehost.cli import number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from medsynx.study import Study

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def demo(
    images: Annotated[
        bool, typer.Option("--images", help="Made-up radiographs, de-identified first, instead of a table.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="The demo's folder, made anew; medsynx-demo (medsynx-demo-images) when omitted."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Generator family: marginals (default) or dp-gan; mean-embedding (default) or moments."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server up afterwards and say how to sign in.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    patients: Annotated[int, typer.Option(hidden=True, help="How many people the radiographs are of.")] = 850,
) -> None:
    """Four hospitals as processes on this machine, the real Flower runtime over TLS, the server, a download.

    The data are a real medical table, or DICOM radiographs of people who do not exist. Ctrl-C stops everything.
    """
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    from medsynx.processes import Supervisor, end_when_killed
    from onehost import demo as play
    from onehost.federation import LocalFederation

    console, began = Console(stderr=True), time.monotonic()
    folder = folder or Path("medsynx-demo-images" if images else "medsynx-demo")
    # A plain kill ends the demo like Ctrl-C does: every process it started goes with it.
    end_when_killed()
    columns = (SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Supervisor() as supervisor:
        with Bar(*columns, console=console, disable=as_json) as bar:

            def stage_of(text: str) -> TaskID:
                for done in bar.task_ids:
                    bar.update(done, total=1, completed=1)
                return bar.add_task(text, total=None)

            found: dict[str, Any] = {}
            if images:
                from onehost import image_demo

                stage_of("making four hospitals' radiographs, approving the study at each")
                stage, archives = image_demo.set_up(folder, family, patients)
                task = stage_of("de-identifying")
                intake = image_demo.ingest(
                    stage,
                    archives,
                    lambda text: bar.update(task, description=f"de-identifying into the vaults: {text}"),
                )
                bar.update(
                    task,
                    description=f"de-identified {archives.files:,} radiographs; "
                    f"identifiers planted / left: {intake.planted:,} / {intake.left}",
                )
                found |= {"deidentified": asdict(intake), "vault": str(image_demo.vault_report(stage))}
            else:
                stage_of("dealing scikit-survival's flchain to four hospitals, approving the study at each")
                stage = play.set_up(folder, family)
            task = stage_of("starting the federation")
            federation = LocalFederation(supervisor, folder / "federation", stage.sites, stage.coordinator)
            url = play.start_server(stage, supervisor, federation.tls)
            federation.up(lambda text: bar.update(task, description=f"starting the federation: {text}"))
            (folder / "pids.json").write_text(json.dumps(supervisor.pids()))
            task = stage_of("running the study over Flower")

            def watch(progress: dict[str, Any]) -> None:
                sites = ", ".join(f"{s['name']} {s['status']}" for s in progress["sites"])
                at = f"{progress['message'] or progress['status']} ({progress['round']}/{progress['rounds']})"
                bar.update(task, description=f"running the study over Flower: {at} {sites}")

            result = play.conduct(stage, federation, watch)
            generator, ca = result["generator_id"], federation.tls.ca
            play.release(stage, url, ca, generator)
            if images:
                stage_of(f"releasing the generator, drawing {image_demo.IMAGES:,} DICOM images through the API")
                found |= {"dicom": str(folder / "synthetic-dicom.zip"), "picture": str(folder / "synthetic.png")}
                report = play.download(stage, url, ca, generator, dicom=(image_demo.IMAGES, Path(found["dicom"])))
                found["images"] = image_demo.look(Path(found["dicom"]), stage.study, Path(found["picture"]))
            else:
                stage_of(f"releasing the generator, drawing {play.ROWS:,} rows through the API")
                found["rows"] = str(folder / "synthetic.csv")
                report = play.download(stage, url, ca, generator, csv=(play.ROWS, Path(found["rows"])))
            for done in bar.task_ids:
                bar.update(done, total=1, completed=1)
        summary = {
            **result,
            **found,
            "patients": stage.patients,
            "total_seconds": round(time.monotonic() - began, 1),
            "report": str(report),
        }
        if as_json:
            typer.echo(json.dumps(summary))
        else:
            _show(stage.study, summary)
        if keep:
            _serve_on(url, play.ADMIN, play.RESEARCHER, stage.password_file, federation.tls.ca, console)


def _serve_on(url: str, admin: str, researcher: str, password_file: Path, ca: Path, console: Console) -> None:
    """Wait for Ctrl-C while the server runs."""
    console.print(f"\nThe server stays up: {url}/docs  (certificate authority: {ca})", soft_wrap=True)
    console.print(f"Sign in as {admin} or {researcher}; the password is in {password_file}", soft_wrap=True)
    console.print(f"Console: medsynx tui --url {url} --ca {ca}", soft_wrap=True)
    console.print("Ctrl-C stops everything.")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(1)


def _show(study: Study, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    figures = summary["figures"]
    table = Table(title=f"{study.title}: released", show_header=False, title_justify="left")
    missing = "".join(f"; missing: {s} ({why})" for s, why in summary["missing"].items())
    table.add_row("sites, patients", f"{', '.join(summary['sites'])}{missing}; {summary['patients']:,} patients")
    if "deidentified" in summary:
        for row in _intake(summary["deidentified"]):
            table.add_row(*row)
    table.add_row("family, rounds", f"{study.family.name}, {summary['rounds']} exchanges over Flower with TLS")
    table.add_row("seconds", f"{summary['total_seconds']} in all, {summary['seconds']} for the run")
    table.add_row(
        "epsilon",
        f"{summary['epsilon']:.3g} against researchers, {summary['epsilon_coordinator']:.3g} against the coordinator",
    )
    table.add_row("", f"delta {summary['delta']:g}, per patient; trust mode {study.privacy.trust}")
    if study.image is None:
        table.add_row(
            "utility",
            f"AUC {number(figures, 'tstr_auc')} trained on synthetic, {number(figures, 'trtr_auc')} trained on real",
        )
        table.add_row(
            "fidelity",
            f"TVD {number(figures, 'tvd1')} 1-way, {number(figures, 'tvd2')} 2-way (noised, on hold-out patients)",
        )
    else:
        table.add_row(
            "utility",
            f"balanced accuracy {number(figures, 'tstr_balanced_accuracy')}, AUC {number(figures, 'tstr_auc')}: "
            "trained on synthetic, on hold-out patients (noised)",
        )
        table.add_row("downloaded", f"{summary['images']} DICOM files, each says that it is synthetic")
    table.add_row("left each site", f"{summary['bytes_per_site']:,} bytes")
    console = Console()
    console.print(table)
    for name in ("bundle", "rows", "vault", "picture", "dicom", "report"):
        if name in summary:
            console.print(f"{name:8}{summary[name]}", soft_wrap=True, highlight=False)


def _intake(found: dict[str, Any]) -> list[tuple[str, str]]:
    held = ", ".join(f"{n} {reason}" for reason, n in found["reasons"].items())
    return [
        (
            "de-identified",
            f"{found['clean']:,} files in {found['seconds']} seconds, letters blanked in {found['blanked']}; "
            f"held back: {found['quarantined']} ({held}), not readable: {found['failed']}",
        ),
        ("identifiers", f"{found['planted']:,} planted, {found['left']} left in the vaults"),
    ]
