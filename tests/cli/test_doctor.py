import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from daskspace.backends import findings
from tests.backends.sites import SITES

from .conftest import heed_interrupts

pytestmark = pytest.mark.timeout(240)

HERE = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.1", "fe80::1"], "ib0": ["10.1.0.1"]}
SEEN = {
    "host": "n1",
    "python": "3.11.7",
    "executable": "/usr/bin/python3",
    "packages": {"daskspace": "1", "dask": "2", "distributed": "3", "cloudpickle": "4"},
    "cpus": 4,
    "memory": 8 * 10**9,
    "temporary": "/tmp",
    "temporary_free": 10**10,
    "interfaces": {"lo": ["127.0.0.1"]},
}


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "daskspace", "doctor", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )


def ended(program, seconds=120):
    try:
        out, err = program.communicate(timeout=seconds)
    finally:
        program.kill()
    return program.returncode, out, err


def examined(*arguments):
    """Return the exit code and the findings by name, after looking that nothing is left."""
    code, out, err = ended(start(*arguments, "--json"))
    assert "Traceback" not in err
    assert os.listdir() == []
    told = json.loads(out)
    assert told["ok"] == (code == 0) == all(finding["ok"] for finding in told["findings"])
    return code, {finding["name"]: finding for finding in told["findings"]}


