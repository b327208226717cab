"""Dialects by transcripts: written by us after the formats that are documented, or seen in use.

Slurm and Grid Engine transcripts are of the real ones (Slurm 22.05.8, SGE 8.1.9), which
tests/schedulers/ asks as well. LSF, PBS, HTCondor, OAR, Moab and LoadLeveler cannot be had here.
"""

import random
import string
import sys
import time

import pytest

from daskspace.clusters.queues import QUEUES, STATES, QueueError, ask, cancel, why

SLURM = """\
5|CANCELLED|Priority|s.sh
4|FAILED|NonZeroExitCode|f.sh
9|TIMEOUT|TimeLimit|dask-worker
2|PENDING|PartitionConfig|s.sh
3|PENDING|JobHeldUser|s.sh
7|PENDING|job requeued in held state|s.sh
10|PENDING|launch failed requeued held|s.sh
1|RUNNING|None|we ird|n
11|COMPLETING|None|x
12|SUSPENDED|None|x
13|NODE_FAIL|NodeDown|x
8_1|RUNNING|None|array
CLUSTER: other
slurm_load_jobs error: Unable to contact slurm controller (connect failure)
"""

# qstat(1B) of OpenPBS (src/man) and of Torque; the latter ends in C and exit_status.
PBS = (
    "Job Id: 1001.pbs01\n"
    "    Job_Name = dask-worker\n"
    "    Job_Owner = ann@login1\n"
    "    job_state = Q\n"
    "    queue = workq\n"
    "    comment = Not Running: Insufficient amount of resource: ncpus (R: 64 A: 8 \n"
    "\tT: 16)\n"
    "    Variable_List = PBS_O_HOME=/home/ann,PBS_O_LANG=C,\n"
    "\tPBS_O_PATH=/usr/bin\n"
    "\n"
    "Job Id: 1002.pbs01\n"
    "    Job_Name = dask-worker\n"
    "    job_state = H\n"
    "    Hold_Types = u\n"
    "\n"
    "Job Id: 1003.pbs01\n"
    "    Job_Name = dask-worker\n"
    "    job_state = R\n"
    "    comment = Job run at Sat Nov 28 at 09:00 on (node1:ncpus=1)\n"
    "\n"
    "Job Id: 1004.pbs01\n"
    "    job_state = C\n"
    "    exit_status = 271\n"
    "\n"
    "Job Id: 1005[].pbs01\n"
    "    job_state = B\n"
    "\n"
    "Job Id: 1006.pbs01\n"
    "    job_state = E\n"
)

SGE = """\
<?xml version='1.0'?>
<job_info  xmlns:xsd="http://arc.liv.ac.uk/repos/darcs/sge/source/dist/util/resources/schemas/qstat/qstat.xsd">
  <queue_info>
    <job_list state="running">
      <JB_job_number>1</JB_job_number>
      <JAT_prio>0.55500</JAT_prio>
      <JB_name>s.sh</JB_name>
      <JB_owner>root</JB_owner>
      <state>r</state>
      <slots>1</slots>
    </job_list>
    <job_list state="running">
      <JB_job_number>2</JB_job_number>
      <JB_name>a &amp; b</JB_name>
      <state>dr</state>
    </job_list>
  </queue_info>
  <job_info>
    <job_list state="pending">
      <JB_job_number>3</JB_job_number>
      <JB_name>a & b</JB_name>
      <state>qw</state>
    </job_list>
    <job_list state="pending">
      <JB_job_number>4</JB_job_number>
      <JB_name>s.sh</JB_name>
      <state>hqw</state>
    </job_list>
    <job_list state="pending">
      <JB_job_number>5</JB_job_number>
      <JB_name>s.sh</JB_name>
      <state>Eqw</state>
    </job_list>
  </job_info>
</job_info>
"""

# bjobs -o: https://www.ibm.com/docs/en/SSWRJV_10.1.0/lsf_command_ref/bjobs.o.1.html
LSF = """\
201|PEND|-|dask-worker
202|PSUSP|-|dask-worker
203|RUN|-|a|b
204|EXIT|TERM_RUNLIMIT: job killed after reaching LSF run time limit|dask-worker
205|ZOMBI|-|dask-worker
206|UNKWN|-|dask-worker
Job <999> is not found
"""

# condor_q -af:jt: https://htcondor.readthedocs.io/en/latest/man-pages/condor_q.html
HTCONDOR = (
    "12.0\t1\tdask-worker\tundefined\tundefined\n"
    "13.0\t5\tdask-worker\tundefined\tError from slot1@n1: memory usage exceeded request_memory\n"
    "14.0\t2\tdask-worker\tundefined\tundefined\n"
    "15.0\t3\tdask-worker\tvia condor_rm (by user ann)\tundefined\n"
    "16.0\t4\tundefined\tundefined\tundefined\n"
)

