"""Tools that drove LoadLeveler at real sites must understand the stand-in.

Their rules of parsing, written again from their documentation and sources. That tools which know
nothing of each other agree on what the stand-in says is better evidence than any one transcript.
"""

import re

import pytest

from .samples import submit
from .standin import StandIn


def cylc(out):
    return re.search(r'\Allsubmit:\sThe\sjob\s"(?P<id>[^"]+)"\s', out)["id"]


def saga(out):
    [line] = [
        line for line in out.splitlines() if re.search('The job ".+" has been submitted', line)
    ]
    return line.split('"')[1]


def arc(out):
    return out.split('"')[1] + ".0"


def batchelor(out):
    return int(out.split('"')[1].partition(".")[2])


def elaps(out):
    return re.search(r'"(.*?)"', out)[1]


def kepler(out):
    return out.partition(" has been submitted")[0].split('"')[1]


def xsub(out):
    return re.search(r'^llsubmit: The job "(.+)" has been submitted', out, re.MULTILINE)[1]


def diet(out):
    return out.split('"')[1].split(".")[1]


def abipy(out):
    return int(out.split()[3].strip('"').split(".")[-1])


def pyspace(out):
    return out.split('"')[1].split(".")[-1]


def fireworks(out):
    return int(re.search(r"\d+", out.strip().splitlines()[-1])[0])


SHORT = {
    cylc: "mgmt.7",
    saga: "mgmt.7",
    arc: "mgmt.7.0",
    batchelor: 7,
    elaps: "mgmt.7",
    kepler: "mgmt.7",
    xsub: "mgmt.7",
    diet: "7",
    abipy: 7,
    pyspace: "7",
    fireworks: 7,
}
LONG_ID = "login1.cluster-2.example.org.7"
LONG = {
    cylc: LONG_ID,
    saga: LONG_ID,
    arc: f"{LONG_ID}.0",
    elaps: LONG_ID,
    kepler: LONG_ID,
    xsub: LONG_ID,
    abipy: 7,
    pyspace: "7",
}
"""The others were written for one site each, whose host had no domain and no digits."""

NOISE = {"path": "/site/filter", "before": ["KBGT60003-I Budget of bu0701 is fine."]}


def at_site(path, host):
    return StandIn(path, schedd_host=host, first_id=7, submit_filter=NOISE, backfill=True)


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    """A site where 7 runs, 8 is held, and 9 has two steps that can never run."""
    with at_site(tmp_path_factory.mktemp("site"), "mgmt") as site:
        submit(site)
        site.wait_for("7", "R")
        submit(site, "hold = user")
        two = "# @ resources = ConsumableCpus(99)\n# @ queue\n# @ queue\n"
        site.submitted = site.run("llsubmit", "-", stdin=two)
        site.wait_for("8", "H")
        yield site


def answer(site, *command):
    done = site.run(*command)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("host", ["mgmt", "login1.cluster-2.example.org"])
def test_tools_find_the_id(tmp_path, host):
    with at_site(tmp_path, host) as site:
        done = site.run("llsubmit", "-", stdin="# @ hold = user\n# @ queue\n")
        expected = SHORT if host == "mgmt" else LONG
        assert {tool: tool(done.stdout) for tool in expected} == expected
        chatter = done.stderr.splitlines()  # cylc drops these lines, and any other is an error
        assert chatter[1:] == [
            "KBGT60003-I Budget of bu0701 is fine.",
            'llsubmit: Processed command file through Submit Filter: "/site/filter".',
        ]


def test_rocoto_finds_the_id_of_a_job_with_two_steps(queue):
    found = re.search(r'The job "(\w+\.\d+)" with 2 job steps has been', queue.submitted.stdout)
    assert found[1] == "mgmt.9"


def test_cylc_polls(queue):
    def is_queued(job):
        out = answer(queue, "llq", "-f%id", job)
        firsts = [(line.split() or [""])[0] for line in out.splitlines()]
        return any(first == job or first.startswith(f"{job}.") for first in firsts)

    assert [is_queued(job) for job in ("mgmt.7", "mgmt.8", "mgmt.70")] == [True, True, False]


