"""``medsynx``: mounts each room's commands; a room is imported only when one of its commands runs."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import typer
from typer.core import TyperGroup

from medsynx.errors import MedsynxError

#: command -> ("module:typer app", help shown without importing it)
ROOMS = {
    "site": ("site_agent.cli:app", "Hospital: set up a site, approve studies, watch the budget, run the agent."),
    "deid": ("site_agent.deid.cli:app", "Hospital: de-identify DICOM, NIfTI, pictures and tables into a folder."),
    "coordinator": ("strategies.cli:app", "Coordinator: serve the federation, start, follow and stop runs."),
    "server": ("server.cli:app", "Server: set up and serve the REST API."),
    "tui": ("tui.cli:app", "Coordinator: the console in a terminal."),
    "demo": ("onehost.demo_cli:app", "Four hospitals on this machine, from a table or radiographs to a download."),
    "simulate": ("onehost.cli:simulate_app", "Run a study over tables in one process."),
}
#: room -> its commands that live in another room
GUESTS = {"site": {"rehearse": "onehost.cli:rehearse_app"}}


class _Rooms(TyperGroup):
    """Lists the rooms from the table above and imports one only when it is used: `medsynx --help` stays under half a second."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *ROOMS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ROOMS:
            return super().get_command(ctx, cmd_name)
        try:
            command = _load(ROOMS[cmd_name][0], cmd_name)
            for name, where in GUESTS.get(cmd_name, {}).items():
                assert isinstance(command, click.Group)
                command.add_command(_load(where, name))
        except ModuleNotFoundError as missing:
            raise MedsynxError("install-incomplete", f"`medsynx {cmd_name}` needs the package {missing.name}") from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(n, c.get_short_help_str(80)) for n, c in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows + [(name, text) for name, (_, text) in ROOMS.items()])


def _load(where: str, name: str) -> click.Command:
    """The command of a typer app given as ``module:attribute``."""
    module, _, attribute = where.partition(":")
    command = typer.main.get_command(getattr(import_module(module), attribute))
    command.name = name
    return command


app = typer.Typer(
    cls=_Rooms,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Synthetic patients, published together by hospitals that never pool real ones.",
)
study_app = typer.Typer(no_args_is_help=True, help="Coordinator: draft and check a study manifest.")
app.add_typer(study_app, name="study")


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from medsynx import __version__

        typer.echo(__version__)
        raise typer.Exit


@study_app.command("draft")
def study_draft(
    table: Annotated[Path, typer.Argument(help="CSV with a header line.")],
    out: Annotated[Path | None, typer.Option(help="Write here instead of the screen.")] = None,
) -> None:
    """Write a draft manifest from a table. Bounds and levels taken from rows are marked: they are not private."""
    import re

    from medsynx.draft import WARNING, draft
    from medsynx.tables import read_table

    text = draft(read_table(table), re.sub(r"[^a-z0-9]+", "-", table.stem.lower()).strip("-") or "study")
    if out is None:
        typer.echo(text)
    elif out.exists():
        raise MedsynxError("file-exists", f"{out} exists")
    else:
        out.write_text(text, "utf-8")
        typer.echo(f"wrote {out}")
    typer.secho(WARNING, fg="red", bold=True, err=True)


@study_app.command("check")
def study_check(
    file: Annotated[Path, typer.Argument(help="YAML or JSON manifest.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")] = False,
) -> None:
    """Check a manifest and show what would leave each site: steps, bytes, noise, both epsilons."""
    from medsynx.draft import refuse_marks
    from medsynx.study import load_study

    study = load_study(file)
    refuse_marks(file)
    programme = import_module("evaluation.programme")  # a room: the root only mounts it
    from medsynx.privacy import statement

    plan = programme.priced_plan(study)
    privacy = statement(study.privacy, study.rounds.quorum, plan)
    summary = {
        "name": study.name,
        "digest": study.digest,
        "family": study.family.name,
        "columns": len(study.data_columns),
        "image": study.image.model_dump() if study.image else None,
        "bytes_per_site": plan.bytes_per_site,
        "guarantees": privacy["guarantees"],
        "steps": [
            {
                "name": s.step.name,
                "cargo": s.step.cargo,
                "leaves_as": s.step.leaves_as(study.privacy.trust),
                "part": s.step.part,
                "size": s.step.size,
                "noise_multiplier": round(s.noise_multiplier, 3),
            }
            for s in plan.steps
        ],
    }
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
    else:
        _show_plan(summary)


