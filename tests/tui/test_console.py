"""The console against a named fake of the API, and once against the real server."""

import asyncio
import contextlib
import json
import threading
import time

import httpx
import pytest
from textual.css.query import NoMatches
from textual.widgets import DataTable, Input, Static, TabbedContent

from tui.app import Console
from tui.client import Api, ApiError
from tui.screens.confirm import Confirm
from tui.screens.main import Main
from tui.screens.sign_in import SignIn
from tui.widgets.detail import Detail

RUN = {
    "id": "run-1",
    "study_name": "flchain",
    "study_digest": "a" * 64,
    "family": "marginals",
    "status": "running",
    "round": 1,
    "rounds": 3,
    "message": "tables",
    "started_at": "2026-01-01T10:00:00Z",
    "updated_at": "2026-01-01T10:00:05Z",
    "sites": [
        {"name": "north", "status": "answered", "reason": None},
        {"name": "south", "status": "failed", "reason": "budget-exceeded"},
    ],
    "epsilon": 1.0,
    "generator_id": None,
}
SITE = {"name": "north", "status": "answered", "last_seen": "2026-01-01T10:00:05Z", "run_id": "run-1"}
GENERATOR = {
    "id": "g" * 32,
    "name": "flchain",
    "title": "Free light chain [bold]",
    "family": "marginals",
    "study_digest": "a" * 64,
    "signer": "b" * 64,
    "created_at": "2026-01-01T10:01:00Z",
    "status": "withheld",
    "has_report": True,
    "gate": {"passed": True, "checks": []},
    "privacy": {"epsilon": 1.0, "epsilon_coordinator": 2.0, "delta": 1e-5, "unit": "patient", "trust": "local"},
    "evaluation": {
        "tvd1": {"value": 0.1, "floor": 0.4, "reliable": False},
        "tvd2": {"value": None, "floor": None, "reliable": True},
        "tstr_auc": {"value": 0.81, "floor": None, "reliable": True},
    },
}


class FakeApi:
    """Stands in for the server: remembers what was asked, can be switched off or let its tokens expire."""

    def __init__(self, role="coordinator"):
        self.role, self.calls, self.mode = role, [], "up"
        self.generators = [dict(GENERATOR)]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls.append((request.method, request.url.path))
        if self.mode == "down":
            raise httpx.ConnectError("no route")
        if request.url.path == "/auth/token":
            if "password=right" not in request.content.decode():
                return self.problem(401, "login-failed", "no account with this address and password")
            return httpx.Response(
                200, json={"access_token": "t", "token_type": "bearer", "expires_in": 3600, "role": self.role}
            )
        if self.mode == "expired" or request.headers.get("authorization") != "Bearer t":
            return self.problem(401, "token-invalid", "the access token has expired")
        if request.url.path.endswith(("/release", "/withhold")):
            self.generators[0]["status"] = "released" if request.url.path.endswith("release") else "withheld"
            return httpx.Response(200, json=self.generators[0])
        rows = {"/runs": [RUN], "/sites": [SITE], "/generators": self.generators}
        return httpx.Response(200, json=rows[request.url.path])

    @staticmethod
    def problem(status, code, detail):
        return httpx.Response(status, text=json.dumps({"code": code, "detail": detail, "hint": "Try again."}))


def console(fake):
    return Console("https://fake", api=Api("https://fake", transport=httpx.MockTransport(fake)))


async def sign_in(pilot, password="right", shown=None):
    """Sign in; returns when every table shows rows, or what is ``shown`` instead."""
    app = pilot.app
    await until(pilot, lambda: isinstance(app.screen, SignIn) and app.screen.query_one("#password", Input).is_mounted)
    app.screen.query_one("#email", Input).value = "a@b.cd"
    app.screen.query_one("#password", Input).value = password
    app.screen.query_one("#password", Input).focus()
    await until(pilot, lambda: app.focused is app.screen.query_one("#password", Input))
    await pilot.press("enter")
    await until(
        pilot, shown or (lambda: isinstance(app.screen, Main) and rows_of(app.screen) and min(rows_of(app.screen)))
    )


