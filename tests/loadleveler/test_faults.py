"""Every way in which the stand-in can be told to fail, seen by who calls its commands."""

import json
import subprocess
import time

import pytest

from .llsim.control import FAULTS
from .samples import command_file, submit


def llsubmit(site):
    return site.run("llsubmit", "-", stdin=command_file("hold = user"))


def test_there_is_a_test_for_every_fault(request):
    here = request.path.read_text()
    assert [kind for kind in FAULTS if f'fault("{kind}"' not in here] == []


def test_an_unknown_fault_is_a_mistake(loadleveler):
    with pytest.raises(ValueError, match="submit_fail"):
        loadleveler.fault("submit_fails")


def test_llsubmit_fails_as_often_as_it_is_told(loadleveler):
    loadleveler.fault("submit_fail", count=2, rc=7, text="llsubmit: no more room")
    for _ in range(2):
        done = llsubmit(loadleveler)
        assert (done.returncode, done.stdout) == (7, "")
        assert "no more room" in done.stderr
    assert loadleveler.jobs() == {}
    assert llsubmit(loadleveler).returncode == 0


def test_llsubmit_hangs_and_submits_nothing_when_it_is_killed(loadleveler):
    loadleveler.fault("submit_hang", s=600)
    with pytest.raises(subprocess.TimeoutExpired):
        loadleveler.run("llsubmit", "-", stdin=command_file(), timeout=1)
    assert loadleveler.jobs() == {}


def test_llsubmit_takes_its_time(loadleveler):
    loadleveler.fault("submit_hang", s=0.5)
    before = time.monotonic()
    assert llsubmit(loadleveler).returncode == 0
    assert time.monotonic() - before >= 0.5


def test_llsubmit_succeeds_without_a_word_of_the_id(loadleveler):
    loadleveler.fault("submit_ok_but_no_id")
    done = llsubmit(loadleveler)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(loadleveler.jobs()) == 1


def test_llsubmit_is_noisy_on_stderr_until_that_is_mended(loadleveler):
    loadleveler.fault("submit_noise", text="budget: fine")
    for _ in range(2):
        done = llsubmit(loadleveler)
        assert "budget: fine" in done.stderr
        assert "budget" not in done.stdout
    loadleveler.mend("submit_noise")
    assert "budget" not in llsubmit(loadleveler).stderr


def test_the_central_manager_cannot_be_reached_until_that_is_mended(loadleveler):
    loadleveler.fault("cm_down")
    for command in ("llq", "llcancel", "llclass"):
        assert loadleveler.run(command).returncode == 1
    assert llsubmit(loadleveler).returncode == 0
    loadleveler.mend()
    assert loadleveler.run("llq").returncode == 0


def test_a_site_may_need_its_central_manager_for_submissions(loadleveler):
    loadleveler.configure(quirks={"submit_needs_central_manager": True})
    loadleveler.fault("cm_down", count=1)
    assert llsubmit(loadleveler).returncode == 1
    assert llsubmit(loadleveler).returncode == 0


def test_llq_knows_of_no_jobs_for_once(loadleveler):
    submit(loadleveler, "hold = user")
    loadleveler.fault("llq_empty_once")
    done = loadleveler.run("llq")
    assert done.stdout == "llq: There is currently no job status to report.\n"
    assert "1 job step(s)" in loadleveler.run("llq").stdout


def test_llq_takes_its_time(loadleveler):
    loadleveler.fault("llq_slow", s=0.5)
    before = time.monotonic()
    assert loadleveler.run("llq").returncode == 0
    assert time.monotonic() - before >= 0.5


def test_llq_fails(loadleveler):
    loadleveler.fault("llq_fail", rc=3)
    assert loadleveler.run("llq").returncode == 3
    assert loadleveler.run("llq").returncode == 0


def test_a_cancel_gets_lost(loadleveler):
    job = submit(loadleveler, "hold = user")
    loadleveler.fault("cancel_lost")
    assert loadleveler.run("llcancel", job).returncode == 0
    loadleveler.wait_for(submit(loadleveler, script="true"), "C")
    assert loadleveler.jobs()[f"{job}.0"] == "H"
    loadleveler.run("llcancel", job)
    loadleveler.wait_for(job, "CA")


def test_llcancel_fails(loadleveler):
    job = submit(loadleveler, "hold = user")
    loadleveler.fault("cancel_fail", rc=2)
    assert loadleveler.run("llcancel", job).returncode == 2
    assert loadleveler.run("llcancel", job).returncode == 0


@pytest.mark.parametrize(
    ("settings", "states"),
    [
        ({}, ["XP", "X", "H"]),
        ({"action_on_max_reject": "SYSHOLD"}, ["XP", "X", "S"]),
        ({"action_on_max_reject": "CANCEL"}, ["XP", "X", "CA"]),
        ({"max_job_reject": 1}, ["R", "CP", "C"]),
    ],
)
def test_a_machine_rejects_a_job(loadleveler, settings, states):
    loadleveler.configure(**settings)
    loadleveler.fault("reject")
    job = submit(loadleveler, script="true")
    loadleveler.wait_for(job, states[-1])
    assert loadleveler.states(job)[-3:] == states


def test_the_starter_fails(loadleveler):
    loadleveler.fault("start_fail")
    loadleveler.wait_for(submit(loadleveler), "SX")


def test_output_appears_some_time_after_the_end(loadleveler, tmp_path):
    loadleveler.fault("output_lag", count=1, s=0.5)
    output = tmp_path / "out"
    job = submit(loadleveler, f"output = {output}", script="echo late")
    loadleveler.wait_for(job, "C")
    ended = loadleveler.steps()[0]["completed"]
    deadline = time.monotonic() + 30
    while not output.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert time.time() - ended >= 0.5
    assert output.read_text() == "late\n"


def test_the_event_log_tells_what_was_called_and_what_it_said(loadleveler):
    done = llsubmit(loadleveler)
    loadleveler.run("llq", "-X", "cluster1", "-j", "1")
    [call] = loadleveler.commands("llsubmit")
    assert call["argv"] == ["llsubmit", "-"]
    assert (call["out"], call["err"], call["code"]) == (done.stdout, done.stderr, 0)
    assert loadleveler.commands("llq")[0]["argv"] == ["llq", "-X", "cluster1", "-j", "1"]
    lines = (loadleveler.directory / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == loadleveler.events()


@pytest.mark.parametrize(
    "command", [["llq", "-z"], ["llq", "-f", "%nonsense"], ["llcancel", "-l"], ["llclass", "-lx"]]
)
def test_unknown_options_are_refused(loadleveler, command):
    submit(loadleveler, "hold = user")
    done = loadleveler.run(*command)
    assert (done.returncode, done.stdout) == (1, "")


def test_commands_without_a_site_say_what_to_do(tmp_path, loadleveler):
    done = loadleveler.run("llq", env={"LLSIM_SPOOL": str(tmp_path / "nowhere")})
    assert done.returncode == 1
    assert "llsimctl start" in done.stderr