@app.command()
def generate(
    bundle: Annotated[Path, typer.Argument(help="A bundle file (.medsynx.zip).")],
    rows: Annotated[int, typer.Option(help="How many synthetic rows or images.")],
    out: Annotated[
        Path, typer.Option(help="Target; .csv or .parquet for rows, .npz or (with --format) .zip for images.")
    ],
    seed: Annotated[int | None, typer.Option(help="Same bundle, rows and seed: same table.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="COLUMN=VALUE or COLUMN=LOW..HIGH (of images: class=NAME); again for more columns, or another value of one."
        ),
    ] = None,
    form: Annotated[
        Literal["png", "dicom", "nifti"] | None, typer.Option("--format", help="Images as such files, in a ZIP.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The coordinator's public key; without it only integrity is checked.")
    ] = None,
) -> None:
    """Draw synthetic rows or images from a bundle, offline. With --where, rows follow the generator's distribution given that."""
    from medsynx.bundle import fingerprint, read_bundle
    from medsynx.conditions import classes_of, parse_conditions
    from medsynx.image_files import archive, to_npz
    from medsynx.progress import on_screen
    from medsynx.samplers import draw
    from medsynx.streams import write_whole
    from medsynx.tables import write_table

    verified = read_bundle(bundle, trusted=frozenset({fingerprint(key.read_bytes())}) if key else None)
    image, conditions = verified.study.image, parse_conditions(where or (), verified.study)
    classes = classes_of(conditions, verified.study) if image else ()
    if form and out.suffix.lower() != ".zip":
        raise MedsynxError("request-invalid", f"--format {form} makes a ZIP", hint="Give an --out that ends in .zip.")
    if form:
        with on_screen():
            write_whole(out, archive(verified, rows, seed, form, classes))
    elif image and out.suffix.lower() == ".npz":
        with on_screen():
            write_whole(out, [to_npz(verified, rows, seed, classes)])
    else:
        write_table(out, draw(verified, rows, seed, conditions))
    note = "" if verified.private else " - NOT PRIVATE: noise was off in this run"
    typer.echo(
        f"wrote {rows} {'images' if image else 'rows'} to {out} (signed by {verified.signer[:16]}{'' if key else ', origin not checked'}){note}",
        err=True,
    )


def _show_plan(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    image = summary["image"]
    what = f"{summary['columns']} columns"
    if image:
        what = f"images of {' x '.join(map(str, image['shape']))}, classes {', '.join(image['classes'])}"
    console.print(f"[bold]{summary['name']}[/]  family {summary['family']}, {what}")
    console.print(f"digest {summary['digest']}", soft_wrap=True)
    table = Table("step", "leaves as", "patients", "numbers", "noise / sensitivity")
    for s in summary["steps"]:
        table.add_row(s["name"], s["leaves_as"], s["part"], f"{s['size']:,}", f"{s['noise_multiplier']:.3g}")
    console.print(table)
    console.print(f"leaves each site: {summary['bytes_per_site'] / 1024:,.0f} KB")
    for g in summary["guarantees"]:
        console.print(
            f"epsilon {g['epsilon']:.3g} against the {g['adversary']}, delta {g['delta']:g}, per {g['unit']} ({g['neighbours']})"
        )


def main() -> None:
    """Entry point: turns a :class:`MedsynxError` into a code, a sentence, a remedy and an exit status."""
    try:
        app()
    except MedsynxError as error:
        if "--json" in sys.argv:
            body = {"code": error.code, "message": error.message, "hint": error.hint, "details": list(error.details)}
            typer.echo(json.dumps({"error": body}))
        from medsynx.logs import printable

        for line in f"error: {error}".split("\n"):
            typer.secho(printable(line), fg="red", err=True)
        typer.echo(f"  try: {printable(error.hint)}", err=True)
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
