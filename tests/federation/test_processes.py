"""Nothing is left behind: not after a normal end, not after Ctrl-C, not after kill -9 of the supervisor."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from medsynx.processes import Supervisor

SCRIPT = """
import sys, time
from pathlib import Path
from medsynx.processes import Supervisor
child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)  # {tag}']); time.sleep(300)  # {tag}"
with Supervisor() as s:
    s.start("one", [sys.executable, "-c", child], Path(sys.argv[1]) / "log")
    print("up", flush=True)
    try:
        time.sleep(300)
    except KeyboardInterrupt:
        pass
"""


def living(tag: str) -> list[str]:
    """Processes with the tag on their command line, but for the supervisor's own script."""
    found = subprocess.run(["pgrep", "-f", tag], capture_output=True, text=True).stdout.split()
    return [p for p in found if "Supervisor" not in cmdline(p)]


def cmdline(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as f:
            return f.read()
    except OSError:
        return "Supervisor"  # gone in between


def so(what: Callable[[], object], seconds: float = 60) -> bool:
    """Whether something is so, within seconds."""
    until = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < until:
        time.sleep(0.05)
    return bool(found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_die_with_their_supervisor(tmp_path, number):
    tag = f"t{secrets.token_hex(8)}"
    script = SCRIPT.replace("{tag}", tag)
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline().strip() == "up"
            assert so(lambda: ["subprocess" in cmdline(p) for p in living(tag)].count(False) == 1), "the child's own"
            assert len(living(tag)) == 2
            parent.send_signal(number)
            parent.wait(60)
        finally:
            parent.kill()
    if number == signal.SIGINT:
        assert so(lambda: not living(tag))
    else:  # the kernel kills the group's leader; what it started itself is its own to watch (Flower's processes do)
        assert so(lambda: not [p for p in living(tag) if "subprocess" in cmdline(p)])
        for p in living(tag):
            os.kill(int(p), signal.SIGKILL)


def test_a_service_that_dies_is_restarted_or_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("medsynx.processes.RESTART_SECONDS", 0.1)
    with Supervisor() as supervisor:
        supervisor.start("once", [sys.executable, "-c", "print('bye')"], tmp_path / "once.log")
        supervisor.start("again", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "again.log", restart=True)
        assert so(lambda: supervisor.tend() or (supervisor.ended() and supervisor.services["again"].restarts))
        assert supervisor.ended() == ["once"] and supervisor.tail("once") == ["bye"]
        assert supervisor.services["again"].restarts >= 1
        service = supervisor.services["again"]
        assert 0.2 <= service.pause <= 20, "a service that keeps dying is not hammered at"
        service.started -= 100  # it lived for long this time
        service.process.kill()
        service.process.wait()
        service.died = None
        supervisor.tend()
        assert service.pause == 0.1


def test_a_service_that_dies_at_once_again_and_again_is_given_up(tmp_path):
    with Supervisor() as supervisor:
        command = [sys.executable, "-c", "print('port taken')"]
        supervisor.start("link", command, tmp_path / "log", restart=True, pause=0.01, give_up=2)
        assert so(lambda: supervisor.tend() or supervisor.ended())
        assert supervisor.ended() == ["link"] and supervisor.services["link"].restarts == 2
        assert supervisor.tail("link") == ["port taken"] * 3


def test_a_plain_kill_ends_a_service_whose_shell_ignores_interrupts(tmp_path):
    """As in ``medsynx coordinator serve &`` in a script."""
    script = """
import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)
from medsynx.processes import end_when_killed
end_when_killed(); print('up', flush=True); time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        assert process.wait(60) != 0 and b"KeyboardInterrupt" in process.stderr.read()


def test_a_second_kill_does_not_leave_processes_behind(tmp_path):
    """The service takes its time to end its processes; whoever is impatient must not cut that short."""
    script = """
import sys, time
from pathlib import Path
from medsynx import processes
from medsynx.processes import Supervisor, end_when_killed
processes.TERM_SECONDS = 60
end_when_killed()
end = "lambda *a: (print('ending', flush=True), time.sleep(1), 1/0)"
child = f"import signal, time; signal.signal(signal.SIGTERM, {end}); print('up', flush=True); time.sleep(300)"
log = Path(sys.argv[1]) / "log"
with Supervisor() as s:
    s.start("stubborn", [sys.executable, "-c", child], log)
    while not log.read_text(): time.sleep(0.02)
    print(s.pids()["stubborn"], flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        parent.stdout.readline()
        parent.terminate()
        assert so(lambda: "ending" in (tmp_path / "log").read_text())
        parent.terminate()
        parent.wait(60)
    assert "ZeroDivisionError" in (tmp_path / "log").read_text(), "it ended in its own time"


def test_a_log_is_cut_while_it_is_written_and_its_tail_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("medsynx.processes.LOG_BYTES", 1000)
    log, lines = tmp_path / "log", [f"line {k}" for k in range(300)]
    with Supervisor() as supervisor, log.open("ab", buffering=0) as writer:
        supervisor.start("part", ["sleep", "60"], log)
        for k, line in enumerate(lines):
            writer.write(f"{line}\n".encode())
            supervisor.tend()
            assert supervisor.tail("part", 3) == lines[max(0, k - 2) : k + 1]
        assert {f.name: f.stat().st_size < 1020 for f in tmp_path.iterdir()} == {"log": True, "log.1": True}
        (tmp_path / "log.1").unlink()
        (tmp_path / "log.1").mkdir()
        writer.write(b"x" * 2000)
        supervisor.tend()
        assert log.stat().st_size > 2000, "what cannot be kept is not thrown away"
        (tmp_path / "log.1").rmdir()
        supervisor.start("again", ["true"], log)
        assert log.stat().st_size == 0 and supervisor.tail("again", 1) == ["x" * 2000]
