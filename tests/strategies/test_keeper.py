"""The keeper's decisions, with Flower played by a few lines: what is started, started again, given up. Real processes: ``tests/federation``."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import threading

import httpx
import pytest

from medsynx.errors import MedsynxError
from medsynx.processes import Supervisor
from onehost.certificates import make_tls
from strategies.coordinator import CoordinatorFolder
from strategies.keeper import LIMIT, Keeper
from strategies.lock import alone, holder
from strategies.registry import Registry
from strategies.runtime import Runtime
from strategies.service import follow, only, require_service, stop


class Flower:
    """Stands for the SuperLink's Control API."""

    def __init__(self) -> None:
        self.runs: dict[int, str] = {}
        self.away = False

    def start(self, digest: str, run: str) -> int:
        if self.away:
            raise httpx.ConnectError("away")
        self.runs[len(self.runs) + 1] = "running"
        return len(self.runs)

    def status(self, number: int) -> tuple[str, str]:
        return self.runs[number], ""

    def stop(self, number: int) -> None:
        self.runs[number] = "finished"


@pytest.fixture
def kept(tmp_path, study):
    folder, flower = CoordinatorFolder(tmp_path), Flower()
    folder.ask(study, "r")
    return folder, flower, Keeper(folder, flower)


def dies(folder: CoordinatorFolder, flower: Flower) -> None:
    """A ServerApp takes the run's lock, as in ``server_app.py``, and ends without a result."""
    with alone(folder.run("r"), max(flower.runs)):
        pass


def dies_until_it_is_failed(folder: CoordinatorFolder, flower: Flower, keeper: Keeper) -> None:
    """Behind the same exchange each time."""
    for _ in range(3 * LIMIT):
        keeper.tend()
        if folder.result("r"):
            break
        dies(folder, flower)
    assert len(flower.runs) == LIMIT + 1 and folder.result("r")["code"] == "coordinator-failed"


def test_a_run_is_started_once_and_again_as_soon_as_its_conductor_dies(kept):
    folder, flower, keeper = kept
    keeper.tend()
    keeper.tend()
    assert list(flower.runs) == [1], "it has not begun yet: it is waited for"
    with alone(folder.run("r"), 1):
        keeper.tend()
        assert list(flower.runs) == [1], "it lives"
    keeper.tend()
    assert flower.runs == {1: "finished", 2: "running"} and len(folder.attempts("r")) == 2
    assert folder.attempts("r")[1]["why"] == "its ServerApp ended without a result"


def test_one_that_dies_behind_the_same_exchange_again_and_again_is_failed(kept):
    folder, flower, keeper = kept
    dies_until_it_is_failed(folder, flower, keeper)
    keeper.tend()
    assert len(flower.runs) == LIMIT + 1 and folder.open_runs() == []


def test_one_that_gets_further_each_time_is_not(kept, monkeypatch):
    folder, flower, keeper = kept
    monkeypatch.setattr(folder, "exchanges", lambda name: len(flower.runs))
    for _ in range(3 * LIMIT):
        keeper.tend()
        dies(folder, flower)
    assert len(flower.runs) == 3 * LIMIT and folder.result("r") is None


def test_a_superlink_that_is_away_is_waited_for(kept):
    folder, flower, keeper = kept
    flower.away = True
    keeper.tend()
    assert flower.runs == {} and folder.attempts("r") == []
    flower.away = False
    keeper.tend()
    assert list(flower.runs) == [1]


def test_a_full_disk_does_not_start_a_run_again_at_each_look(kept, monkeypatch):
    folder, flower, keeper = kept
    with monkeypatch.context() as full:
        full.setattr(CoordinatorFolder, "add_attempt", refuse)
        for _ in range(5):
            keeper.tend()
        assert list(flower.runs) == [1], "it is going on, though nothing could be noted"
    dies(folder, flower)
    keeper.tend()
    assert list(flower.runs) == [1, 2] and [a["flower"] for a in folder.attempts("r")] == ["1", "2"]


def test_a_run_that_could_not_be_noted_is_stopped_like_any_other(kept, monkeypatch):
    folder, flower, keeper = kept
    monkeypatch.setattr(CoordinatorFolder, "add_attempt", refuse)
    keeper.tend()
    (folder.run("r") / "stop").touch()
    keeper.tend()
    assert flower.runs == {1: "finished"} and folder.result("r")["code"] == "run-stopped"


def test_a_full_disk_allows_no_more_starts(kept, monkeypatch):
    folder, flower, keeper = kept
    monkeypatch.setattr(CoordinatorFolder, "add_attempt", refuse)
    dies_until_it_is_failed(folder, flower, keeper)


