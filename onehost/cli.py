"""``medsynx simulate`` and ``medsynx rehearse``."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from strategies.rounds import Progress

#: title of a line of results -> its figures
SHOWN = {
    "TVD 1-way / 2-way": ("tvd1", "tvd2"),
    "AUC TSTR / TRTR": ("tstr_auc", "trtr_auc"),
    "balanced accuracy TSTR / TRTR": ("tstr_balanced_accuracy", "trtr_balanced_accuracy"),
    "accuracy TSTR / TRTR": ("tstr_accuracy", "trtr_accuracy"),
    "Frechet distance": ("frechet",),
    "kernel distance": ("kernel_distance",),
    "memorisation": ("memorisation",),
}
simulate_app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
rehearse_app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@simulate_app.command()
def simulate(
    study: Annotated[Path, typer.Argument(help="Study manifest, YAML or JSON.")],
    site: Annotated[
        list[Path],
        typer.Option(
            help="One table a site; for images one NPZ file, or a folder with a folder of pictures a class. Repeat it."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for bundle and report.")],
    holdout: Annotated[
        Path | None, typer.Option(help="A table no site holds: adds figures computed directly, which are not private.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Another family than the manifest's, with its default parameters.")
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(help="The family's parameters as a JSON object, in place of the manifest's or the defaults."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Fixes the rows that the direct figures judge. Privacy noise is never seeded.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse unknown columns and levels instead of leaving them out.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Run a study over tables in one process: the same site and strategy code as a deployed run.

    Vectors are added in the open here: that stands in for a secure sum and hides nothing from whoever runs it.
    """
    from medsynx.study import load_study
    from onehost.simulate import simulate as run

    manifest = load_study(study)
    if parameters is not None:
        manifest = manifest.with_family(family or manifest.family.name, _object(parameters))
    elif family and family != manifest.family.name:
        manifest = manifest.with_family(family)
    with _bar("reading tables", as_json) as watch:
        result = run(manifest, site, out, holdout=holdout, seed=seed, strict=strict, watch=watch)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _show(result)


@contextlib.contextmanager
def _bar(first: str, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar of a run's progress, gone afterwards; gives the run's watcher."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task(first, total=1)

        def watch(progress: Progress) -> None:
            bar.update(task, description=progress.step, completed=progress.round, total=progress.rounds)

        yield watch


def _object(text: str) -> dict[str, Any]:
    """A JSON object given on the command line."""
    with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(text), dict):
            return found
    raise typer.BadParameter("not a JSON object", param_hint="--parameters")


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for line in result["warnings"]:
        console.print(f"[yellow]{line}")
    for line in result["notes"]:
        console.print(line, highlight=False)
    table = Table(title=f"{result['study']} ({result['family']})", show_header=False)
    table.add_row("sites, patients", f"{result['sites']}, {result['patients']:,}")
    table.add_row("rounds, seconds", f"{result['rounds']}, {result['seconds']}")
    table.add_row(
        "epsilon (researcher / coordinator)",
        f"{result['epsilon']:.3g} / {result['epsilon_coordinator']:.3g}, delta {result['delta']:g}",
    )
    for source, figures in result["figures"].items():
        if figures:
            note = "not private" if source == "direct" else "through the door, noised"
            for title, names in SHOWN.items():
                if names[0] in figures:
                    values = " / ".join(number(figures, n) for n in names)
                    table.add_row(f"{title} ({source}, {note})", values)
                    if beside := _beside(figures[names[0]]):
                        table.add_row("", beside)
    table.add_row("bytes a site", f"{result['bytes_per_site']:,}")
    console.print(table)
    for name in ("bundle", "report"):
        console.print(f"{name:8}{result[name]}", soft_wrap=True, highlight=False)


def _beside(figure: dict[str, Any]) -> str:
    """What a figure of images is to be read against; empty for others."""
    if figure.get("mean_only") is not None:
        floor = "" if "noisy" in figure else f"real training images {figure['floor']:.3f}, "
        return f"{floor}class means only {figure['mean_only']:.3f}"
    if "near" in figure:
        shares = f"near: {figure['train_near']:.1%} of training, {figure['holdout_near']:.1%} of hold-out patients"
        return f"{shares}; cannot be told from 0 below {figure['resolution']:.3f}"
    return ""


def number(figures: dict[str, Any], name: str) -> str:
    """A figure for people: three digits, a dash when there is none."""
    figure = figures.get(name) or {}
    value = figure.get("value")
    if value is None:
        return "-"
    floor = f" beyond a floor of {figure['floor']:.3f}" if "noisy" in figure else ""
    return f"{value:.3f}{floor}" + ("" if figure.get("reliable", True) else " (not reliable)")


@rehearse_app.command()
def rehearse(
    study: Annotated[Path, typer.Argument(help="Study manifest.")],
    dir: Annotated[
        Path | None, typer.Option("--dir", help="The site's folder: its policy, ledger and data are checked too.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="A data set of site.yaml.")] = "table",
    patients: Annotated[
        int | None, typer.Option(min=10, help="Fake patients; as many as the data set has when omitted, or 1,000.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Play a study on fake data made from its dictionary: time, memory, bytes, epsilon; and look through the real data. Sends and charges nothing.

    The exit status is that of the first problem; 0 says that the study can be approved here.
    """
    from medsynx.draft import refuse_marks
    from medsynx.study import load_study
    from onehost.rehearse import rehearse as play
    from site_agent.policy import SiteFolder

    manifest = load_study(study)
    refuse_marks(study)
    with _bar("reading the data", as_json) as watch:
        found = play(manifest, SiteFolder(dir) if dir else None, dataset, patients=patients, watch=watch)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show_rehearsal(found)
    raise typer.Exit(found["exit_status"])


def _show_rehearsal(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from site_agent.quality import lines

    console = Console(highlight=False)
    table = Table(title=f"{found['study']} ({found['family']}), rehearsed", show_header=False)
    if "steps" in found:
        longest = max(found["steps"], key=lambda s: s["seconds"])
        table.add_row("fake patients, steps", f"{found['patients']:,}, {len(found['steps'])}")
        table.add_row("seconds here, whole run", f"{found['site_seconds']}, {found['total_seconds']}")
        late = "; the study waits no longer than" if longest["seconds"] > found["deadline_seconds"] else "of"
        table.add_row(
            "longest step", f"{longest['step']}: {longest['seconds']:.2f} s {late} {found['deadline_seconds']:g} s"
        )
        table.add_row("peak memory", f"{found['peak_mib']:,} MiB, the coordinator's part included")
        spoken = f", {found['message_bytes']:,} of them messages of secure sums" if found["message_bytes"] else ""
        table.add_row("bytes out", f"{found['bytes_out']:,}; a run sends up to {found['planned_bytes']:,}{spoken}")
    if spent := found.get("epsilon"):
        figures = f"{spent['spent']:.3g} -> {spent['after']:.3g} of {spent['limit']:g}"
        table.add_row("epsilon of this site's patients", figures)
    console.print(table)
    if found["data"]:
        console.print("\n".join(lines(found["data"])))
    for problem in found["problems"]:
        console.print(f"[red]{problem['message']}[/] [{problem['code']}]\n  try: {problem['hint']}", soft_wrap=True)
    if not found["problems"]:
        console.print("[green]nothing stands in the way; nothing was sent or charged")
