"""Sign in."""

from __future__ import annotations

from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import Screen
from textual.widgets import Button, Footer, Header, Input, Label, Static

from tui.client import Api, ApiError


class SignIn(Screen[bool]):
    """Asks for address and password; ends with True once the server took them."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Quit")]

    def __init__(self, api: Api) -> None:
        super().__init__()
        self.api = api

    def compose(self) -> ComposeResult:
        """A small form."""
        yield Header()
        with Vertical(id="box"):
            yield Label(f"Sign in to {self.api.url}")
            yield Input(placeholder="e-mail address", id="email")
            yield Input(placeholder="password", password=True, id="password")
            yield Button("Sign in", variant="primary", id="go")
            yield Static("", id="problem", markup=False)
        yield Footer()

    @on(Input.Submitted, "#email")
    def to_password(self) -> None:
        """Enter goes on to the password."""
        self.query_one("#password", Input).focus()

    @on(Input.Submitted, "#password")
    @on(Button.Pressed, "#go")
    def submit(self) -> None:
        """Enter or the button."""
        self.sign_in(self.query_one("#email", Input).value, self.query_one("#password", Input).value)

    @work(exclusive=True)
    async def sign_in(self, email: str, password: str) -> None:
        """Ask the server; the form stays with the reason when it refuses."""
        problem = self.query_one("#problem", Static)
        problem.update("signing in ...")
        try:
            await self.api.sign_in(email, password)
        except ApiError as error:
            problem.update(str(error))
            self.query_one("#password", Input).value = ""
            self.query_one("#password", Input).focus()
        else:
            self.dismiss(True)

    def action_leave(self) -> None:
        """Give up."""
        self.dismiss(False)
