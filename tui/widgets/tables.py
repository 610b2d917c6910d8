"""The three live tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.coordinate import Coordinate
from textual.widgets import DataTable, Static

Row = dict[str, Any]


@dataclass(frozen=True)
class View:
    """What a table shows of a row. ``key`` names the row across refreshes."""

    what: str
    title: str
    key: str
    columns: dict[str, Callable[[Row], str]]
    empty: str


def figure(value: float | None) -> str:
    """A figure for people."""
    return "–" if value is None else f"{value:.3g}"


def measured(figure_: dict[str, Any] | None) -> str:
    """A figure of an evaluation; one that noise hides says so."""
    shown = figure(figure_["value"] if figure_ else None)
    return f"{shown} (not reliable)" if figure_ and not figure_["reliable"] else shown


def moment(value: str | None) -> str:
    """An ISO time without its second's fraction and zone."""
    return (value or "–").replace("T", " ")[:19]


VIEWS = (
    View(
        "runs",
        "Runs",
        "id",
        {
            "run": lambda r: r["id"],
            "study": lambda r: r["study_name"],
            "status": lambda r: r["status"],
            "round": lambda r: f"{r['round']}/{r['rounds']}",
            "now": lambda r: r["message"] or "",
            "started": lambda r: moment(r["started_at"]),
        },
        "No runs yet. A run appears here as soon as a coordinator starts one.",
    ),
    View(
        "sites",
        "Sites",
        "name",
        {
            "site": lambda r: r["name"],
            "status": lambda r: r["status"],
            "last seen": lambda r: moment(r["last_seen"]),
            "run": lambda r: r["run_id"],
        },
        "No sites yet. A site appears here once it has been asked in a run.",
    ),
    View(
        "generators",
        "Generators",
        "id",
        {
            "generator": lambda r: r["name"],
            "status": lambda r: r["status"],
            "family": lambda r: r["family"],
            "epsilon": lambda r: figure(r["privacy"]["epsilon"]),
            "AUC": lambda r: measured((r["evaluation"] or {}).get("tstr_auc")),
            "gate": lambda r: "–" if r["gate"] is None else "met" if r["gate"]["passed"] else "not met",
            "made": lambda r: moment(r["created_at"]),
        },
        "No generators yet. A finished run registers one; researchers see those that were released.",
    ),
)


class LiveTable(Vertical):
    """A table that takes fresh rows without losing its cursor, and says what to expect while it is empty."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view
        self.rows: list[Row] = []

    def compose(self) -> ComposeResult:
        """Table and the word for emptiness."""
        yield Static(self.view.empty, classes="empty")
        yield DataTable(cursor_type="row", zebra_stripes=True)

    def on_mount(self) -> None:
        """Columns never change."""
        self.table.add_columns(*self.view.columns)
        self.table.display = False

    @property
    def table(self) -> DataTable[Text]:
        """The inner table."""
        return self.query_one(DataTable)

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        at = self.table.cursor_row
        return self.rows[at] if 0 <= at < len(self.rows) else None

    def show(self, rows: list[Row]) -> None:
        """Replace the rows; the cursor stays on the same one as long as it is there."""
        if rows == self.rows:
            return
        before = self.current
        self.rows = rows
        self.table.clear()
        for row in rows:
            self.table.add_row(*(Text(cell(row)) for cell in self.view.columns.values()), key=str(row[self.view.key]))
        keys = [r[self.view.key] for r in rows]
        if before and before[self.view.key] in keys:
            self.table.cursor_coordinate = Coordinate(keys.index(before[self.view.key]), 0)
        self.query_one(".empty").display = not rows
        self.table.display = bool(rows)