@pytest.fixture(params=["loadl", pytest.param("slurm", marks=pytest.mark.xdist_group("slurm"))])
def site(request, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    site = SITES[request.param]()
    yield site
    left = site.jobs()
    site.cancel(*left)
    assert not left, "jobs were left in the queue"


def options(site, **more):
    given = {**site.options, "death_timeout": 8, **more}
    return [site.backend_type, *(f"-O{name}={json.dumps(value)}" for name, value in given.items())]


def job_of(site, *arguments, **more):
    code, found = examined(*options(site, **more), *arguments)
    assert code == 1
    assert not found["job"]["ok"]
    assert found["end"]["ok"]
    return found["job"]["found"], found["job"]["remedy"]


def test_a_site_where_all_is_well_says_so_and_nothing_is_left(site):
    code, found = examined(*options(site))
    assert code == 0, found
    assert list(found) == [
        *("working directory", "programs", "queue", "job script", "network", "keys"),
        *("job", "connection", "clock", "versions", "result directory", "node", "end"),
    ]
    assert "in the queue" in found["job"]["found"]
    assert "has reached tls://" in found["connection"]["found"]
    assert "TLS on" in found["connection"]["found"]
    assert "the same on both: python" in found["versions"]["found"]


def test_without_tls_it_says_so(site):
    _, found = examined(*options(site, insecure=True))
    assert found["keys"]["remedy"].startswith("whoever reaches the scheduler can run code")
    assert "tcp://" in found["connection"]["found"]
    assert "TLS off" in found["connection"]["found"]


def test_a_python_without_our_packages_is_told_by_what_it_lacks(site):
    found, remedy = job_of(site, python=f"{sys.executable} -I -S")
    assert "No module named 'distributed'" in found
    assert remedy.startswith("the node's Python has no distributed: give one")


def test_a_python_that_is_not_there_is_told(site):
    found, remedy = job_of(site, python="/nonexistent/python")
    assert "/nonexistent/python: No such file or directory" in found
    assert remedy.startswith("the node has no such Python")


def test_a_worker_that_cannot_reach_the_scheduler_is_told_with_the_interfaces(site):
    address = "tls://127.0.0.1:9"
    found, remedy = job_of(site, scheduler_options={"contact_address": address})
    assert "ended before its worker came" in found
    assert f"the node cannot reach this host, at {address}; this host has" in remedy
    assert "-O interface=" in remedy
    assert "127.0.0.1" in remedy


def test_an_interface_that_only_the_node_lacks_is_told(site):
    _, remedy = job_of(site, worker_extra_args=["--interface", "nosuch0"])
    assert remedy.startswith("the node has no interface 'nosuch0'")


def test_a_queue_that_does_not_exist_is_told(site):
    found, remedy = job_of(site, queue=site.no_such_queue)
    assert "could not be submitted" in found
    assert remedy == "give a queue that there is: -O queue=NAME"


def test_a_held_job_is_told(site):
    found, remedy = job_of(site, **site.hold_new())
    assert "held" in found
    assert remedy.startswith("release it, or find out who holds such jobs")


def test_a_job_that_waits_too_long_is_told_with_its_state(site):
    found, remedy = job_of(site, "--timeout", "10", **site.never())
    assert found.startswith("nothing came back within 10 s; job ")
    assert "(" in found
    assert remedy.startswith("wait longer: --timeout")


@pytest.mark.skipif(os.geteuid() != 0, reason="hides a directory from a node as root")
def test_a_result_directory_that_the_node_does_not_see_is_told(site, tmp_path):
    keys = tmp_path / "keys"
    keys.mkdir()
    hide = tmp_path / "python"
    hide.write_text(
        "#!/bin/sh\n"
        f"exec unshare -m sh -c 'mount -t tmpfs none {os.getcwd()} && exec {sys.executable}"
        ' "$@"\' sh "$@"\n'
    )
    hide.chmod(0o755)
    if subprocess.run([hide, "-c", ""], cwd="/").returncode:
        pytest.skip("directories cannot be hidden here")
    code, found = examined(
        *options(site, python=str(hide), shared_temp_directory=str(keys)), "--timeout", "40"
    )
    assert code == 1
    wrong = [finding for finding in found.values() if not finding["ok"]]
    assert len(wrong) == 1, wrong
    assert "-o DIRECTORY" in wrong[0]["remedy"], wrong


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(site, number):
    program = start(*options(site, **site.never()))
    try:
        site.wait_for_jobs(bool)
        program.send_signal(number)
        code, _, err = ended(program, 60)
    finally:
        program.kill()
    assert code == 130, err
    assert os.listdir() == []
    assert site.is_empty()


def test_no_job_is_tried_without_the_batch_system_s_programs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, found = examined("slurm", "-Ocores=1", "-Omemory=1GB")
    assert code == 1
    assert found["programs"]["found"] == "not on PATH: sbatch, scancel, squeue"
    assert found["queue"]["found"].startswith("does not answer: squeue: No such file")
    assert found["job"]["found"] == "not tried, because of what is bad above"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "needs cores and memory of a job"),
        (["-Ocores=1", "-Omemory=1GB", "-Owalltime=soon"], "'soon' is no time limit"),
    ],
)
def test_settings_that_make_no_job_are_told(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    code, found = examined("slurm", *given)
    assert code == 1
    assert message in found["job script"]["found"]
    assert "daskspace job-script" in found["job script"]["remedy"]


@pytest.mark.parametrize("arguments", [["serial"], ["mcore", "-O", "n_workers=1"]])
def test_a_backend_without_jobs_is_examined_by_one_process(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, found = examined(*arguments)
    assert code == 0
    assert {"job", "versions", "result directory", "node", "end"} <= set(found)
    assert ("connection" in found) == (arguments[0] == "mcore")


def test_each_finding_is_a_line_and_an_unknown_backend_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = ended(start("serial"))
    assert code == 0
    assert "ok   versions: the same on both" in out.splitlines()[-4]
    code, out, err = ended(start("nowhere"))
    assert (code, out) == (1, "")
    assert "unknown backend 'nowhere'" in err


# The findings themselves


def test_programs_are_looked_for_on_path(tmp_path):
    shutil.copy("/bin/true", tmp_path / "sbatch")
    assert findings.programs(["sbatch"], str(tmp_path)).ok
    missing = findings.programs(["sbatch", "squeue", "squeue"], str(tmp_path))
    assert (missing.ok, missing.found) == (False, "not on PATH: squeue")


@pytest.mark.parametrize(
    ("path", "is_warned"),
    [("/tmp/x", True), ("/dev/shm", True), ("/home/me/tmp", False), ("/tmpx/me", False)],
)
def test_a_directory_that_is_often_local_to_a_node_is_warned_of(path, is_warned):
    finding = findings.working_directory(path)
    assert finding.ok
    assert bool(finding.remedy) == is_warned


def test_a_directory_that_cannot_be_written_to_is_bad():
    assert not findings.working_directory("/x", PermissionError(13, "Permission denied")).ok


def test_a_host_that_nobody_can_reach_is_bad():
    assert not findings.network({"lo": ["127.0.0.1", "::1"], "eth0": ["fe80::1"]}, "127.0.0.1").ok
    assert findings.network(HERE, "10.0.0.1").ok


def test_an_interface_that_is_not_there_is_bad_and_a_fast_one_is_suggested():
    finding = findings.network(HERE, "10.0.0.1", "eth1")
    assert not finding.ok
    assert "no interface 'eth1'" in finding.found
    assert "-O interface=ib0" in finding.remedy
    assert findings.network(HERE, "10.1.0.1", "ib0").found.endswith("Dask takes ib0")


def test_different_versions_are_told_by_name():
    other = {**SEEN, "python": "3.12.1", "packages": {**SEEN["packages"], "dask": None}}
    finding = findings.versions(SEEN, other)
    assert not finding.ok
    assert "python 3.11.7 here, 3.12.1 there; dask 2 here, none there" in finding.found
    assert finding.remedy.endswith("-O python=/usr/bin/python3")
    assert findings.versions(SEEN, SEEN).ok


@pytest.mark.parametrize(
    ("asked", "told", "answered", "ok", "found"),
    [
        (100.0, 100.1, 100.2, True, "no different, within 0.100 s"),
        (100.0, 101.2, 100.2, True, "1.000 s apart"),
        (100.0, 160.2, 100.2, False, "at least 60 s ahead of"),
        (100.0, 40.0, 100.2, False, "at least 60 s behind"),
    ],
)
def test_clocks_are_compared_as_far_as_the_round_trip_lets(asked, told, answered, ok, found):
    finding = findings.clock(asked, told, answered)
    assert finding.ok == ok
    assert found in finding.found


@pytest.mark.parametrize(
    ("read", "error", "ok"),
    [("x", None, True), (None, None, False), ("y", None, False), (None, "denied", False)],
)
def test_a_directory_is_shared_if_what_was_written_there_can_be_read_here(read, error, ok):
    assert findings.shared_directory("/x", read, "x", error).ok == ok


def test_a_node_with_less_than_was_asked_for_is_warned_of():
    assert findings.node(SEEN, 4, 8 * 10**9).remedy == ""
    poor = findings.node({**SEEN, "temporary_free": 1}, 8, 16 * 10**9).remedy
    assert "8 cores were asked for" in poor
    assert "less memory than the 14.90 GiB" in poor
    assert "little space" in poor


@pytest.mark.parametrize(
    ("address", "interface"),
    [("tls://10.1.0.1:8786", "ib0"), ("tls://[::1]:1", "lo"), ("tcp://10.9.9.9:1", "")],
)
def test_an_address_is_told_by_its_interface(address, interface):
    assert findings.interface_of(address, HERE) == interface


@pytest.mark.parametrize(
    ("log", "remedy"),
    [
        ("Timed out trying to connect to tls://1.2.3.4:5 after 30 s", "cannot reach this host"),
        ("Timed out starting worker", "at tls://10.0.0.1:1; this host has lo"),
        ("TLS certificate does not match.", "something else answers there"),
        ("ModuleNotFoundError: No module named 'dask'", "has no dask: give one"),
        ("x: line 3: python3: command not found", "has no such Python"),
        ("x: line 3: module: command not found", "a line of the job script fails"),
        ("FileNotFoundError: No such file or directory: '/x/cert.pem'", "shared_temp_directory"),
        ("ImportError: cannot import name 'x' from 'dask'", "other versions"),
        ("OSError: [Errno 28] No space left on device", "local_directory"),
        ("slurmstepd: error: Detected 1 oom-kill event(s)", "-O memory="),
        ("certificate is not yet valid", "clocks"),
        ("cannot open '/x/.attempts/7.tape'", "-o DIRECTORY"),
        ("all is well", ""),
    ],
)
def test_what_a_worker_wrote_leads_to_a_remedy(log, remedy):
    found = findings.remedy_for_log(f"...\n{log}\n...", "tls://10.0.0.1:1", HERE)
    assert remedy in found
    assert bool(remedy) == bool(found)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("job 1 (PENDING: JobHeldUser)", "release it"),
        ("sbatch: error: invalid partition specified: nope", "-O queue="),
        ("Job submit/allocate failed: Invalid account or account/partition", "-O account="),
        ("job 1 (PENDING: PartitionTimeLimit)", "no node takes such a job"),
        ("job 1 (PENDING: Priority) is waiting", "wait longer"),
        ("job 1 (OUT_OF_MEMORY)", "-O memory="),
        ("lorem ipsum", ""),
    ],
)
def test_what_a_queue_says_leads_to_a_remedy(words, remedy):
    found = findings.remedy_for_queue(words)
    assert remedy in found
    assert bool(remedy) == bool(found)
