"""What happens to jobs, seen by the commands and in the event log, with a real negotiator."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .samples import command_file, submit
from .standin import HERE, StandIn

WAITS_FOR_SIGNALS = """
for name in TERM USR1 XCPU; do trap "echo $name; exit 3" $name; done
echo started
while :; do sleep 0.05; done
"""


def until(condition, timeout=30):
    """Wait for `condition` and return what it gives."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def has_text(path, text):
    return path.exists() and text in path.read_text()


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def trapping(loadleveler, tmp_path):
    """Submit a job that tells which signal ended it; return its id and its output."""

    def submit_trapping(*directives):
        output = tmp_path / "trapping.out"
        job = submit(loadleveler, f"output = {output}", *directives, script=WAITS_FOR_SIGNALS)
        until(lambda: has_text(output, "started"))
        return job, output

    return submit_trapping


def test_a_job_runs_and_leaves_its_output(loadleveler, tmp_path):
    script = "echo $LOADL_STEP_ID; echo oops >&2"
    files = [f"output = {tmp_path}/$(jobid).out", f"error = {tmp_path}/$(jobid).err"]
    job = submit(loadleveler, *files, script=script)
    loadleveler.wait_for(job, "C")
    assert loadleveler.states(job) == ["I", "P", "ST", "R", "CP", "C"]
    assert (tmp_path / "1.out").read_text() == f"{job}.0\n"
    assert (tmp_path / "1.err").read_text() == "oops\n"


def test_output_and_error_may_be_one_file(loadleveler, tmp_path):
    files = [f"output = {tmp_path}/log", "error = $(output)"]
    loadleveler.wait_for(submit(loadleveler, *files, script="echo a; echo b >&2; echo c"), "C")
    assert (tmp_path / "log").read_text() == "a\nb\nc\n"


def test_a_step_has_loadlevelers_variables_and_else_only_what_it_asked_for(
    loadleveler, tmp_path, monkeypatch
):
    monkeypatch.setenv("OF_THE_SUBMITTER", "yes")

    def environment_of(*directives):
        output = tmp_path / "env"
        layout = ["job_name = named", "class = short", "initialdir = /", f"output = {output}"]
        job = submit(loadleveler, *layout, *directives, script="env")
        loadleveler.wait_for(job, "C")
        return dict(line.split("=", 1) for line in output.read_text().splitlines())

    bare = environment_of()
    assert bare["PATH"] == "/usr/local/bin:/usr/bin:/bin"
    assert {"HOME", "USER", "SHELL"} <= set(bare)
    assert "OF_THE_SUBMITTER" not in bare
    loadls = {name: value for name, value in bare.items() if name.startswith("LOADL")}
    assert Path(loadls.pop("LOADL_HOSTFILE")).read_text() == "n01\n"
    assert loadls == {
        "LOADLBATCH": "yes",
        "LOADL_STEP_ID": "submit1.example.org.1.0",
        "LOADL_JOB_NAME": "named",
        "LOADL_STEP_NAME": "0",
        "LOADL_STEP_CLASS": "short",
        "LOADL_STEP_INITDIR": "/",
        "LOADL_TOTAL_TASKS": "1",
        "LOADL_PROCESSOR_LIST": "n01",
    }
    copied = environment_of("environment = COPY_ALL; MORE=1")
    assert (copied["OF_THE_SUBMITTER"], copied["MORE"]) == ("yes", "1")
    assert copied["PATH"] == os.environ["PATH"]
    assert environment_of("environment = $OF_THE_SUBMITTER")["OF_THE_SUBMITTER"] == "yes"