def test_cylc_polls_many(queue):
    firsts = [(line.split() or [""])[0] for line in answer(queue, "llq").splitlines()]
    jobs = {".".join(first.split(".")[:2]) for first in firsts}
    assert {"mgmt.7", "mgmt.8", "mgmt.9"} <= jobs


def test_saga_polls(queue):
    def state(job):
        out = answer(queue, "llq", "-j", job, "-r", "%st", "%dd", "%cc", "%jt", "%c", "%Xs")
        fields = out.strip().split("!")
        assert len(fields) == 6
        return fields[0]

    assert [state("mgmt.7"), state("mgmt.8")] == ["R", "H"]


def test_arc_polls(queue):
    lines = answer(queue, "llq", "-r", "%st", "%id", "mgmt.7.0", "mgmt.8.0").splitlines()
    assert all(re.fullmatch(r"[A-Z]{1,2}!.+", line) for line in lines)
    assert dict(reversed(line.split("!")) for line in lines) == {"mgmt.7.0": "R", "mgmt.8.0": "H"}


def test_rocoto_polls(queue):
    owner = queue.steps()[0]["owner"]
    out = answer(queue, "llq", "-u", owner, "-f", "%id", "%st")
    states = dict(re.findall(r"^(\w+\.\d+\.\d+)\s+([A-Z]+)\s*$", out, re.MULTILINE))
    assert states == {"mgmt.7.0": "R", "mgmt.8.0": "H", "mgmt.9.0": "I", "mgmt.9.1": "I"}


@pytest.mark.parametrize("command", [["llq", "mgmt.7"], ["llq", "-j", "mgmt.7"]])
def test_batchelor_elaps_and_diet_read_the_footer(queue, command):
    out = answer(queue, *command)
    assert "1 running" in out
    assert "0 waiting, 0 pending" in out


def test_kepler_polls_by_the_long_id_and_reads_the_short_one(tmp_path):
    with at_site(tmp_path, "login1.cluster-2.example.org") as site:
        job = kepler(site.run("llsubmit", "-", stdin="# @ hold = system\n# @ queue\n").stdout)
        site.wait_for(job, "S")
        local = re.sub(r"^(\w+)\..*\.(\d+)$", r"\1.\2", job)
        out = answer(site, "llq", "-f", "%id", "%o", "%dq", "%st", job)
        [line] = [line for line in out.splitlines() if line.strip().startswith(local)]
        fields = re.split(" +", line.strip())
        assert len(fields) >= 5
        assert fields[4] == "S"


def test_xsub_tells_jobs_that_are_gone_by_the_code_of_its_site(queue):
    columns = {line.split()[0]: line.split()[4] for line in answer(queue, "llq").splitlines()[2:6]}
    assert columns["mgmt.7.0"] == "R"
    queue.configure(quirks={"done_rc": 153})
    gone = queue.run("llq", "mgmt.1000")
    assert (gone.returncode, gone.stdout) == (153, "")
    queue.configure(quirks={})


def test_abipy_counts_the_lines_of_a_user(queue):
    owner = queue.steps()[0]["owner"]
    assert sum(owner in line for line in answer(queue, "llq", "-u", owner).split("\n")) == 4
    nobody = answer(queue, "llq", "-u", "nobody-at-all")
    assert nobody == "llq: There is currently no job status to report.\n"


def test_arc_reads_the_limits_of_classes(queue):
    out = answer(queue, "llclass", "-l", "short")
    assert re.search(r"^=+ .*$", out, re.MULTILINE)
    assert re.search(r"^ *Name: (\S+)$", out, re.MULTILINE)[1] == "short"
    assert re.search(r"Wall_clock_limit: .*?\((\d+) seconds", out)[1] == "3600"
    assert out.rstrip().endswith("-" * 80)


def test_arc_reads_the_consumables_of_machines(queue):
    rows = re.findall(
        r"^(\S+?)(#?)\s+ConsumableCpus\*\((\d+),(\d+)\)", answer(queue, "llstatus", "-R"), re.M
    )
    assert rows[0] == ("n01", "", "2", "2")
    assert len(rows) == 4
