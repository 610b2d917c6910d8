"""``medsynx coordinator``: the service that keeps a federation and its runs going, and what is asked of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from strategies.coordinator import CoordinatorFolder

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
Folder = Annotated[Path, typer.Option("--dir", help="The coordinator's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command()
def serve(
    dir: Folder,
    tls_ca: Annotated[Path, typer.Option(help="PEM file of the CA that signed the certificate.")],
    tls_cert: Annotated[
        Path, typer.Option(help="PEM file of the certificate: it names the public host and 127.0.0.1.")
    ],
    tls_key: Annotated[Path, typer.Option(help="PEM file of its key.")],
    host: Annotated[str, typer.Option(help="Address that hospitals reach.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that hospitals reach.")] = 8443,
    private_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on 127.0.0.1 of the SuperLink's whole API; any free one.")
    ] = None,
) -> None:
    """Run the SuperLink behind its gate and keep every run going until Ctrl-C. What dies is started again."""
    import logging
    import sys

    from medsynx import logs
    from medsynx.processes import end_when_killed
    from strategies.runtime import Tls
    from strategies.service import serve as run

    logs.start(sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    end_when_killed()
    run(dir, Tls(tls_ca.resolve(), tls_cert.resolve(), tls_key.resolve()), (host, port), typer.echo, private_port)


@app.command()
def connect(
    dir: Folder,
    url: Annotated[str, typer.Option(help="Base URL of the MedSynX server.")],
    token_file: Annotated[Path, typer.Option(help="File with a token of `medsynx server token create`.")],
    ca: Annotated[
        Path | None, typer.Option(help="Its certificate authority (PEM); one of the system's when omitted.")
    ] = None,
) -> None:
    """Name the server: it is told how runs go, takes their bundles, and its enrolled sites are the federation from the next `serve` on."""
    import httpx

    from medsynx.errors import MedsynxError
    from medsynx.keys import write_secret
    from strategies.registry import Registry

    try:
        token = token_file.read_text("utf-8").strip()
        registry = Registry(url.rstrip("/"), token, str(ca.resolve(strict=True)) if ca else None)
    except (OSError, UnicodeDecodeError) as error:
        raise MedsynxError("request-invalid", f"{getattr(error, 'filename', token_file)} cannot be read") from None
    if len(token.split()) != 1:
        raise MedsynxError("request-invalid", f"{token_file} must hold one token and nothing else")
    try:
        sites = [site for site, entry in registry.listed().items() if entry.enrolled]
    except httpx.HTTPStatusError as refused:
        code = "token-invalid" if refused.response.status_code in (401, 403) else "federation-unreachable"
        hint = "Make a new one with `medsynx server token create`." if code == "token-invalid" else None
        raise MedsynxError(code, f"{url} answered {refused.response.status_code}", hint=hint) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, KeyError, TypeError) as error:
        strange = "CERTIFICATE_VERIFY_FAILED" in str(error)
        why = "its certificate is of another authority or host" if strange else type(error).__name__
        hint = (
            "Give --url as https://HOST:PORT of a server that runs, and --ca the authority that signed its certificate."
        )
        raise MedsynxError("federation-unreachable", f"{url} does not answer ({why})", hint=hint) from None
    write_secret(dir / "registry.json", json.dumps(vars(registry)).encode())
    typer.echo(f"connected; enrolled sites: {', '.join(sorted(sites)) or 'none yet'}")


@app.command()
def sites(dir: Folder, as_json: AsJson = False) -> None:
    """List the hospitals and whether they are online. One that fell silent counts as online for up to a minute."""
    from strategies.certificate import read_notice
    from strategies.members import TROUBLE
    from strategies.presence import read_presence
    from strategies.service import require_service

    require_service(dir)
    there = read_presence(dir)
    if (file := dir / TROUBLE).exists() and (trouble := file.read_text("utf-8")):
        typer.echo(f"the list of hospitals is not followed: {trouble}", err=True)
    if told := read_notice(dir):
        typer.echo(told, err=True)
    if as_json:
        typer.echo(json.dumps(there))
        return
    for site, online in sorted(there.items()):
        typer.echo(f"{site}  {'online' if online else 'offline'}")
    if not there:
        typer.echo("no hospital has joined yet; invite one with `medsynx server invite create`")


@app.command("run")
def start(
    study: Annotated[Path, typer.Argument(help="Study manifest, YAML or JSON.")],
    dir: Folder,
    name: Annotated[str | None, typer.Option(help="Of the run: lower case letters, digits, dashes.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Ask for the run and do not wait for it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask the service for a run and follow it. Ctrl-C leaves the run going."""
    import secrets

    from medsynx.draft import refuse_marks
    from medsynx.study import load_study
    from strategies.coordinator import CoordinatorFolder
    from strategies.service import require_service

    manifest = load_study(study)
    refuse_marks(study)
    require_service(dir)
    folder, name = CoordinatorFolder(dir), name or f"{manifest.name[:50]}-{secrets.token_hex(3)}"
    folder.ask(manifest, name)
    if detach:
        typer.echo(json.dumps({"run": name}) if as_json else f"run {name} was asked for")
        return
    result = {"run": name, **_follow(folder, name, quiet=as_json)}
    if as_json:
        typer.echo(json.dumps(result))
        return
    missing = "".join(f"; missing: {s} ({why})" for s, why in result["missing"].items())
    typer.echo(f"run {name} finished: {', '.join(result['sites'])}{missing}")
    typer.echo(f"epsilon {result['epsilon']:.3g}, delta {result['delta']:g}; {result['seconds']} s")
    typer.echo(f"bundle {result['bundle']}\nreport {result['report']}")


