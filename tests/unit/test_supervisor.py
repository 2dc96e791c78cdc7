"""The supervisor: a driver that dies is started again, one that must stop is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.supervisor import STOPPED_EXIT, supervise

DRIVER = """
import os, signal, sys
log, endings = sys.argv[1], sys.argv[2].split(",")
with open(log, "a") as file:
    file.write(" ".join(sys.argv[3:]) + "\\n")
ending = endings[len(open(log).read().splitlines()) - 1]
if ending == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(ending))
"""


def supervised(tmp_path: Path, endings: str, *arguments: str, restarts: int = 3) -> int:
    program = (sys.executable, "-c", DRIVER, str(tmp_path / "log"), endings)
    return supervise(arguments, tmp_path / "run", restarts, program=program)


def lives(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text(encoding="utf-8").splitlines()


def test_a_driver_that_dies_goes_on_in_the_same_directory_with_resume(tmp_path, capfd):
    assert supervised(tmp_path, "kill,75,70,0", "train", "trainer.steps=3", "run_dir=other") == 0
    first = f'train trainer.steps=3 run_dir="{tmp_path / "run"}"'
    assert lives(tmp_path) == [first, *[f"{first} resume=auto"] * 3]
    said = capfd.readouterr().err
    assert "the driver was ended by SIGKILL; it goes on in" in said
    assert "(restart 1 of 3)" in said and "(restart 3 of 3)" in said
    assert "lost a pool that it needs" in said and "nobody foresaw" in said


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("pipeline.supervisor._PAUSE_S", 0.0)


def test_what_cannot_start_again_at_once_is_tried_again(tmp_path, capfd):
    assert supervised(tmp_path, "kill,2,0", "train") == 0
    assert len(lives(tmp_path)) == 3
    assert "could not start again" in capfd.readouterr().err


def test_a_run_that_stopped_itself_is_a_users_error_and_stays_stopped_also_after_a_death(tmp_path):
    """A judge whose budget is spent would get another one with every life."""
    assert supervised(tmp_path, f"kill,{STOPPED_EXIT}", "train") == 2
    assert len(lives(tmp_path)) == 2


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_a_driver_that_stopped_for_a_reason_is_not_started_again(tmp_path, code):
    assert supervised(tmp_path, str(code), "train", "resume=auto") == code
    assert lives(tmp_path) == [f'train run_dir="{tmp_path / "run"}" resume=auto']


def test_after_the_last_restart_it_says_how_to_go_on_by_hand(tmp_path, capfd):
    assert supervised(tmp_path, "kill,kill,kill", "train", restarts=2) == 128 + signal.SIGKILL
    assert len(lives(tmp_path)) == 3
    said = capfd.readouterr().err
    assert "none of 2 restarts is left" in said
    assert f"Resume by hand: resume=auto run_dir={tmp_path / 'run'}" in said


LEAVING = """
import os, signal, subprocess, sys
log = sys.argv[1]
if os.path.exists(log):
    sys.exit(0)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(log, "w").write(str(child.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans come to the supervisor on Linux")
def test_nothing_of_a_dead_driver_is_left_when_the_next_one_begins(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.supervisor._LEAVING_TIMEOUT_S", 0.2)
    program = (sys.executable, "-c", LEAVING, str(tmp_path / "log"))
    assert supervise([], tmp_path / "run", 1, program=program) == 0
    assert not psutil.pid_exists(int((tmp_path / "log").read_text()))


SUPERVISOR = """
import sys
from pathlib import Path
from pipeline.supervisor import supervise
program = (sys.executable, "-c", sys.argv[1])
sys.exit(supervise([], Path("run"), 3, program=program))
"""
WAITING = """
import signal, sys, time
from pipeline.supervisor import die_with_parent
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: sys.exit(130))
die_with_parent()
print("ready", flush=True)
time.sleep(60)
"""


def waiting_pair() -> tuple[subprocess.Popen[str], psutil.Process]:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, WAITING], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None and supervisor.stdout.readline() == "ready\n"
    (driver,) = psutil.Process(supervisor.pid).children()
    return supervisor, driver


@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_is_passed_on_and_ends_both(request_to_stop):
    supervisor, driver = waiting_pair()
    supervisor.send_signal(request_to_stop)
    assert supervisor.wait(timeout=20) == 130
    assert not driver.is_running()


def test_what_a_terminal_sends_to_all_reaches_the_driver_from_its_supervisor_alone():
    supervisor, driver = waiting_pair()
    try:
        assert os.getpgid(driver.pid) != os.getpgid(supervisor.pid)
    finally:
        supervisor.terminate()
        supervisor.wait(timeout=20)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
def test_a_driver_does_not_outlive_a_supervisor_that_was_killed():
    supervisor, driver = waiting_pair()
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    deadline = time.monotonic() + 20
    while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