# oarstat -J: an object by job id, sources/core/qfunctions/oarstat of github.com/oar-team/oar
OAR = """\
{
   "301" : {"Job_Id" : 301, "state" : "Waiting", "name" : "dask-worker", "message" : "Karma = 0.1"},
   "302" : {"Job_Id" : 302, "state" : "Hold", "name" : null, "message" : ""},
   "303" : {"Job_Id" : 303, "state" : "Running", "name" : "dask-worker", "message" : "R=1,W=1"},
   "304" : {"Job_Id" : 304, "state" : "Error", "name" : "dask-worker", "message" : "walltime"},
   "305" : {"Job_Id" : 305, "state" : "Finishing", "name" : "", "message" : ""}
}
"""

# showq --xml: the form that COBalD/TARDIS and vsc-jobs read
MOAB = """\
<Data><Object>queue</Object><cluster LocalUpNodes="9" time="1"/>
 <queue count="1" option="active">
  <job DRMJID="5001.mg1" JobID="5001" JobName="dask-worker" State="Running" User="ann"/>
 </queue>
 <queue count="1" option="eligible">
  <job JobID="Moab.5002" JobName="a&lt;b" ReqProcs="20" State="Idle" User="ann"/>
 </queue>
 <queue count="3" option="blocked">
  <job BlockReason="IdlePolicy" JobID="5003" State="Idle"/>
  <job BlockReason="UserHold" JobID="5004" State="Idle"/>
  <job JobID="5005" State="BatchHold"/>
 </queue>
</Data><Data><queue count="1" option="completed">
  <job CompletionCode="CNCLD" JobID="5006" State="Completed"/>
 </queue></Data>
"""

# llq -r: `!` between values, no titles; ids with the short host name and a step
LOADLEVELER = """\
I!juqueen1c1.101.0
NQ!juqueen1c1.102.0
R!juqueen1c1.103.0
S!juqueen1c1.104.0
HS!juqueen1c1.105.0
RP!juqueen1c1.106.0
RM!juqueen1c1.107.0
V!juqueen1c1.108.0
"""

EXPECTED = {
    "slurm": (
        SLURM,
        [
            ("5", "ended", "CANCELLED", "", "s.sh"),
            ("4", "ended", "FAILED", "NonZeroExitCode", "f.sh"),
            ("9", "ended", "TIMEOUT", "TimeLimit", "dask-worker"),
            ("2", "waiting", "PENDING", "PartitionConfig", "s.sh"),
            ("3", "held", "PENDING", "JobHeldUser", "s.sh"),
            ("7", "held", "PENDING", "job requeued in held state", "s.sh"),
            ("10", "held", "PENDING", "launch failed requeued held", "s.sh"),
            ("1", "running", "RUNNING", "", "we ird|n"),
            ("11", "ending", "COMPLETING", "", "x"),
            ("12", "held", "SUSPENDED", "", "x"),
            ("13", "ended", "NODE_FAIL", "NodeDown", "x"),
            ("8_1", "running", "RUNNING", "", "array"),
        ],
    ),
    "pbs": (
        PBS,
        [
            (
                *("1001.pbs01", "waiting", "Q"),
                "Not Running: Insufficient amount of resource: ncpus (R: 64 A: 8 T: 16)",
                "dask-worker",
            ),
            ("1002.pbs01", "held", "H", "Hold_Types = u", "dask-worker"),
            ("1003.pbs01", "running", "R", "", "dask-worker"),
            ("1004.pbs01", "ended", "C", "exit_status = 271", ""),
            ("1005[].pbs01", "running", "B", "", ""),
            ("1006.pbs01", "ending", "E", "", ""),
        ],
    ),
    "sge": (
        SGE,
        [
            ("1", "running", "r", "", "s.sh"),
            ("2", "ending", "dr", "", "a & b"),
            ("3", "waiting", "qw", "", "a & b"),
            ("4", "held", "hqw", "", "s.sh"),
            ("5", "held", "Eqw", "", "s.sh"),
        ],
    ),
    "lsf": (
        LSF,
        [
            ("201", "waiting", "PEND", "", "dask-worker"),
            ("202", "held", "PSUSP", "", "dask-worker"),
            ("203", "running", "RUN", "", "a|b"),
            (
                *("204", "ended", "EXIT"),
                "TERM_RUNLIMIT: job killed after reaching LSF run time limit",
                "dask-worker",
            ),
            ("205", "ending", "ZOMBI", "", "dask-worker"),
            ("206", "running", "UNKWN", "", "dask-worker"),
        ],
    ),
    "htcondor": (
        HTCONDOR,
        [
            ("12.0", "waiting", "Idle", "", "dask-worker"),
            (
                *("13.0", "held", "Held"),
                "Error from slot1@n1: memory usage exceeded request_memory",
                "dask-worker",
            ),
            ("14.0", "running", "Running", "", "dask-worker"),
            ("15.0", "ending", "Removed", "via condor_rm (by user ann)", "dask-worker"),
            ("16.0", "ended", "Completed", "", ""),
        ],
    ),
    "oar": (
        OAR,
        [
            ("301", "waiting", "Waiting", "Karma = 0.1", "dask-worker"),
            ("302", "held", "Hold", "", ""),
            ("303", "running", "Running", "", "dask-worker"),
            ("304", "ended", "Error", "walltime", "dask-worker"),
            ("305", "ending", "Finishing", "", ""),
        ],
    ),
    "moab": (
        MOAB,
        [
            ("5001", "running", "Running", "", "dask-worker"),
            ("Moab.5002", "waiting", "Idle", "", "a<b"),
            ("5003", "waiting", "Idle", "IdlePolicy", ""),
            ("5004", "held", "Idle", "UserHold", ""),
            ("5005", "held", "BatchHold", "", ""),
            ("5006", "ended", "Completed", "CompletionCode CNCLD", ""),
        ],
    ),
    "loadleveler": (
        LOADLEVELER,
        [
            ("juqueen1c1.101.0", "waiting", "I", "", ""),
            ("juqueen1c1.102.0", "held", "NQ", "", ""),
            ("juqueen1c1.103.0", "running", "R", "", ""),
            ("juqueen1c1.104.0", "held", "S", "", ""),
            ("juqueen1c1.105.0", "held", "HS", "", ""),
            ("juqueen1c1.106.0", "ending", "RP", "", ""),
            ("juqueen1c1.107.0", "ended", "RM", "", ""),
            ("juqueen1c1.108.0", "ended", "V", "", ""),
        ],
    ),
}