@app.command()
def stop(name: Annotated[str, typer.Argument(help="Of the run.")], dir: Folder) -> None:
    """Stop a run for good. What the sites reserved for it stays spent."""
    from strategies.coordinator import CoordinatorFolder
    from strategies.service import stop as end

    end(CoordinatorFolder(dir), name)
    typer.echo(f"run {name} stopped")


@app.command()
def deliver(name: Annotated[str, typer.Argument(help="Of the run.")], dir: Folder) -> None:
    """Hand the bundle of a run to the server again: for one that failed because the server was away or refused it. No hospital is asked anything."""
    from medsynx.errors import MedsynxError
    from strategies.coordinator import CoordinatorFolder
    from strategies.coordinator import deliver as hand

    folder = CoordinatorFolder(dir)
    if folder.result(name) is None:
        raise MedsynxError("not-found", f"no run {name} has ended", hint="Run `medsynx coordinator runs --dir DIR`.")
    generator = hand(folder, name, folder.study(str(folder.request(name).get("study"))))
    typer.echo(f"run {name} finished; generator {generator or 'not at a server: none is named'}")


@app.command()
def runs(dir: Folder, as_json: AsJson = False) -> None:
    """List the runs: how they stand or ended, and how often they had to be started."""
    from medsynx.errors import MedsynxError
    from strategies.coordinator import CoordinatorFolder

    if not dir.is_dir():
        raise MedsynxError("not-found", f"there is no folder {dir}", hint="Give --dir the coordinator's folder.")
    folder = CoordinatorFolder(dir)
    rows = []
    for name in sorted(p.parent.name for p in dir.glob("runs/*/request.json")):
        progress, result = folder.progress(name) or {}, folder.result(name) or {}
        rows.append(
            {
                "run": name,
                "study": progress.get("study_name"),
                "status": result.get("status") or progress.get("status") or "asked for",
                "code": result.get("code"),
                "round": progress.get("round", 0),
                "rounds": progress.get("rounds", 0),
                "starts": folder.attempts(name),
            }
        )
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if not rows:
        typer.echo("no run was asked for yet; ask for one with `medsynx coordinator run`")
    for row in rows:
        code = f" ({row['code']})" if row["code"] else ""
        typer.echo(
            f"{row['run']}  {row['study'] or '-'}  {row['status']}{code}  {row['round']}/{row['rounds']}  starts: {len(row['starts'])}"
        )


def _follow(folder: CoordinatorFolder, name: str, *, quiet: bool) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from strategies.service import follow

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task(f"run {name}: waiting", total=None)

        def watch(progress: dict[str, Any]) -> None:
            sites = ", ".join(f"{s['name']} {s['status']}" for s in progress["sites"])
            at = f"{progress['message'] or progress['status']} ({progress['round']}/{progress['rounds']})"
            bar.update(task, description=f"run {name}: {at} {sites}")

        return follow(folder, name, watch)
