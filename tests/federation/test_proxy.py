"""A hospital whose only way out is an HTTPS proxy: enrolment, the checks before it and a real SuperNode go through it, and its own parts do not."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from typer.testing import CliRunner

from medsynx.processes import Supervisor
from site_agent.cli import app as site_app
from site_agent.pulse import check
from tests.federation.line import Proxy
from tests.federation.test_membership import Desk, until

pytestmark = [pytest.mark.federation, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def proxy():
    made = Proxy()
    yield made
    made.close()


def test_a_site_behind_a_proxy_enrols_and_takes_part(tmp_path, monkeypatch, proxy):
    with Supervisor() as supervisor:
        desk = Desk(tmp_path, supervisor)
        federation, gate = desk.federation, f"CONNECT localhost:{desk.federation.gate_port}"
        for name in ("HTTPS_PROXY", "HTTP_PROXY"):  # both are what a hospital's machines have
            monkeypatch.setenv(name, proxy.url)
        north = desk.enrol("north")
        assert proxy.asked == {gate}
        done = CliRunner().invoke(site_app, ["preflight", "--dir", str(north), "--json"])
        found = {f["check"]: f for f in json.loads(done.output)}
        assert done.exit_code == 0 and found["proxy"]["says"] == f"through {proxy.url.removeprefix('http://')}"
        desk.admitted("north")
        node = desk.roster()["north"]
        with desk.agent("north"):
            until(lambda: node in federation.control.online(), 60, federation)
            until(lambda: well(north), 60, federation)
            log = north / "logs" / "executor.log"
            until(lambda: "ready" in log.read_text(), 60, federation)
            assert proxy.asked == {gate}, "its two parts speak to each other on this machine"


def well(site):
    with suppress(Exception):
        check(site)
        return True
