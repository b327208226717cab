"""What real sites were seen to print, printed again from the same facts.

Each sample names its source. Blanks at the ends of lines are what people's editors made of them.
"""

import io
import time

import pytest

from .llsim import commands, config, formats
from .llsim.spool import Spool
from .samples import command_file, step


@pytest.fixture
def in_central_time(monkeypatch):
    monkeypatch.setenv("TZ", "CST6CDT,M3.2.0,M11.1.0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def moment(text, year=2007):
    return time.mktime(time.strptime(f"{year}/{text}", "%Y/%m/%d %H:%M"))


def said(lines):
    return [line.rstrip() for line in lines]


def words(text):
    return [line.split() for line in text.strip().splitlines()]


LRZ_FILTER = {
    "path": "/lrz/loadl/filter.pl",
    "before": ["INFO: Project: pr00xx used 259009 (19%)"],
    "stream": "stdout",
}
BUDGET = "KBGT60003-I Budget function authenticated bu0701. bu0701 is not assigned account number."
LL = "llsubmit: "
SUBMISSIONS = {
    # SuperMUC, in the scripts of ExaHyPE
    "srv24ib": (840220, {}, [LL + 'The job "srv24ib.840220" has been submitted.'], []),
    # SAGA's adaptor for LoadLeveler, in a comment
    "srv03-ib": (443336, {}, [LL + 'The job "srv03-ib.443336" has been submitted.'], []),
    # JUQUEEN, in abipy's qadapters
    "juqueen1c1.zam.kfa-juelich.de": (
        281506,
        {},
        [LL + 'The job "juqueen1c1.zam.kfa-juelich.de.281506" has been submitted.'],
        [],
    ),
    # ProActive, DIET, XtalOpt
    "mesocentre": (2172, {}, [LL + 'The job "mesocentre.2172" has been submitted.'], []),
    "meso-d": (16247, {}, [LL + 'The job "meso-d.16247" has been submitted.'], []),
    "host": (102, {}, [LL + 'The job "host.102" has been submitted.'], []),
    # JAMSTEC, in the tests of xsub; the budget line's stream is not told
    "htcf02c01p02": (
        134491,
        {"before": [BUDGET], "stream": "stdout"},
        [BUDGET, LL + 'The job "htcf02c01p02.134491" has been submitted.'],
        [],
    ),
    # LRZ C2PAP: all on stdout, the id last
    "xcat": (
        2021566,
        LRZ_FILTER,
        [
            "INFO: Project: pr00xx used 259009 (19%)",
            LL + 'Processed command file through Submit Filter: "/lrz/loadl/filter.pl".',
            LL + 'The job "xcat.2021566" has been submitted.',
        ],
        [],
    ),
    # Boston University
    "fe1.bgl.bu.edu": (
        61332,
        {"path": "/usr/local/etc/loadl/submit_filter"},
        [LL + 'The job "fe1.bgl.bu.edu.61332" has been submitted.'],
        [
            LL
            + 'Processed command file through Submit Filter: "/usr/local/etc/loadl/submit_filter".'
        ],
    ),
}


def submit(tmp_path, text, arguments, **changes):
    settings = config.complete({"allow_root": True, **changes})
    spool = Spool.create(tmp_path / "spool", settings["first_id"])
    (tmp_path / "job.cmd").write_text(text)
    try:
        return commands.llsubmit(arguments, spool, settings)
    finally:
        spool.close()


@pytest.mark.parametrize("host", SUBMISSIONS)
def test_llsubmit_speaks_as_at_a_real_site(tmp_path, host):
    number, site_filter, out, err = SUBMISSIONS[host]
    site = {"schedd_host": host, "first_id": number, "submit_filter": site_filter}
    reply = submit(tmp_path, command_file(), [str(tmp_path / "job.cmd")], **site)
    assert (reply.out, reply.err, reply.code) == (out, err, 0)


def test_llsubmit_names_the_copy_of_what_it_read_from_stdin(tmp_path, monkeypatch):
    # batchelor's class for LoadLeveler names both streams
    stdin = io.TextIOWrapper(io.BytesIO(command_file().encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    site = {"schedd_host": "mgmt", "first_id": 12309, "submit_filter": {"path": "/filter"}}
    reply = submit(tmp_path, "", ["-"], **site)
    assert reply.out == ['llsubmit: The job "mgmt.12309" has been submitted.']
    assert reply.err[0].startswith('llsubmit: Stdin job command file written to "')
    assert "/loadlx_stdin." in reply.err[0]
    assert reply.err[1] == 'llsubmit: Processed command file through Submit Filter: "/filter".'


def test_llsubmit_counts_the_steps_of_a_job(tmp_path):
    # a log of a European weather service
    text = "# @ queue\n" * 3
    site = {"schedd_host": "c1a0303", "first_id": 4290133}
    reply = submit(tmp_path, text, [str(tmp_path / "job.cmd")], **site)
    assert reply.out == ['llsubmit: The job "c1a0303.4290133" with 3 job steps has been submitted.']


def row(id, owner, submitted, state, priority, site_class, host=None):
    facts = {"owner": owner, "submitted": moment(submitted), "state": state}
    facts |= {"class": site_class, "priority": priority, "hosts": [host] if host else []}
    return step(id, **facts)


def test_llq_of_a_running_parallel_job():
    # DIET, Loadleveler_BatchSystem.cc
    steps = [row("meso-d.16250.0", "diet", "7/24 10:19", "R", 50, "parall", "meso-2")]
    assert said(formats.listing(steps, title="Running on", selected=True)) == [
        "Id                       Owner      Submitted   ST PRI Class        Running on",
        "------------------------ ---------- ----------- -- --- ------------ -----------",
        "meso-d.16250.0           diet        7/24 10:19 R  50  parall       meso-2",
        "",
        "1 job step(s) in query, 0 waiting, 0 pending, 1 running, 0 held, 0 preempted",
    ]


def test_llq_of_a_whole_queue():
    # course notes of Moscow State University, a Blue Gene/P
    steps = [
        row("fen1.10985723.0", "mmg", "11/8 03:06", "R", 50, "n512_h24", "fen1"),
        row("fen1.10986274.0", "edu-cmc-skmodel", "11/8 22:31", "R", 50, "n256_m10", "fen1"),
        row("fen1.10984639.0", "zhukov_ka", "10/17 23:01", "I", 50, "n2048_m30", "(alloc)"),
        row("fen1.10984685.0", "nordmike", "10/28 21:15", "I", 50, "n2048_m03"),
        row("fen1.10986275.0", "edu-cmc-skmodel", "11/8 22:32", "I", 50, "n512_m05"),
    ]
    assert said(formats.listing(steps)) == [
        "Id                       Owner      Submitted   ST PRI Class        Running On",
        "------------------------ ---------- ----------- -- --- ------------ -----------",
        "fen1.10985723.0          mmg        11/8  03:06 R  50  n512_h24     fen1",
        "fen1.10986274.0          edu-cmc-sk 11/8  22:31 R  50  n256_m10     fen1",
        "fen1.10984639.0          zhukov_ka  10/17 23:01 I  50  n2048_m30    (alloc)",
        "fen1.10984685.0          nordmike   10/28 21:15 I  50  n2048_m03",
        "fen1.10986275.0          edu-cmc-sk 11/8  22:32 I  50  n512_m05",
        "",
        "5 job step(s) in queue, 3 waiting, 0 pending, 2 running, 0 held, 0 preempted",
    ]


@pytest.mark.parametrize(("state", "waiting", "running"), [("I", 1, 0), ("R", 0, 1)])
def test_llq_with_its_blanks_at_the_ends_of_lines(state, waiting, running):
    # the tests of xsub, which keep the blanks
    steps = [row("htcf02c01p02.134491.0", "bu0701", "8/15 14:37", state, 50, "c")]
    assert formats.listing(steps, selected=True) == [
        "Id                       Owner      Submitted   ST PRI Class        Running On ",
        "------------------------ ---------- ----------- -- --- ------------ -----------",
        f"htcf02c01p02.134491.0    bu0701      8/15 14:37 {state}  50  c                       ",
        "",
        f"1 job step(s) in query, {waiting} waiting, 0 pending, {running} running, 0 held,"
        " 0 preempted",
    ]


def test_llq_shortens_the_host_that_llsubmit_named_in_full():
    # abipy's qadapters: juqueen1c1.zam.kfa-juelich.de.281506 in llsubmit
    short = formats.short_id("juqueen1c1.zam.kfa-juelich.de.281508.0")
    steps = [row(short, "paj15530", "1/23 13:20", "I", 50, "n001")]
    assert said(formats.listing(steps))[2] == (
        "juqueen1c1.281508.0      paj15530    1/23 13:20 I  50  n001"
    )


def test_llq_of_three_jobs_word_by_word():
    # the tests of XtalOpt, whose blanks are somebody's own, and a third row in a state Q
    steps = [
        row("mars.498.0", "brownap", "5/20 11:31", "R", 100, "silver", "mars"),
        row("mars.501.0", "brownap", "5/20 11:31", "I", 50, "silver"),
    ]
    assert words("\n".join(formats.listing(steps)[2:])) == words("""
mars.498.0               brownap    5/20 11:31  R  100 silver       mars
mars.501.0               brownap    5/20 11:31  I  50  silver

2 job step(s) in queue, 1 waiting, 0 pending, 1 running, 0 held, 0 preempted
""")


def test_llq_with_chosen_columns():
    # cylc's handler, and Kepler's support for LoadLeveler
    assert said(formats.custom([step("a001.3274552.0")], ["%id"], selected=True))[:4] == [
        "Step Id",
        "------------------------",
        "a001.3274552.0",
        "",
    ]
    steps = [row("s00601.287247.0", "jxhan", "07/12 09:10", "NQ", 50, "c")]
    listing = formats.custom(steps, ["%id", "%o", "%dq", "%st"], selected=True)
    assert words("\n".join(listing)) == words("""
Step Id                  Owner       Queue Date  ST
------------------------ ----------- ----------- --
s00601.287247.0 jxhan 07/12 09:10 NQ

1 job step(s) in query, 0 waiting, 0 pending, 0 running, 1 held, 0 preempted
""")
    assert listing[1] == "------------------------ ----------- ----------- --"


def test_llq_raw():
    # SAGA's adaptor for LoadLeveler
    facts = {"state": "R", "dispatched": moment("03/25 13:47", 2014), "cluster": "kisti.kim"}
    running = step("kim.1.0", **{"class": "normal"}, **facts)
    categories = ["%st", "%dd", "%cc", "%jt", "%c", "%Xs"]
    assert formats.raw([running], categories) == ["R!03/25/2014 13:47!!Serial!normal!kisti.kim"]
    # the regular expression of ARC's scan-ll-job
    assert formats.raw([step("n01.12.0", state="R")], ["%st", "%id"]) == ["R!n01.12.0"]


DIET_LONG = """
=============== Job Step meso-d.16250.0 ===============
        Job Step Id: meso-d.16250.0
           Job Name: meso-d.16250
          Step Name: 0
  Structure Version: 10
              Owner: diet
         Queue Date: Tue Jul 24 10:19:37 CDT 2007
             Status: Running
     Reservation ID:
  Requested Res. ID:
 Scheduling Cluster:
 Submitting Cluster:
    Sending Cluster:
  Requested Cluster:
     Schedd History:
   Outbound Schedds:
    Submitting User:
   Execution Factor: 1
      Dispatch Time: Tue Jul 24 10:19:38 CDT 2007
    Completion Date:
    Completion Code:
        Favored Job: No
      User Priority: 50
       user_sysprio: 0
      class_sysprio: 0
      group_sysprio: 0
    System Priority: 0
          q_sysprio: 0
 Previous q_sysprio: 0
      Notifications: Complete
 Virtual Image Size: 1 kb
         Large Page: N
     Checkpointable: no
    Ckpt Start Time:
Good Ckpt Time/Date:
   Ckpt Elapse Time: 0 seconds
Fail Ckpt Time/Date:
    Ckpt Accum Time: 0 seconds
    Checkpoint File:
   Ckpt Execute Dir:
  Restart From Ckpt: no
 Restart Same Nodes: no
            Restart: yes
        Preemptable: yes
 Preempt Wait Count: 0
     Hold Job Until:
               RSet: RSET_NONE
Mcm Affinity Options:
                Env:
                 In: /dev/null
                Out: output.txt
                Err: error.txt
Initial Working Dir: /users/cri/diet/YC
         Dependency:
          Resources:
          Step Type: General Parallel
         Node Usage: shared
    Submitting Host: meso-d
        Schedd Host: meso-d
      Job Queue Key:
        Notify User: diet@meso-d
              Shell: /bin/ksh
  LoadLeveler Group: cri
              Class: parall
    Ckpt Hard Limit: undefined
    Ckpt Soft Limit: undefined
     Cpu Hard Limit: undefined
     Cpu Soft Limit: undefined
    Data Hard Limit: undefined
    Data Soft Limit: undefined
    Core Hard Limit: undefined
    Core Soft Limit: undefined
    File Hard Limit: undefined
    File Soft Limit: undefined
   Stack Hard Limit: undefined
   Stack Soft Limit: undefined
     Rss Hard Limit: undefined
     Rss Soft Limit: undefined
Step Cpu Hard Limit: undefined
Step Cpu Soft Limit: undefined
Wall Clk Hard Limit: 00:01:00 (60 seconds)
Wall Clk Soft Limit: 00:01:00 (60 seconds)
            Comment:
            Account:
         Unix Group: cri
   NQS Submit Queue:
   NQS Query Queues:
Negotiator Messages:
      Bulk Transfer: No
Step Adapter Memory: 0 bytes
Adapter Requirement:
          Step Cpus: 0
Step Virtual Memory: 0.000 mb
   Step Real Memory: 0.000 mb
--------------------------------------------------------------------------------
Node
----

   Name            :
   Requirements    : (Arch == "R6000") && (OpSys == "AIX53")
   Preferences     :
   Node minimum    : 2
   Node maximum    : 2
   Node actual     : 2
   Allocated Hosts : meso-2::
                   + meso-d::

   Master Task
   -----------

      Executable   : /users/cri/diet/YC/ll_script.essai
      Exec Args    :
      Num Task Inst: 2
      Task Instance: meso-2:0, meso-d:1

1 job step(s) in query, 0 waiting, 0 pending, 1 running, 0 held, 0 preempted
""".strip().splitlines()
"""DIET, Loadleveler_BatchSystem.cc, but for the priorities and limits of its site, the adapters of
its machines, and the second list of tasks, which the stand-in does not have."""


def test_llq_long(in_central_time):
    keywords = {
        "job_type": "parallel",
        "node": "2",
        "class": "parall",
        "group": "cri",
        "wall_clock_limit": "00:01:00",
        "requirements": '(Arch == "R6000") && (OpSys == "AIX53")',
    }
    facts = {
        "owner": "diet",
        "group": "cri",
        "state": "R",
        "submitted": moment("7/24 10:19") + 37,
        "dispatched": moment("7/24 10:19") + 38,
        "output": "output.txt",
        "error": "error.txt",
        "directory": "/users/cri/diet/YC",
        "command_file": "/users/cri/diet/YC/ll_script.essai",
        "submit_host": "meso-d",
        "hosts": ["meso-2", "meso-d"],
    }
    running = step("meso-d.16250.0", keywords, **facts)
    assert said(formats.long_listing([running], selected=True)) == DIET_LONG


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("C", "Completed"),
        ("CA", "Canceled"),
        ("D", "Deferred"),
        ("H", "User Hold"),
        ("HS", "User and System Hold"),
        ("I", "Idle"),
        ("RM", "Removed"),
        ("RP", "Remove Pending"),
        ("S", "System Hold"),
        ("TX", "Terminated"),
    ],
)
def test_llq_long_has_the_words_of_states_that_arc_knows(state, status):
    # NorduGrid ARC, LL.pm
    assert f"             Status: {status}" in formats.long_listing([step(state=state)])


def test_llclass():
    # ZIH Dresden, wiki page on LoadLeveler; CMA, in the tests of nwpc's monitor
    classes = [
        ("interactive", 32, 32, "interactive, exclusive shared nodes, max. 12h runtime"),
        ("triton_ism", 8, 80, "exclusive, serial + parallel queue"),
        ("operation1", 5267, 10752, ""),
    ]
    assert said(formats.class_table(classes)) == [
        "Name                 MaxJobCPU     MaxProcCPU  Free   Max Description",
        "                    d+hh:mm:ss     d+hh:mm:ss Slots Slots",
        "--------------- -------------- -------------- ----- ----- ---------------------",
        "interactive          undefined      undefined    32    32"
        " interactive, exclusive shared nodes, max. 12h runtime",
        "triton_ism           undefined      undefined     8    80"
        " exclusive, serial + parallel queue",
        "operation1           undefined      undefined  5267 9999+",
        "-" * 80,
    ]


def test_llclass_of_a_constrained_class():
    # KISTI, a script for its accounting
    assert said(formats.class_table([("No_class", 0, 0, "")], ["No_class"]))[3:] == [
        "No_class             undefined      undefined     0     0",
        "--------------------------------------------------------------------------------",
        '"Maximum Slots" value of the class "No_class"'
        " is constrained by the MAX_STARTERS limit(s).",
        '"Free Slots" value of the class "No_class" is constrained by the MAX_STARTERS limit(s).',
    ]


def test_llstatus():
    # ZIH Dresden, wiki page on LoadLeveler
    facts = {"schedd": "Avail", "inq": 0, "act": 0, "startd": "Idle", "run": 0, "load": 0.0}
    facts |= {"idle": 9999, "arch": "AMD64", "opsys": "Linux2"}
    names = [*(f"n{number:02}" for number in range(1, 65)), "triton"]
    special = {"n01": {"idle": 2403}, "n06": {"load": 0.71}, "triton": {"idle": 585}}
    machines = [{**facts, "name": name, **special.get(name, {})} for name in names]
    lines = formats.machine_table(machines, "triton")
    assert [lines[index] for index in (0, 1, 2, 6, 65)] == [
        "Name                      Schedd InQ  Act Startd Run LdAvg Idle Arch      OpSys    ",
        "n01                       Avail     0   0 Idle     0 0.00  2403 AMD64     Linux2   ",
        "n02                       Avail     0   0 Idle     0 0.00  9999 AMD64     Linux2   ",
        "n06                       Avail     0   0 Idle     0 0.71  9999 AMD64     Linux2   ",
        "triton                    Avail     0   0 Idle     0 0.00   585 AMD64     Linux2   ",
    ]
    assert lines[66:] == [
        "",
        "AMD64/Linux2               65 machines      0  jobs      0  running tasks",
        "Total Machines             65 machines      0  jobs      0  running tasks",
        "",
        "The Central Manager is defined on triton",
        "",
        "The BACKFILL scheduler is in use",
        "",
        "All machines on the machine_list are present.",
    ]


def test_llq_says_why_a_step_waits():
    # ZIH Dresden, wiki page on LoadLeveler
    facts = {"class": "workq", "why": "Not enough resources to start now."}
    lines = formats.evaluations(step("l1f1n01.4604.0", **facts))
    assert lines[:2] == [
        "==================== EVALUATIONS FOR JOB STEP l1f1n01.4604.0 ====================",
        'The class of this job step is "workq".',
    ]
    assert lines[-1] == "Not enough resources to start now."


@pytest.mark.parametrize(
    ("meant", "is_so"),
    [
        ("juqueen1c1.zam.kfa-juelich.de.281506", True),
        ("juqueen1c1.zam.kfa-juelich.de.281506.0", True),
        ("juqueen1c1.281506", True),
        ("juqueen1c1.281506.0", True),
        ("281506", True),
        ("juqueen1c1.281506.1", False),
        ("juqueen1c1.28150", False),
        ("other.281506", False),
        ("0", False),
    ],
)
def test_commands_take_ids_in_many_forms(meant, is_so):
    assert formats.is_meant("juqueen1c1.zam.kfa-juelich.de.281506.0", meant) is is_so
