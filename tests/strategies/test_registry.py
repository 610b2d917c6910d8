"""One run is one generator at the server, whenever its coordinator is killed and whatever stands between the two."""

import json

import httpx
import pytest
from typer.testing import CliRunner

from medsynx.bundle import new_key, read_bundle
from medsynx.errors import MedsynxError
from strategies import registry
from strategies.cli import app
from strategies.coordinator import CoordinatorFolder, conduct, fail
from strategies.in_process import InProcessFederation
from strategies.registry import Registry
from tests.strategies.test_rounds import handlers


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run handles it."""


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_run_that_was_killed_behind_its_upload_sends_the_same_bundle_again(tmp_path, study, monkeypatch, spoilt):
    sent = []

    def upload(self, bundle):
        sent.append(bundle.read_bytes())
        if len(sent) == 1:
            raise Killed
        return "generator"

    monkeypatch.setattr(Registry, "upload", upload)
    folder, sites = CoordinatorFolder(tmp_path / "coordinator"), InProcessFederation(handlers(tmp_path, study))
    folder.add_study(study)
    new_key(folder.path / "signing.pem")
    config = {"run": "r", "study-digest": study.digest}
    with pytest.raises(Killed):
        conduct(sites, folder.path, config)
    assert folder.result("r") is None
    if spoilt:
        (folder.run("r") / "small.medsynx.zip").write_bytes(sent[0][:-100])
    conduct(sites, folder.path, config)
    result = folder.result("r")
    assert (
        result["generator_id"] == "generator"
        and result["figures"] == read_bundle(sent[1]).json("evaluation.json")["figures"]
    )
    assert (sent[0] == sent[1]) != spoilt, "unless it is not whole: then there is another"


def test_a_run_whose_bundle_the_server_did_not_take_is_delivered_later(tmp_path, study, monkeypatch):
    """The hospitals have paid and nobody is asked again."""
    there = []

    def upload(self, bundle):
        if not there:
            raise MedsynxError("federation-unreachable", "away")
        there.append(bundle.read_bytes())
        return "generator"

    monkeypatch.setattr(Registry, "upload", upload)
    folder, sites = CoordinatorFolder(tmp_path / "coordinator"), InProcessFederation(handlers(tmp_path, study))
    folder.ask(study, "r")
    new_key(folder.path / "signing.pem")
    with pytest.raises(MedsynxError):
        conduct(sites, folder.path, {"run": "r", "study-digest": study.digest})
    assert folder.result("r")["code"] == "federation-unreachable"
    again = ["deliver", "r", "--dir", str(folder.path)]
    assert CliRunner().invoke(app, again).exception.code == "federation-unreachable"
    assert folder.result("r")["status"] == "failed"
    there.append(b"")
    assert CliRunner().invoke(app, again).output == "run r finished; generator generator\n"
    result, progress = folder.result("r"), folder.progress("r")
    assert (result["status"], result["generator_id"], result["missing"]) == ("finished", "generator", {})
    assert result["sites"] == sorted(sites.handlers) and (progress["status"], progress["message"]) == ("finished", None)
    assert there[1] == (folder.run("r") / "small.medsynx.zip").read_bytes()
    for name in ("never", "../r"):
        assert CliRunner().invoke(app, ["deliver", name, "--dir", str(folder.path)]).exception.code == "not-found"
    (folder.run("r") / "small.medsynx.zip").unlink()
    assert CliRunner().invoke(app, again).exception.code == "not-found"


def answering(monkeypatch, *answers):
    """A server, or what is before it, that gives these answers in turn; the last one for ever."""
    left = list(answers)

    def request(client, method, path, **content):
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        return httpx.Response(status, request=httpx.Request(method, "https://server"), **body)

    monkeypatch.setattr(httpx.Client, "request", request)
    monkeypatch.setattr(registry.time, "sleep", lambda seconds: None)


PAGE = (200, {"text": "<html>sign in to the proxy"})


def test_a_server_that_is_away_or_hidden_by_a_proxy_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "b.zip").write_bytes(b"bundle")
    away = [httpx.ConnectError("no"), PAGE, (200, {"json": []}), (200, {"json": {}}), (502, {}), (429, {})]
    answering(monkeypatch, *away, (201, {"json": {"id": "g"}}))
    assert Registry("https://server").upload(tmp_path / "b.zip") == "g"


@pytest.mark.parametrize(
    ("answer", "says"), [(PAGE, "no generator"), ((503, {}), "503"), ((400, {}), "refused the bundle")]
)
def test_one_that_does_not_take_the_bundle_is_named(tmp_path, monkeypatch, answer, says):
    (tmp_path / "b.zip").write_bytes(b"bundle")
    answering(monkeypatch, answer)
    monkeypatch.setattr(registry, "UPLOAD_SECONDS", 300 if answer[0] == 400 else -1)
    with pytest.raises(MedsynxError, match=says) as refused:
        Registry("https://server").upload(tmp_path / "b.zip")
    assert refused.value.code == "federation-unreachable"


def test_a_run_that_failed_for_many_sites_is_told_in_words_that_the_server_takes(tmp_path, monkeypatch):
    from server.runs.schemas import RunIn
    from tests.server.test_api import RUN

    told = []
    monkeypatch.setattr(Registry, "put_run", lambda self, name, status: told.append(status))
    folder = CoordinatorFolder(tmp_path)
    (folder.run("r") / "progress.json").write_text(json.dumps({**RUN, "epsilon": 1.0, "generator_id": None}))
    fail(folder, "r", "quorum-lost", "missing: " + ", ".join(f"site-{k} (budget-exceeded)" for k in range(100)))
    assert RunIn.model_validate(told[0]).status == "failed"
