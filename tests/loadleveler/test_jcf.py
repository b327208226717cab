"""Job command files: the grammar, what llsubmit refuses, and the shapes of real ones."""

import re

import pytest

from .llsim import config, formats, jcf, values
from .llsim.jcf import RefusedError
from .llsim.spool import Spool
from .llsim.submission import submit
from .shapes import SHAPES

CLASSES = ["ns", "normal", "serial", "clallmds+", "forecast"]
QUEUE = "# @ queue\n"
TIME = "# @ wall_clock_limit = 60\n"


def keywords(*lines):
    [step], _ = jcf.parse("\n".join([*lines, QUEUE]))
    return step


@pytest.fixture
def site(tmp_path):
    """Submit a text without commands and without negotiator; return the steps."""
    classes = {**config.DEFAULTS["classes"], **{name: {} for name in CLASSES}}
    spool = Spool.create(tmp_path / "spool", first_id=7)

    def submit_text(text, **changes):
        changes = {"allow_root": True, "classes": classes, **changes}
        submit(text, spool, config.complete(changes), environ={"SAID": "by the submitter"})
        return spool.steps()

    yield submit_text
    spool.close()


@pytest.mark.parametrize(
    "line",
    [
        "# @ class = c",
        "#@class=c",
        "#   @   class   =   c   ",
        "# @ Class = c",
        "# @ CLASS =c",
        "  # @ class= c",
    ],
)
def test_blanks_and_the_case_of_keywords_do_not_matter(line):
    assert keywords(line) == {"class": "c"}


@pytest.mark.parametrize(
    "line", ["## @ class = c", "##@ class = c", "# #@ class = c", "# class = c"]
)
def test_other_comments_are_no_statements(line):
    assert keywords(line) == {}


def test_values_may_hold_equal_signs_and_names_may_hold_dots():
    lines = ["# @ environment = OMP_NUM_THREADS = 1", "# @ network.MPI = sn_all,,us"]
    assert keywords(*lines) == {"environment": "OMP_NUM_THREADS = 1", "network.mpi": "sn_all,,us"}


def test_a_backslash_continues_a_statement_and_drops_a_leading_hash():
    assert keywords("# @ arguments = a \\", "#  b \\", "c") == {"arguments": "a b c"}


def test_a_continued_line_must_not_be_a_statement():
    with pytest.raises(RefusedError, match="continued"):
        keywords("# @ arguments = a \\", "# @ class = c")


def test_keywords_said_earlier_are_variables_whatever_their_case():
    lines = ["# @ job_name = j", "# @ output = $(Job_Name).out", "# @ error = $(OUTPUT)"]
    assert keywords(*lines)["error"] == "j.out"


def test_what_is_said_later_and_shell_variables_are_not_expanded():
    lines = ["# @ output = $(error) $HOME ~ ${HOME}", "# @ error = e"]
    assert keywords(*lines)["output"] == "$(error) $HOME ~ ${HOME}"


def test_later_steps_inherit_from_the_first_step_only():
    text = """
# @ class = c
# @ step_name = one
# @ queue
# @ account_no = a
# @ dependency = (one == 0)
# @ queue
# @ class = d
# @ queue
echo script
"""
    steps, script = jcf.parse(text)
    assert steps == [
        {"class": "c", "step_name": "one"},
        {"class": "c", "account_no": "a", "dependency": "(one == 0)"},
        {"class": "d"},
    ]
    assert script.strip() == "echo script"


def test_statements_without_value_are_tolerated_and_others_are_not():
    assert keywords("# @", "# @ platforms", "# @ class =") == {"class": ""}
    with pytest.raises(RefusedError, match="syntax error"):
        keywords("# @ not a statement")


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_of_a_real_file_is_accepted_and_shown_by_llq(site, name):
    text, shown = SHAPES[name]
    [step, *_] = site(text)
    listing = "\n".join(formats.long_listing([step]))
    for label, value in shown.items():
        assert re.search(rf"^ *{re.escape(label)} *: ?{re.escape(value)}$", listing, re.M), label


REFUSED = [
    ("echo", "no 'queue'"),
    ("# @ colour = red", "unknown keyword: colour"),
    ("# @ class = nowhere", "'nowhere' is not defined"),
    ("# @ wall_clock_limit = 9999999", "above the 86400 seconds"),
    ("# @ wall_clock_limit = unlimited", "above the 86400 seconds"),
    ("# @ wall_clock_limit = abc", "not a limit of time"),
    ("# @ wall_clock_limit = 10,20", "soft limit is above"),
    ("# @ resources = ConsumableCpus(0)", "must be positive"),
    ("# @ resources = ConsumableCpus(1.5)", "not an integer"),
    ("# @ resources = ConsumableCpus(one)", "not an integer"),
    ("# @ resources = ConsumableMemory(1 xb)", "not an amount of memory"),
    ("# @ resources = ConsumableMemory(0)", "must be positive"),
    ("# @ resources = ConsumableCpus 1", "syntax error"),
    ("# @ node = 2", "needs job_type = parallel"),
    ("# @ job_type = parallel\n# @ total_tasks = 4\n# @ tasks_per_node = 2", "exclude each other"),
    ("# @ job_type = odd", "must be one of"),
    ("# @ restart = maybe", "must be one of no, yes"),
    ("# @ notification = daily", "must be one of"),
    ("# @ user_priority = 101", "0 to 100"),
    ("# @ executable = /no/such/program", "cannot execute"),
    ('# @ requirements = (Feature = "x")', "syntax error"),
    ('# @ requirements = (Feature == "x"', "lacks its"),
    ("# @ startdate = tomorrow", "not a date"),
    ("# @ environment = COPY", "syntax error in environment"),
]


