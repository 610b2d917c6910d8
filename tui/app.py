"""The application: signs in, then shows the main view."""

from __future__ import annotations

from pathlib import Path

from textual.app import App

from tui.client import Api
from tui.screens.main import Main
from tui.screens.sign_in import SignIn


class Console(App[None]):
    """MedSynX in a terminal.

    Args:
        url: the server.
        ca: PEM of its CA, or None.
        api: stands in for the server in tests.
    """

    TITLE = "MedSynX"
    CSS_PATH = "style.tcss"
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, url: str, ca: Path | None = None, api: Api | None = None) -> None:
        super().__init__()
        self.api = api or Api(url, ca)

    def on_mount(self) -> None:
        """Start at the door."""
        self.sub_title = self.api.url
        self.push_screen(SignIn(self.api), self._signed_in)

    def _signed_in(self, ok: bool | None) -> None:
        if ok:
            self.push_screen(Main(self.api), lambda _: self.push_screen(SignIn(self.api), self._signed_in))
        else:
            self.exit()