async def until(pilot, what, seconds=60):
    """Let the console go on until something is so, however slow this machine is."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(NoMatches):  # of a screen that is not there yet
            if what():
                return
        assert time.monotonic() < end, "it does not come"
        await pilot.pause(0.02)


async def open_generators(pilot):
    """As key 3 does, until the keys go to that table."""
    await pilot.press("3")
    screen = pilot.app.screen
    await until(
        pilot,
        lambda: screen.query_one(TabbedContent).active == "generators" and screen.focused is screen.table().table,
    )


def rows_of(screen) -> list[int]:
    return [table.row_count for table in screen.query(DataTable)]


def text(screen, kind) -> str:
    return str(screen.query_one(kind, Static).render())


async def test_wrong_password_stays_at_the_door_with_a_reason():
    async with console(FakeApi()).run_test() as pilot:
        await sign_in(pilot, "wrong", lambda: "Try again." in text(pilot.app.screen, "#problem"))
        assert isinstance(pilot.app.screen, SignIn)
        assert (
            "login-failed" in text(pilot.app.screen, "#problem")
            and pilot.app.screen.query_one("#password", Input).value == ""
        )


async def test_a_coordinator_sees_runs_sites_and_generators():
    async with console(FakeApi()).run_test(size=(110, 32)) as pilot:
        await sign_in(pilot)
        screen = pilot.app.screen
        assert isinstance(screen, Main)
        assert rows_of(screen) == [1, 1, 1]
        await until(pilot, lambda: "south: failed (budget-exceeded)" in text(screen, Detail))
        assert "1/3" in text(screen, Detail)
        await open_generators(pilot)
        await until(pilot, lambda: "researchers" in text(screen, Detail))
        shown = text(screen, Detail)
        assert (
            "1 against researchers, 2 against the coordinator" in shown
            and "0.81" in shown
            and "TVD 1-way 0.1 (not reliable)" in shown
            and "[bold]" in shown
        )


async def test_release_asks_first():
    fake = FakeApi()
    async with console(fake).run_test(size=(110, 32)) as pilot:
        await sign_in(pilot)
        await pilot.press("r")
        await until(pilot, lambda: [n for n in pilot.app._notifications if "Select a generator" in n.message])
        assert isinstance(pilot.app.screen, Main), "no generator is selected on the runs tab"
        await open_generators(pilot)
        for answer, status in (("n", "withheld"), ("y", "released")):
            await pilot.press("r")
            await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
            await pilot.press(answer)
            await until(pilot, lambda: not [w for w in pilot.app.workers if w.name == "action_release"])
            assert isinstance(pilot.app.screen, Main)
            assert fake.generators[0]["status"] == status


async def test_a_researcher_sees_generators_only():
    fake = FakeApi("researcher")
    async with console(fake).run_test() as pilot:
        await sign_in(pilot)
        assert [p.id for p in pilot.app.screen.query("TabPane")] == ["generators"]
        assert not {("GET", "/runs"), ("GET", "/sites")} & set(fake.calls)


async def test_a_server_that_goes_away_and_comes_back():
    fake = FakeApi()
    async with console(fake).run_test() as pilot:
        await sign_in(pilot)
        screen = pilot.app.screen
        fake.mode = "down"
        screen.refresh_tables()
        banner = screen.query_one("#banner")
        await until(pilot, lambda: banner.has_class("shown"))
        assert "does not answer" in text(screen, "#banner")
        assert screen.query(DataTable).first().row_count == 1, "what was last known stays"
        fake.mode = "up"
        screen.refresh_tables()
        await until(pilot, lambda: not banner.has_class("shown"))
        fake.mode = "expired"
        screen.refresh_tables()
        await until(pilot, lambda: isinstance(pilot.app.screen, SignIn))
        fake.mode = "up"
        await sign_in(pilot)


async def test_markup_from_the_server_is_plain_text():
    fake = FakeApi()
    fake.generators = [{**GENERATOR, "name": "[/x] odd"}]
    async with console(fake).run_test() as pilot:
        await sign_in(pilot)
        await open_generators(pilot)
        assert str(pilot.app.screen.table().table.get_row_at(0)[0]) == "[/x] odd"


async def test_a_server_slower_than_the_refresh_still_shows_its_rows(monkeypatch):
    monkeypatch.setattr("tui.screens.main.REFRESH_SECONDS", 0.1)
    api = Api("https://fake", transport=httpx.MockTransport(FakeApi()))
    quick = api.rows

    async def slow(what):
        await asyncio.sleep(0.2)
        return await quick(what)

    monkeypatch.setattr(api, "rows", slow)
    async with Console("https://fake", api=api).run_test() as pilot:
        await sign_in(pilot)
        assert rows_of(pilot.app.screen) == [1, 1, 1]


async def test_an_answer_that_comes_while_the_console_closes_does_no_harm(monkeypatch):
    api = Api("https://fake", transport=httpx.MockTransport(FakeApi()))
    quick, shown = api.rows, []
    async with Console("https://fake", api=api).run_test() as pilot:
        await sign_in(pilot)

        async def closing(what):
            await pilot.app.screen.query_one(Detail).remove()
            shown.append(what)
            return await quick(what)

        monkeypatch.setattr(api, "rows", closing)
        pilot.app.screen.refresh_tables()
        await pilot.app.workers.wait_for_complete()
    assert shown


async def test_a_password_is_not_sent_in_the_clear_nor_to_a_stranger():
    calls = []

    def stranger(request):
        calls.append(request)
        return httpx.Response(200, text="<html>hello</html>")

    plain = Api("http://hospital.example", transport=httpx.MockTransport(stranger))
    with pytest.raises(ApiError, match="not encrypted"):
        await plain.sign_in("a@b.cd", "secret")
    assert calls == []
    with pytest.raises(ApiError, match="no MedSynX server"):
        await Api("https://x.example", transport=httpx.MockTransport(stranger)).sign_in("a@b.cd", "secret")


async def test_the_cursor_stays_on_its_row():
    fake = FakeApi()
    fake.generators = [{**GENERATOR, "id": str(k) * 32, "name": f"g{k}"} for k in range(4)]
    async with console(fake).run_test() as pilot:
        await sign_in(pilot)
        await open_generators(pilot)
        await pilot.press("down", "down")
        await until(pilot, lambda: pilot.app.screen.table().current["name"] == "g2")
        fake.generators = [{**GENERATOR, "id": "9" * 32, "name": "new"}, *fake.generators]
        pilot.app.screen.refresh_tables()
        await until(pilot, lambda: pilot.app.screen.table().table.row_count == 5)
        assert pilot.app.screen.table().current["name"] == "g2"
        assert pilot.app.screen.query_one(TabbedContent).active == "generators"


@pytest.mark.filterwarnings("ignore")
async def test_against_the_real_server(tmp_path):
    import uvicorn
    from sqlmodel import Session

    from medsynx.processes import free_port
    from server.app import create_app
    from server.folder import ServerFolder
    from server.users import service
    from server.users.models import Role

    folder = ServerFolder(tmp_path / "s")
    folder.create()
    app = create_app(folder.path)
    with Session(app.state.engine) as db:
        service.add(db, "a@b.cd", "right password", Role.COORDINATOR)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < end and thread.is_alive()
        time.sleep(0.05)
    try:
        url = f"http://127.0.0.1:{port}"
        account = {"username": "a@b.cd", "password": "right password"}
        token = httpx.post(f"{url}/auth/token", data=account, timeout=60).json()["access_token"]
        body = {k: v for k, v in RUN.items() if k not in ("id", "updated_at")}
        header = {"Authorization": f"Bearer {token}"}
        assert httpx.put(f"{url}/runs/run-1", json=body, headers=header, timeout=60).status_code == 200
        async with Console(url).run_test(size=(110, 32)) as pilot:
            await sign_in(pilot, "right password", lambda: isinstance(pilot.app.screen, Main))
            await until(pilot, lambda: "south: failed (budget-exceeded)" in text(pilot.app.screen, Detail))
    finally:
        server.should_exit = True
        thread.join(10)
