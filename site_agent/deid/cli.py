"""``medsynx deid``: the engine without a site."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsynx.errors import MedsynxError

if TYPE_CHECKING:
    from site_agent.deid.engine import Place, Tally
    from site_agent.deid.keys import SiteKey
    from site_agent.deid.recipe import Recipe

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)
SHOWN = 30


@app.command()
def deid(
    src: Annotated[Path, typer.Argument(help="A folder, a zip archive, a DICOMDIR or a file.")],
    dst: Annotated[Path, typer.Argument(help="Folder for clean files; a run that was stopped goes on here.")],
    key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="MEDSYNX_KEY_FILE", help="The site's secret key (0600), made when absent; else MEDSYNX_KEY."
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML or JSON, or a deid recipe that only removes.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Files at once.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")] = False,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="For tests: source name -> output name, with the identifiers in it.")
    ] = None,
) -> None:
    """Copy what can be de-identified from SRC to DST: DICOM, NIfTI, pictures, tables. SRC is never changed.

    Exit status: 0 all clean, 80 something was quarantined, 81 something could not be read.
    """
    from site_agent.deid.engine import Folder, check
    from site_agent.deid.keys import SiteKey
    from site_agent.deid.recipe import load_recipe
    from site_agent.deid.report import write_private

    rules = load_recipe(recipe)
    if map_file is not None:
        _check_file(map_file)
    check([src], dst, *(p for p in (key_file, map_file) if p))
    if key_file is not None and not key_file.exists():
        key = SiteKey.create(key_file)
        typer.echo(f"made a new key: {key_file}. Keep it: without it, added files get other pseudonyms.", err=True)
    else:
        key = SiteKey.load(key_file)
    place = Folder(dst)
    tally = execute([src], place, "files", key, rules, jobs)
    page = finish(place, "files", key)
    if map_file is not None:
        write_private(map_file, json.dumps(tally.outputs, indent=1).encode())
    show(tally, page, as_json)


def _check_file(path: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise MedsynxError("source-invalid", f"{path} is not a file that can be written")


def execute(roots: list[Path], place: Place, dataset: str, key: SiteKey, recipe: Recipe, jobs: int) -> Tally:
    """Run the engine with a progress bar on the error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from site_agent.deid.engine import run
    from site_agent.deid.sources import find

    console = Console(file=sys.stderr)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        # counting costs one walk; nobody waits in front of a bar without an end
        total = sum(1 for _ in find(roots)) if console.is_terminal else None
        task = bar.add_task("de-identifying", total=total)
        return run(
            roots, place, dataset, key, recipe, jobs=jobs, progress=lambda done, _: bar.update(task, completed=done)
        )


def finish(place: Place, dataset: str, key: SiteKey, stem: str = "report") -> Path:
    """Write the signed report."""
    from site_agent.deid.report import write

    return write(place.catalogue, place.root, dataset, key, stem)


def show(tally: Tally, page: Path, as_json: bool) -> None:
    """Counts, what was refused, where the report is; then the exit status."""
    verdicts = {v: tally.verdicts[v] for v in ("clean", "quarantined", "failed")}
    if as_json:
        body: dict[str, Any] = {
            **verdicts,
            "reasons": dict(tally.reasons.most_common()),
            "from_an_earlier_run": tally.skipped,
            "refused": [{"source": s, "reason": r, "detail": d} for s, r, d in tally.refused],
            "report": str(page),
        }
        typer.echo(json.dumps(body))
    else:
        _tell(tally, verdicts, page)
    status = 81 if verdicts["failed"] else 80 if verdicts["quarantined"] else 0
    if status:
        raise typer.Exit(status)


def _tell(tally: Tally, verdicts: dict[str, int], page: Path) -> None:
    from site_agent.deid.quarantine import REASONS

    line = ", ".join(f"{n:,} {verdict}" for verdict, n in verdicts.items())
    typer.echo(line + (f" ({tally.skipped:,} from an earlier run)" if tally.skipped else ""))
    for reason, n in tally.reasons.most_common():
        typer.secho(f"  {n:,} {reason}: {REASONS[reason]}", fg="yellow")
        names = [(s, d) for s, r, d in tally.refused if r == reason]
        for source, detail in names[:SHOWN]:
            typer.echo(f"    {source}" + (f"  ({detail})" if detail else ""))
        if len(names) > SHOWN:
            typer.echo(f"    and {len(names) - SHOWN:,} more; --json names all")
    typer.echo(f"report: {page}")