def test_paths_are_relative_to_initialdir_which_is_where_llsubmit_ran(loadleveler, tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    text = command_file("output = out", script="pwd")
    loadleveler.run("llsubmit", "-", stdin=text, cwd=tmp_path / "here")
    (tmp_path / "here" / "job.cmd").write_text(
        command_file("output = out", "initialdir = ../there")
    )
    loadleveler.wait_for("1", "C")
    assert (tmp_path / "here" / "out").read_text() == f"{tmp_path / 'here'}\n"
    loadleveler.run("llsubmit", "job.cmd", cwd=tmp_path / "here")
    loadleveler.wait_for("2", "R")
    assert (tmp_path / "there" / "out").exists()


def test_the_command_file_may_be_deleted_at_once(loadleveler, tmp_path):
    file = tmp_path / "job.cmd"
    file.write_text(command_file(script=f"touch {tmp_path}/ran"))
    assert loadleveler.run("llsubmit", str(file)).returncode == 0
    file.unlink()
    loadleveler.wait_for("1", "C")
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("shebang", "directives", "script"),
    [
        (f"#!{sys.executable}", [], "import sys; print('by', 'python')"),
        ("# no first line of its own", ["shell = /bin/bash"], "[[ 1 == 1 ]] && echo by python"),
        ("", ["executable = /bin/echo", "arguments = by  python"], "not run"),
    ],
)
def test_what_runs_a_job(loadleveler, tmp_path, shebang, directives, script):
    output = tmp_path / "out"
    layout = [*directives, f"output = {output}"]
    job = submit(loadleveler, *layout, shebang=shebang, script=script)
    loadleveler.wait_for(job, "C")
    assert output.read_text() == "by python\n"


def test_the_exit_code_is_in_the_completion_code(loadleveler):
    loadleveler.wait_for(submit(loadleveler, script="exit 3"), "C")
    assert "Completion Code: 768" in loadleveler.run("llq", "-l", "1").stdout


def test_concurrent_submissions_get_numbers_of_their_own(loadleveler):
    def submitted(_):
        return loadleveler.run("llsubmit", "-", stdin=command_file("hold = user")).stdout

    with ThreadPoolExecutor(12) as pool:
        jobs = [out.split('"')[1] for out in pool.map(submitted, range(12))]
    assert sorted(jobs) == sorted(f"submit1.example.org.{number}" for number in range(1, 13))