def refuse(*what):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_two_cannot_conduct_one_run_and_a_killed_one_lets_go(tmp_path, monkeypatch):
    monkeypatch.setattr("strategies.lock.LOOK_SECONDS", 0.5)
    (tmp_path / "r").mkdir()
    script = f"""
from pathlib import Path; from strategies.lock import alone; import time
with alone(Path({str(tmp_path / "r")!r}), 7):
    print('held', flush=True); time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), alone(tmp_path / "r", 8):
            pass
        told, living = holder(tmp_path / "r")
        assert living and told == {"flower": "7", "pid": other.pid}, "who was refused leaves what is written there"
        other.kill()
        other.wait()
    assert holder(tmp_path / "r") == ({"flower": "7", "pid": other.pid}, False)


def test_what_is_asked_wrongly_is_refused_by_name(kept, study):
    folder = kept[0]

    def code(call) -> str:
        with pytest.raises(MedsynxError) as caught:
            call()
        return caught.value.code

    assert code(lambda: folder.ask(study, "r")) == "run-exists"
    assert code(lambda: folder.ask(study, "../r")) == "request-invalid"
    assert code(lambda: require_service(folder.path)) == "coordinator-down"
    assert code(lambda: follow(folder, "r", print)) == "coordinator-down"
    assert code(lambda: stop(folder, "other")) == code(lambda: stop(folder, "../r")) == "not-found"
    with only(folder.path):
        assert code(lambda: only(folder.path).__enter__()) == "coordinator-busy"
        require_service(folder.path)


def test_who_asks_for_the_service_makes_nothing_and_is_not_taken_for_it(tmp_path):
    with pytest.raises(MedsynxError, match="no coordinator serves"):
        require_service(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()
    with only(tmp_path / "c"):
        pass
    with (tmp_path / "c" / "service.lock").open() as another:
        fcntl.flock(another, fcntl.LOCK_SH)  # asks at this moment too
        with pytest.raises(MedsynxError, match="no coordinator serves"):
            require_service(tmp_path / "c")


def test_a_service_that_was_restarted_often_does_not_fail_its_runs(kept):
    folder, flower, _ = kept
    for _ in range(3 * LIMIT):
        Keeper(folder, flower).tend()
        dies(folder, flower)
    assert len(flower.runs) == 3 * LIMIT and folder.result("r") is None


@pytest.mark.parametrize("file", ["request.json", "attempts.json"])
def test_a_run_whose_files_are_spoilt_is_failed_and_the_others_go_on(kept, study, file):
    folder, flower, keeper = kept
    folder.ask(study, "z")
    (folder.run("r") / file).write_text("" if file == "request.json" else '{"starts": [{}]}')
    keeper.tend()
    assert folder.result("r")["code"] == "coordinator-failed" and folder.open_runs() == ["z"]
    assert list(flower.runs) == [1] and len(folder.attempts("z")) == 1


def test_a_request_is_there_whole_or_not_at_all(tmp_path, study, monkeypatch):
    folder = CoordinatorFolder(tmp_path)
    monkeypatch.setattr("strategies.coordinator.os.link", lambda part, target: 1 / 0)  # it is killed just before
    with pytest.raises(ZeroDivisionError):
        folder.ask(study, "r")
    assert folder.open_runs() == []
    monkeypatch.undo()
    folder.ask(study, "r")
    assert folder.request("r") == {"study": study.digest}
    assert [f.name for f in folder.run("r").iterdir()] == ["request.json"]


@pytest.mark.parametrize("trouble", ["answer", "ca"])
def test_a_server_that_answers_nonsense_does_not_stop_a_run(tmp_path, monkeypatch, trouble, caplog):
    def asked(client, *args, **content):
        assert client.timeout.read == 5, "a run stands still meanwhile"
        return httpx.Response(200, text="<html>", request=httpx.Request("PUT", "https://server"))

    monkeypatch.setattr(httpx.Client, "request", asked)
    Registry("https://server", ca=str(tmp_path / "gone") if trouble == "ca" else None).put_run("r", {})
    assert "did not take its progress" in caplog.text


def test_a_lock_that_stays_held_is_left_for_the_next_look(kept, monkeypatch, caplog):
    folder, flower, _ = kept
    monkeypatch.setattr("strategies.keeper.LEAVE_SECONDS", 0.3)
    monkeypatch.setattr("strategies.keeper.os.kill", lambda pid, number: None)
    keeper = Keeper(folder, flower)
    with alone(folder.run("r"), 1):
        keeper.tend()
        (folder.run("r") / "stop").touch()
        keeper.tend()
        assert flower.runs == {} and folder.result("r") is None and "does not let go" in caplog.text
    keeper.tend()
    assert folder.result("r")["code"] == "run-stopped"


def test_whoever_only_looks_at_a_lock_keeps_nobody_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr("strategies.lock.LOOK_SECONDS", 60)
    looker = (tmp_path / "lock").open("a+")
    fcntl.flock(looker, fcntl.LOCK_SH)
    assert holder(tmp_path) == (None, False), "nor is taken for who holds it"
    threading.Timer(0.2, looker.close).start()
    with alone(tmp_path, 7):
        assert holder(tmp_path)[1]


def test_the_folder_is_its_owners_alone(tmp_path, study):
    made, found = tmp_path / "made", tmp_path / "found"
    CoordinatorFolder(made).ask(study, "r")
    found.mkdir(mode=0o755)
    with only(found), Supervisor() as supervisor:
        runtime = Runtime(supervisor, found, found / "service", make_tls(tmp_path / "tls"), ("127.0.0.1", 1))
        runtime._start = lambda *args: None
        runtime.start()
        assert [f.stat().st_mode & 0o777 for f in (made, found, found / "service")] == [0o700] * 3
