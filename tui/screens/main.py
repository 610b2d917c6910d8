"""The main view: three live tables above, the selected row below."""

from __future__ import annotations

import re
import tempfile
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Header, Static, TabbedContent, TabPane

from tui.client import Api, ApiError
from tui.screens.confirm import Confirm
from tui.widgets.detail import Detail
from tui.widgets.tables import VIEWS, LiveTable

REFRESH_SECONDS = 2.0
ROWS = 1000


class Main(Screen[None]):
    """Refreshes every two seconds. Ends when the token is no longer good."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "tab('runs')", "Runs"),
        Binding("2", "tab('sites')", "Sites"),
        Binding("3", "tab('generators')", "Generators"),
        Binding("o", "report", "Open report"),
        Binding("s", "sample", f"Save {ROWS:,} rows"),
        Binding("r", "release(True)", "Release"),
        Binding("w", "release(False)", "Withhold"),
        Binding("q", "app.quit", "Quit"),
    ]

    def __init__(self, api: Api) -> None:
        super().__init__()
        self.api = api

    def compose(self) -> ComposeResult:
        """Banner, tabs, detail. A researcher has one tab."""
        yield Header()
        yield Static("", id="banner", markup=False)
        with TabbedContent(initial="runs" if self.api.coordinates else "generators"):
            for view in VIEWS:
                if self.api.coordinates or view.what == "generators":
                    with TabPane(view.title, id=view.what):
                        yield LiveTable(view)
        yield Detail()
        yield Footer()

    def on_mount(self) -> None:
        """Refresh now and from now on."""
        self.set_interval(REFRESH_SECONDS, self.tick)
        self.refresh_tables()

    def tick(self) -> None:
        """Refresh, unless a slow server still answers the refresh before: cancelling that one would never show a row."""
        if not any(w.group == "refresh" and w.is_running for w in self.workers):
            self.refresh_tables()

    @work(exclusive=True, group="refresh")
    async def refresh_tables(self) -> None:
        """Fetch every table; a banner says when the server is away, an expired token leads back to the sign-in."""
        with suppress(NoMatches):  # an answer that comes while the console closes finds no widgets left
            await self._refresh()

    async def _refresh(self) -> None:
        banner = self.query_one("#banner", Static)
        try:
            for table in self.query(LiveTable):
                table.show(await self.api.rows(table.view.what))
        except ApiError as error:
            if error.code == "token-invalid":
                self.dismiss()
                return
            banner.update(f"{error.message}. {error.hint} Showing what was last known.")
            banner.add_class("shown")
            return
        banner.remove_class("shown")
        self.describe()

    @on(DataTable.RowHighlighted)
    @on(TabbedContent.TabActivated)
    def describe(self) -> None:
        """Show the selected row below; put the cursor where the keys should go."""
        table = self.table()
        self.query_one(Detail).show(table.view.what, table.current)
        if self.focused is None and table.rows:
            table.table.focus()

    def table(self) -> LiveTable:
        """The table of the open tab."""
        return self.query_one(f"#{self.query_one(TabbedContent).active} LiveTable", LiveTable)

    def action_tab(self, name: str) -> None:
        """Open a tab."""
        if self.query(f"TabPane#{name}"):
            self.query_one(TabbedContent).active = name
            if self.table().rows:
                self.table().table.focus()

    def _generator(self) -> dict[str, Any] | None:
        table = self.table()
        if table.view.what != "generators" or table.current is None:
            self.notify("Select a generator first (key 3).", severity="warning", markup=False)
            return None
        return table.current

    @work
    async def action_report(self) -> None:
        """Fetch the report and open it in a browser; the path is shown for terminals without one."""
        if generator := self._generator():
            try:
                page = await self.api.report(generator["id"])
            except ApiError as error:
                self.notify(str(error), severity="error", markup=False)
                return
            file = Path(tempfile.mkdtemp(prefix="medsynx-")) / f"{_plain(generator['name'])}.html"
            file.write_text(page, "utf-8")
            webbrowser.open(file.as_uri())
            self.notify(f"report saved to {file}", timeout=15, markup=False)

    @work
    async def action_sample(self) -> None:
        """Save synthetic rows into the working folder."""
        if generator := self._generator():
            try:
                rows = await self.api.samples(generator["id"], ROWS)
            except ApiError as error:
                self.notify(str(error), severity="error", markup=False)
                return
            file = Path.cwd() / f"{_plain(generator['name'])}-{ROWS}.csv"
            file.write_bytes(rows)
            self.notify(f"{ROWS:,} rows saved to {file}", timeout=15, markup=False)

    @work
    async def action_release(self, released: bool) -> None:
        """Ask, then release or withhold."""
        generator = self._generator()
        if generator is None:
            return
        verb = "Release" if released else "Withhold"
        if not await self.app.push_screen_wait(Confirm(f"{verb} {generator['name']} ({generator['id'][:8]})?")):
            return
        try:
            await self.api.set_released(generator["id"], released)
        except ApiError as error:
            self.notify(str(error), severity="error", markup=False)
        else:
            self.notify(f"{generator['name']} {'released' if released else 'withheld'}", markup=False)
        self.refresh_tables()


def _plain(name: str) -> str:
    """A server's name as a file name."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "generator"
