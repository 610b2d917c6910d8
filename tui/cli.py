"""``medsynx tui``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def tui(
    url: Annotated[str, typer.Option(help="The server's address.")] = "http://127.0.0.1:8400",
    ca: Annotated[Path | None, typer.Option(help="PEM of the server's certificate authority.")] = None,
) -> None:
    """Watch sites, runs and generators; open reports; release or withhold. The password is asked for, never given here."""
    from medsynx.errors import MedsynxError
    from tui.app import Console

    if ca is not None and not ca.exists():
        raise MedsynxError("request-invalid", f"{ca} does not exist")
    Console(url, ca).run()