@pytest.mark.parametrize(("text", "why"), REFUSED)
def test_a_file_is_refused_for_a_reason(site, text, why):
    with pytest.raises(RefusedError, match=re.escape(why)):
        site(text if text == "echo" else f"{text}\n{QUEUE}")


def test_sites_may_demand_resources_accounts_and_users(site):
    job = TIME + QUEUE
    with pytest.raises(RefusedError, match="must name ConsumableMemory"):
        site(job, enforce_resource_submission=["ConsumableMemory"])
    with pytest.raises(RefusedError, match="account number None"):
        site(job, accounts=["a1"])
    with pytest.raises(RefusedError, match="may not use the class"):
        site(job, classes={"No_Class": {"include_users": ["nobody in particular"]}})
    with pytest.raises(RefusedError, match="submit filter"):
        site(job, submit_filter={"path": "/filter", "reject": "wall_clock_limit = 60"})
    assert len(site("# @ account_no = a1\n" + job, accounts=["a1"])) == 1


def test_a_limit_is_required_where_neither_job_nor_class_has_one(site):
    bare = {"No_Class": {}}
    with pytest.raises(RefusedError, match="wall_clock_limit is required"):
        site(QUEUE, classes=bare)
    [step] = site(QUEUE, classes=bare, scheduler="LL_DEFAULT")
    assert step["wall"] == [None, None]


def test_a_refused_file_uses_up_no_number(site):
    with pytest.raises(RefusedError):
        site("# @ startdate = never\n" + QUEUE)
    assert site(QUEUE)[0]["job"] == 7


def test_defaults_of_a_step(site):
    [step] = site(QUEUE)
    assert step["restart"] is True
    assert (step["input"], step["output"], step["error"]) == ("/dev/null",) * 3
    assert (step["class"], step["priority"], step["step_name"]) == ("No_Class", 50, "0")
    assert step["job_name"] == "submit1.example.org.7"
    assert (step["nodes"], step["tasks_per_node"], step["shared"]) == ([1, 1], 1, True)


@pytest.mark.parametrize(
    ("text", "megabytes"),
    [
        ("3200", 3200),
        ("1 gb", 1024),
        ("750Mb", 750),
        ("1b", 1),
        ("1048577 b", 2),
        ("1w", 1),
        ("512kw", 2),
        ("1tb", 2**20),
        ("1 pw", 2**32),
        ("0", 0),
    ],
)
def test_memory_is_counted_in_powers_of_two_and_rounded_up(text, megabytes):
    assert values.megabytes(text) == megabytes


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("90", [90, 90]),
        ("1:30", [90, 90]),
        ("140:00:00", [504000, 504000]),
        ("00:25:00, 00:20:00", [1500, 1200]),
        ("240,180", [240, 180]),
        ("1.5", [1.5, 1.5]),
        ('"60"', [60, 60]),
        ("unlimited", [None, None]),
        ("rlim_infinity,30", [None, 30]),
    ],
)
def test_limits_of_time(text, limits):
    assert values.limits(text) == limits


@pytest.mark.parametrize(
    "text", ["", "abc", "1:2:3:4", "-5", "10,20", "1,2,3", "10,unlimited", "1h"]
)
def test_what_is_no_limit_of_time(text):
    with pytest.raises(RefusedError):
        values.limits(text)


def test_resources_name_whatever_the_site_counts():
    text = "consumablecpus(2)ConsumableMemory( 1 gb ) Licences(3)"
    expected = {"consumablecpus": 2, "consumablememory": 1024, "licences": 3}
    assert values.resources(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("COPY_ALL", {"A": "1", "B": "2"}),
        ("copy_all; A=3;", {"A": "3", "B": "2"}),
        ("A=3; COPY_ALL", {"A": "3", "B": "2"}),
        ("$B; $C; D = 4", {"B": "2", "D": "4"}),
        ("COPY_ALL; !A", {"B": "2"}),
        ('"COPY_ALL; E=x=y"', {"A": "1", "B": "2", "E": "x=y"}),
    ],
)
def test_the_environment_of_a_step(text, expected):
    assert values.environment(text, {"A": "1", "B": "2"}) == expected
