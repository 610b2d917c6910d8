"""Who is online, for whoever asks on the coordinator's machine."""

import json

import httpx
import pytest
from typer.testing import CliRunner

from strategies.cli import app
from strategies.members import TROUBLE, write_roster
from strategies.presence import Presence, read_presence
from strategies.service import only


class SuperLink:
    """Stands in for the Control API."""

    def __init__(self):
        self.there = {1}

    def online(self):
        if self.there is None:
            raise httpx.ConnectError("away")
        return self.there


@pytest.fixture
def presence(tmp_path):
    write_roster(tmp_path, {"east": 1, "west": 2})
    return Presence(tmp_path, SuperLink())


def seen(presence):
    presence._noted = -10.0
    presence.tend()
    return read_presence(presence.folder)


def test_heartbeats_decide_and_a_superlink_that_is_away_has_nobody_online(presence):
    assert read_presence(presence.folder) == {}
    assert seen(presence) == {"east": True, "west": False}
    presence.control.there = None
    assert seen(presence) == {"east": False, "west": False}
    (presence.folder / "roster.json").write_text("{")
    assert seen(presence) == {}, "nothing old is shown"


def test_the_command_asks_a_service_that_is_up(presence):
    seen(presence)
    ask = ["sites", "--dir", str(presence.folder)]
    assert CliRunner().invoke(app, ask).exception.code == "coordinator-down"
    with only(presence.folder):
        assert CliRunner().invoke(app, ask).output == "east  online\nwest  offline\n"
        assert json.loads(CliRunner().invoke(app, [*ask, "--json"]).output) == {"east": True, "west": False}
        (presence.folder / TROUBLE).write_text("the token has expired")
        told = CliRunner().invoke(app, [*ask, "--json"])
        assert "is not followed: the token has expired" in told.stderr and json.loads(told.stdout)["east"]


def test_no_runs_and_no_folder_are_two_things(tmp_path):
    assert "no run was asked for yet" in CliRunner().invoke(app, ["runs", "--dir", str(tmp_path)]).output
    assert CliRunner().invoke(app, ["runs", "--dir", str(tmp_path), "--json"]).output == "[]\n"
    assert CliRunner().invoke(app, ["runs", "--dir", str(tmp_path / "typo")]).exception.code == "not-found"