def rows(jobs):
    return [(job.job_id, job.state, job.word, job.reason, job.name) for job in jobs]


@pytest.mark.parametrize("system", EXPECTED)
def test_a_transcript_is_read(system):
    text, expected = EXPECTED[system]
    assert rows(QUEUES[system].parse(text)) == expected


def test_every_system_of_dask_jobqueue_has_a_transcript():
    names = {"slurm", "pbs", "sge", "lsf", "htcondor", "oar", "moab", "loadleveler"}
    assert set(QUEUES) == set(EXPECTED) == names
    assert all(queue.system == name for name, queue in QUEUES.items())


@pytest.mark.parametrize("system", EXPECTED)
@pytest.mark.parametrize("seed", range(20))
def test_what_is_garbled_is_passed_over(system, seed):
    chance = random.Random(seed)
    text = EXPECTED[system][0]
    for _ in range(chance.randint(1, 40)):
        start = chance.randrange(len(text) + 1)
        noise = "".join(chance.choices(string.printable + "�é٣", k=chance.randint(0, 5)))
        text = text[:start] + noise + text[start + chance.randint(0, 9) :]
    for job in QUEUES[system].parse(text):
        assert job.state in STATES
        assert job.job_id
        assert job.word
        QUEUES[system].key(job.job_id)


NO_JOBS = ["", "\n\n", "null", "[]", "{}", "<job/>", "<job_list></job_list>", "Job Id:", "|||", "!"]


@pytest.mark.parametrize("system", QUEUES)
@pytest.mark.parametrize("text", [*NO_JOBS, "[" * 100_000, "<job " * 10_000, "\n" * 100_000])
def test_what_tells_of_no_job_is_read_as_no_job(system, text):
    assert QUEUES[system].parse(text) == []


@pytest.mark.parametrize(
    ("system", "text"),
    [
        ("slurm", "1|BRAND_NEW|None|x"),
        ("lsf", "1|NEW|-|x"),
        ("htcondor", "1.0\t99\tx\tundefined\tundefined"),
        ("loadleveler", "ZZ!n01.1.0"),
        ("oar", '[{"Job_Id": 1, "state": "New"}]'),
    ],
)
def test_a_job_in_an_unknown_state_is_not_given_up(system, text):
    assert [job.state for job in QUEUES[system].parse(text)] == ["waiting"]