def test_the_commands_need_nothing_but_path_and_spool(loadleveler):
    path = os.pathsep.join([str(HERE / "bin"), str(Path(sys.executable).parent), "/usr/bin"])
    environment = {"PATH": path, "LLSIM_SPOOL": str(loadleveler.directory)}
    for command in ("llq", "llclass", "llstatus"):
        done = subprocess.run(
            [command], env=environment, cwd="/", capture_output=True, text=True, timeout=30
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_cancelling_a_running_job_sends_sigterm(loadleveler, trapping):
    job, output = trapping()
    done = loadleveler.run("llcancel", job)
    assert done.returncode == 0
    assert done.stdout == "llcancel: Cancel command has been sent to the central manager.\n"
    loadleveler.wait_for(job, "RM")
    assert has_text(output, "TERM")
    assert loadleveler.states(job)[-3:] == ["R", "RP", "RM"]


@pytest.mark.parametrize("form", ["submit1.example.org.1", "submit1.1.0", "1"])
def test_a_waiting_job_is_cancelled_by_any_form_of_its_id(loadleveler, form):
    job = submit(loadleveler, "hold = user")
    assert loadleveler.run("llcancel", form).returncode == 0
    loadleveler.wait_for(job, "CA")


def test_llcancel_takes_many_ids_and_users_and_tells_unknown_ones(loadleveler):
    jobs = [submit(loadleveler, "hold = user") for _ in range(3)]
    done = loadleveler.run("llcancel", jobs[0], "1000")
    assert done.returncode == 0
    assert "1000" in done.stderr
    owner = loadleveler.steps()[0]["owner"]
    assert loadleveler.run("llcancel", "-u", owner).returncode == 0
    for job in jobs:
        loadleveler.wait_for(job, "CA")
    assert loadleveler.run("llcancel", "1000").returncode == 1


def test_a_stubborn_job_is_killed_after_a_while(tmp_path):
    with StandIn(tmp_path, kill_grace_s=0.3) as site:
        script = f"trap '' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done"
        job = submit(site, script=script)
        until(lambda: (tmp_path / "up").exists())
        site.run("llcancel", job)
        site.wait_for(job, "RM")


def test_a_cancel_may_take_its_time(tmp_path):
    with StandIn(tmp_path, cancel_latency_s=3600) as site:
        job = submit(site)
        site.wait_for(job, "R")
        assert site.run("llcancel", job).returncode == 0
        site.wait_for(submit(site, script="true"), "C")
        assert site.jobs()[f"{job}.0"] == "R"


def test_holds_keep_jobs_from_running_until_they_are_released(loadleveler):
    job = submit(loadleveler, "hold = user")
    loadleveler.wait_for(job, "H")
    loadleveler.run("llhold", "-s", job)
    loadleveler.wait_for(job, "HS")
    loadleveler.run("llhold", "-r", job)
    loadleveler.wait_for(job, "S")
    loadleveler.run("llhold", "-r", "-s", job)
    loadleveler.wait_for(job, "R")


def test_a_hold_reaches_a_running_job_when_it_would_wait_again(loadleveler):
    job = submit(loadleveler)
    loadleveler.wait_for(job, "R")
    loadleveler.hold(job)
    loadleveler.wait_for(submit(loadleveler, script="true"), "C")
    assert loadleveler.jobs()[f"{job}.0"] == "R"
    loadleveler.vacate(job)
    loadleveler.wait_for(job, "H")
    loadleveler.release(job)
    loadleveler.wait_for(job, "R")


def test_the_soft_limit_sends_sigxcpu_and_the_hard_one_ends_the_job(loadleveler, trapping):
    job, output = trapping("wall_clock_limit = 3600,2")
    loadleveler.wait_for(job, "C")
    assert has_text(output, "XCPU")
    assert "Completion Code: 768" in loadleveler.run("llq", "-l", job).stdout


def test_the_hard_limit_removes_a_job(loadleveler, trapping):
    job, _ = trapping("wall_clock_limit = 2,2")
    loadleveler.wait_for(job, "RM")
    signals = [event["signal"] for event in loadleveler.events() if event["event"] == "signal"]
    assert signals == ["SIGTERM"]
    assert loadleveler.states(job)[-2:] == ["RP", "RM"]


def test_clocks_of_a_site_may_run_faster(tmp_path):
    with StandIn(tmp_path, time_scale=10000.0) as site:
        site.wait_for(submit(site, "wall_clock_limit = 1:00:00"), "RM")


def test_a_vacated_job_gets_sigusr1_and_runs_again(loadleveler, trapping):
    job, _ = trapping("restart = yes")
    loadleveler.vacate(job)
    until(lambda: loadleveler.states(job).count("R") == 2)
    states = loadleveler.states(job)
    assert states[4:] == ["VP", "V", "I", "P", "ST", "R"]
    signals = [event["signal"] for event in loadleveler.events() if event["event"] == "signal"]
    assert signals == ["SIGUSR1"]


def test_a_vacated_job_that_must_not_be_restarted_is_cancelled(loadleveler, trapping):
    job, output = trapping("restart = no")
    loadleveler.vacate(job)
    loadleveler.wait_for(job, "CA")
    assert has_text(output, "TERM")


def test_restart_is_the_default(loadleveler):
    job = submit(loadleveler)
    loadleveler.wait_for(job, "R")
    loadleveler.vacate(job)
    until(lambda: loadleveler.states(job).count("R") == 2)


@pytest.mark.parametrize(("restart", "end"), [("yes", "R"), ("no", "RM")])
def test_a_machine_that_crashes_takes_its_jobs_with_it(loadleveler, restart, end):
    job = submit(loadleveler, f"restart = {restart}")
    loadleveler.wait_for(job, "R")
    [step] = loadleveler.steps()
    assert step["hosts"] == ["n01"]
    loadleveler.crash_node("n01")
    until(lambda: not is_alive(step["pid"]))
    until(lambda: loadleveler.states(job)[4:] in (["RM"], ["I", "P", "ST", "R"]))
    loadleveler.wait_for(job, end)
    if restart == "yes":
        assert loadleveler.steps()[0]["hosts"] == ["n02"]
    assert "n01                       Avail     0   0 Down" in loadleveler.run("llstatus").stdout
    assert "n01#" in loadleveler.run("llstatus", "-R").stdout
    loadleveler.recover_node("n01")
    until(lambda: "Down" not in loadleveler.run("llstatus").stdout)


def test_a_drained_machine_starts_nothing_more(tmp_path):
    with StandIn(tmp_path, nodes=1) as site:
        running = submit(site)
        site.wait_for(running, "R")
        site.drain_node("n01")
        until(lambda: "Drain" in site.run("llstatus").stdout)
        waiting = submit(site)
        until(lambda: "Not enough resources" in site.run("llq", "-s", waiting).stdout)
        assert site.jobs() == {f"{running}.0": "R", f"{waiting}.0": "I"}
        site.recover_node("n01")
        site.wait_for(waiting, "R")


def test_jobs_wait_for_room(tmp_path):
    with StandIn(tmp_path, nodes=1, cpus=2) as site:
        first, second = [submit(site, "resources = ConsumableCpus(2)") for _ in range(2)]
        site.wait_for(first, "R")
        until(lambda: "Not enough resources to start now." in site.run("llq", "-s", second).stdout)
        site.cancel(first)
        site.wait_for(second, "R")


def test_an_impossible_job_waits_for_ever_and_llq_says_why(loadleveler):
    job = submit(loadleveler, "resources = ConsumableMemory(1 tb)")
    until(lambda: "can never run" in loadleveler.run("llq", "-s", job).stdout)
    assert loadleveler.jobs()[f"{job}.0"] == "I"


def test_a_parallel_job_knows_its_hosts(loadleveler, tmp_path):
    layout = ["job_type = parallel", "node = 2", "tasks_per_node = 2"]
    script = "cat $LOADL_HOSTFILE; echo $LOADL_TOTAL_TASKS"
    job = submit(loadleveler, *layout, f"output = {tmp_path}/out", script=script)
    loadleveler.wait_for(job, "C")
    assert (tmp_path / "out").read_text().split() == ["n01", "n01", "n02", "n02", "4"]


def test_steps_wait_for_their_dependencies(loadleveler, tmp_path):
    text = f"""#!/bin/sh
# @ output = {tmp_path}/$(step_name)
# @ step_name = good
# @ queue
# @ step_name = next
# @ dependency = (good == 0)
# @ queue
# @ step_name = never
# @ dependency = (good != 0)
# @ queue
case $LOADL_STEP_NAME in good) sleep 0.2;; next) echo next;; esac
"""
    job = loadleveler.run("llsubmit", "-", stdin=text).stdout.split('"')[1]
    loadleveler.wait_for(f"{job}.1", "C")
    loadleveler.wait_for(f"{job}.2", "NR")
    assert loadleveler.states(f"{job}.1")[:2] == ["I", "NQ"]
    assert (tmp_path / "next").read_text() == "next\n"


def test_a_job_is_deferred_until_its_startdate(loadleveler):
    job = submit(loadleveler, "startdate = 01/01/2060 05:00")
    loadleveler.wait_for(job, "D")
    past = submit(loadleveler, "startdate = 09/27/06 05:00")
    loadleveler.wait_for(past, "R")


def test_a_class_may_queue_only_so_many_jobs_of_a_user(tmp_path):
    classes = {"No_Class": {"maxqueued_per_user": 1, "max_starters": 0}}
    with StandIn(tmp_path, classes=classes, scheduler="LL_DEFAULT") as site:
        first, second = submit(site), submit(site)
        site.wait_for(second, "NQ")
        site.cancel(first)
        site.wait_for(second, "I")


def test_a_preempted_job_stands_still_until_it_is_resumed(loadleveler):
    job = submit(loadleveler)
    loadleveler.wait_for(job, "R")
    loadleveler.preempt(job)
    loadleveler.wait_for(job, "E")
    loadleveler.resume(job)
    loadleveler.wait_for(job, "R")
    assert loadleveler.states(job)[4:] == ["EP", "E", "MP", "R"]


def test_a_job_whose_output_cannot_be_opened_is_rejected_and_held(loadleveler, tmp_path):
    job = submit(loadleveler, f"output = {tmp_path}/no/such/directory/out")
    loadleveler.wait_for(job, "H")
    assert loadleveler.states(job)[-3:] == ["XP", "X", "H"]
    assert "No such file or directory" in loadleveler.run("llq", "-l", job).stdout


def test_jobs_can_be_killed_terminated_and_removed(loadleveler):
    killed, terminated, removed = [submit(loadleveler) for _ in range(3)]
    for job in (killed, terminated, removed):
        loadleveler.wait_for(job, "R")
    loadleveler.kill(killed)
    loadleveler.wait_for(killed, "C")
    assert loadleveler.steps()[0]["completion_code"] == signal.SIGKILL
    loadleveler.terminate(terminated)
    loadleveler.wait_for(terminated, "TX")
    loadleveler.remove(removed)
    loadleveler.wait_for(removed, "RM")


def test_llq_forgets_ended_jobs_after_a_while(loadleveler):
    job = submit(loadleveler, script="true")
    loadleveler.wait_for(job, "C")
    assert " C  50 " in loadleveler.run("llq", job).stdout
    loadleveler.configure(linger_s=0.0)
    gone = loadleveler.run("llq", job)
    assert (gone.returncode, gone.stdout) == (
        0,
        "llq: There is currently no job status to report.\n",
    )
    assert loadleveler.jobs() == {f"{job}.0": "C"}


def test_root_may_submit_only_where_the_site_says_so(tmp_path):
    is_root = 0 in (os.getuid(), os.getgid())
    with StandIn(tmp_path, allow_root=False) as site:
        done = site.run("llsubmit", "-", stdin=command_file())
    assert ("uid or gid 0" in done.stderr) is is_root
    assert done.returncode == int(is_root)


def test_llq_names_hosts_in_short_unless_the_site_does_otherwise(loadleveler):
    job = submit(loadleveler, "hold = user")
    for command in (["llq"], ["llq", "-f", "%id"], ["llq", "-r", "%id"]):
        assert job not in loadleveler.run(*command).stdout
    loadleveler.configure(quirks={"short_ids_in_llq": False})
    for command in (["llq", "-f", "%id"], ["llq", "-r", "%id"]):
        assert job in loadleveler.run(*command).stdout


def test_a_refused_job_is_told_on_stderr_only(loadleveler):
    done = loadleveler.run("llsubmit", "-", stdin="# @ class = nowhere\n# @ queue\n")
    assert (done.returncode, done.stdout) == (1, "")
    reason, verdict = done.stderr.splitlines()
    assert "'nowhere' is not defined" in reason
    assert verdict.endswith("This job has not been submitted to LoadLeveler.")
    missing = loadleveler.run("llsubmit", "/no/such/file")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert loadleveler.jobs() == {}


def test_jobs_outlive_the_central_manager_and_are_taken_over(loadleveler, tmp_path):
    job = submit(loadleveler, script=f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    loadleveler.wait_for(job, "R")
    loadleveler.lose_central_manager()
    for command in (["llq"], ["llcancel", job], ["llclass"], ["llstatus"], ["llhold", job]):
        done = loadleveler.run(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"{command[0]}: ")
    later = submit(loadleveler, script="true")
    [pid] = [step["pid"] for step in loadleveler.steps() if step["pid"]]
    assert is_alive(pid)
    loadleveler.start()
    loadleveler.wait_for(later, "C")
    (tmp_path / "go").touch()
    loadleveler.wait_for(job, "C")


def test_a_job_that_leaves_its_session_ends_with_the_site(tmp_path):
    script = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' & wait"
    with StandIn(tmp_path) as site:
        submit(site, script=script)
        until(lambda: has_text(tmp_path / "pid", "\n"))
        pid = int((tmp_path / "pid").read_text())
        assert is_alive(pid)
    until(lambda: not is_alive(pid))


@pytest.mark.parametrize("detach", ["", "setsid "])
def test_what_a_job_leaves_behind_ends_with_the_job(loadleveler, tmp_path, detach):
    leave = f"{detach}sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' &"
    script = f"{leave}\nuntil [ -s {tmp_path}/pid ]; do sleep 0.05; done"
    loadleveler.wait_for(submit(loadleveler, script=script), "C")
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_nothing_is_left_when_the_test_program_is_killed(tmp_path):
    program = f"""
import sys
from tests.loadleveler.samples import submit
from tests.loadleveler.standin import StandIn
with StandIn({str(tmp_path)!r}) as site:
    site.wait_for(submit(site), "R")
    print(site.steps()[0]["pid"], site._negotiator.pid, flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=HERE.parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        pids = [int(pid) for pid in child.stdout.readline().split()]
        assert all(map(is_alive, pids))
        child.kill()
    assert len(pids) == 2
    until(lambda: not any(map(is_alive, pids)))


def test_a_site_for_trying_takes_three_lines_in_a_shell(tmp_path):
    script = f"""
export PATH={HERE / "bin"}:{Path(sys.executable).parent}:$PATH LLSIM_SPOOL={tmp_path}/spool
llsimctl start --allow-root --nodes 1 || exit
llsubmit - <<END
#!/bin/sh
# @ output = {tmp_path}/out
# @ queue
echo hello; sleep 600
END
until [ -s {tmp_path}/out ]; do sleep 0.1; done
llq | grep -c ' R '
llsimctl start && exit 1
llsimctl fault cm_down count=1
llq > /dev/null 2>&1 && exit 1
llsimctl set linger_s=0
llsimctl vacate 1
llsimctl stop
"""
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "1"
    assert (tmp_path / "out").read_text().startswith("hello\n")