@pytest.mark.parametrize(
    ("system", "told", "listed"),
    [
        ("slurm", "12", "12_3"),
        ("slurm", "12", "12+0"),
        ("pbs", "1001", "1001.pbs01.site.org"),
        ("pbs", "1001.pbs01", "1001.pbs01.site.org"),
        ("lsf", "201", "201[3]"),
        ("moab", "5002", "Moab.5002"),
        ("loadleveler", "juqueen1c1.zam.kfa-juelich.de.281506", "juqueen1c1.281506.0"),
        ("loadleveler", "srv24ib.840220", "srv24ib.840220.0"),
        ("loadleveler", "fe1.bgl.bu.edu.61332", "fe1.bgl.bu.edu.61332.12"),
        ("loadleveler", "450383", "450383"),
    ],
)
def test_two_spellings_of_an_id_are_the_same_job(system, told, listed):
    key = QUEUES[system].key
    assert key(told) == key(listed)


@pytest.mark.parametrize(
    ("system", "one", "other"),
    [
        ("slurm", "12", "123"),
        ("pbs", "1001.pbs01", "1002.pbs01"),
        ("htcondor", "12.0", "12.1"),
        ("loadleveler", "n1.12", "n2.12"),
        ("loadleveler", "n1.12.0", "n1.13.0"),
        ("loadleveler", "n1.12", "n1.13.12"),
    ],
)
def test_ids_of_two_jobs_differ(system, one, other):
    key = QUEUES[system].key
    assert key(one) != key(other)


H, D = 3600, 86400
LIMITS = {
    "slurm": {
        30: 1800,
        "30": 1800,
        "1:30": 90,
        "1:00:00": H,
        "2-0": 2 * D,
        "2-12": 2.5 * D,
        "1-1:30": D + 1.5 * H,
        "1-00:00:01": D + 1,
        "UNLIMITED": None,
        "infinite": None,
        0: None,
        None: None,
        "": None,
    },
    "pbs": {"1:00:00": H, "90": 90, 43200: 12 * H, "30:00": 1800, "00:00:30.5": 30.5, None: None},
    "moab": {"1:00:00:00": D, "01:00:00": H, 60: 60},
    "sge": {"0:0:30": 30, 3600: H, "INFINITY": None},
    "oar": {"1:00:00": H, "0:30": 1800, 2: 2 * H},
    "lsf": {"0:30": 1800, "90": 5400, 90: 5400, "1:30/hostA": 5400, "3.5": 210},
    "htcondor": {600: 600, "600": 600, None: None},
    "loadleveler": {
        "00:30:00": 1800,
        "00:25:00, 00:20:00": 1200,
        "660,600": 600,
        "240,": 240,
        12000: 12000,
        "140:00:00": 140 * H,
        "unlimited": None,
        "rlim_infinity": None,
    },
}


@pytest.mark.parametrize(
    ("system", "limit", "seconds"),
    [(system, *pair) for system, limits in LIMITS.items() for pair in limits.items()],
)
def test_a_time_limit_means_what_its_system_reads_in_it(system, limit, seconds):
    assert QUEUES[system].walltime(limit) == seconds


@pytest.mark.parametrize("system", QUEUES)
@pytest.mark.parametrize(
    "limit", ["abc", "1:xx", ":", "1::2", "-5", "1:2:3:4:5", "1 h", True, [], "1,2,3", "\u0661"]
)
def test_what_is_no_time_limit_is_refused(system, limit):
    with pytest.raises(ValueError, match="is no time limit"):
        QUEUES[system].walltime(limit)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Programs that are first on PATH, from their text in Python."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(name, program):
        path = tmp_path / name
        path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{program}\n")
        path.chmod(0o755)

    return write


def test_ids_are_answered_as_they_were_asked(commands):
    commands("llq", "print('R!juqueen1c1.281506.0\\nI!juqueen1c1.281506.1\\nH!juqueen1c1.7.0')")
    known = "juqueen1c1.zam.kfa-juelich.de.281506"
    found = ask(QUEUES["loadleveler"], [known, "juqueen1c1.zam.kfa-juelich.de.9"])
    assert list(found) == [known]
    assert found[known].state == "running"


def test_one_query_tells_of_all_jobs(commands, tmp_path):
    commands("squeue", f"open({str(tmp_path / 'asked')!r}, 'a').write(repr(sys.argv[1:]) + '\\n')")
    assert ask(QUEUES["slurm"], ["1", "2", "3"], extra=["-M", "other"]) == {}
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert asked.startswith("['-M', 'other', '--noheader'")


def test_no_ids_ask_nothing(commands):
    assert ask(QUEUES["slurm"], []) == {}
    assert cancel(QUEUES["slurm"], []) == ""


def test_jobs_that_the_query_no_longer_knows_are_absent(commands):
    commands(
        "qstat",
        "print('Job Id: 7.pbs01\\n    job_state = R')\n"
        "print('qstat: Unknown Job Id 8.pbs01', file=sys.stderr)\n"
        "print('qstat: 9.pbs01 Job has finished, use -x or -H', file=sys.stderr)\n"
        "sys.exit(153)",
    )
    found = ask(QUEUES["pbs"], ["7", "8", "9"])
    assert {job_id: job.state for job_id, job in found.items()} == {"7": "running"}


@pytest.mark.parametrize(
    ("system", "program"),
    [
        ("loadleveler", "sys.exit(153)"),
        ("loadleveler", "print('llq: There is currently no job status to report.')"),
        ("lsf", "print('No job found', file=sys.stderr); sys.exit(255)"),
        ("oar", "print('null')"),
    ],
)
def test_an_empty_queue_is_an_answer(commands, system, program):
    queue = QUEUES[system]
    commands(queue.query(["1"], "me")[0], program)
    assert ask(queue, ["1"]) == {}


@pytest.mark.parametrize("system", QUEUES)
def test_a_query_that_fails_is_told_in_the_systems_words(commands, system):
    queue = QUEUES[system]
    command = queue.query(["1"], "me")[0]
    commands(command, "print('cannot connect to server', file=sys.stderr); sys.exit(3)")
    with pytest.raises(QueueError, match=f"{command}: exit code 3: cannot connect to server"):
        ask(queue, ["1"])


@pytest.mark.parametrize("system", QUEUES)
def test_a_command_that_is_missing_is_told(commands, system):
    with pytest.raises(QueueError, match=QUEUES[system].query(["1"], "me")[0]):
        ask(QUEUES[system], ["1"])
    with pytest.raises(QueueError, match=QUEUES[system].cancel[0]):
        cancel(QUEUES[system], ["1"])


@pytest.mark.parametrize("job_id", ["-rf", "1;ls", "1 2", "", "$(x)", "1\n2", "--all", "é"])
def test_what_is_no_job_id_reaches_no_command(commands, job_id):
    for call in (ask, cancel):
        with pytest.raises(ValueError, match="is no job id"):
            call(QUEUES["slurm"], ["1", job_id])
    with pytest.raises(ValueError, match="is no job id"):
        why(QUEUES["sge"], job_id)


def test_a_query_that_hangs_in_a_child_of_its_is_given_up(commands, tmp_path):
    pid = tmp_path / "pid"
    commands(
        "squeue",
        f"child = os.fork()\nif child: open({str(pid)!r}, 'w').write(str(child))\ntime.sleep(60)",
    )
    began = time.monotonic()
    with pytest.raises(QueueError, match="squeue: no answer within 1 s"):
        ask(QUEUES["slurm"], ["1"], timeout_s=1)
    assert time.monotonic() - began < 20
    if pid.exists():
        assert ended_within(10, int(pid.read_text()))


def ended_within(seconds, pid):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_the_system_is_asked_in_the_c_locale_and_may_answer_in_any_bytes(commands, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    commands(
        "squeue",
        "name = os.environ['LC_ALL'].encode() + b'\\xff'\n"
        "sys.stdout.buffer.write(b'1|RUNNING|None|' + name + b'\\n')\n"
        "assert 'SQUEUE_PARTITION' not in os.environ",
    )
    assert ask(QUEUES["slurm"], ["1"])["1"].name == "C�"


def test_cancel_tells_what_was_said_of_a_job_that_is_gone(commands, tmp_path):
    commands("qdel", "print('qdel:', *sys.argv[1:], file=sys.stderr); sys.exit(153)")
    assert cancel(QUEUES["pbs"], ["7", "8"]) == "exit code 153: qdel: 7 8"
    commands("scancel", f"open({str(tmp_path / 'told')!r}, 'w').write(repr(sys.argv[1:]))")
    assert cancel(QUEUES["slurm"], ["7", "8"], extra=["-M", "x"]) == ""
    assert (tmp_path / "told").read_text() == "['-M', 'x', '7', '8']"


def test_why_a_job_waits_is_told_where_the_system_can(commands):
    commands("llq", "print('Not enough resources to start now.', sys.argv[1:])")
    assert why(QUEUES["loadleveler"], "n1.7") == "Not enough resources to start now. ['-s', 'n1.7']"
    assert why(QUEUES["slurm"], "7") == ""
