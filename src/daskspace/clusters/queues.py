"""What the queue of a batch system says of its jobs.

A dialect is data and pure functions: job ids in, one command line out; its output in, jobs out.
Slurm and Grid Engine are tested against real ones. The others follow their documentation and what
other programs read from them, so their parsers take what they know and pass over the rest.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import pwd
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from daskspace.errors import BackendError

STATES = ("waiting", "held", "running", "ending", "ended")
# Of several steps or tasks of one job, the liveliest stands for it.
_LIVELIEST = ("running", "ending", "held", "waiting", "ended")


class QueueError(BackendError):
    """The queue could not be asked, or not be told."""


@dataclass(frozen=True)
class QueuedJob:
    """One job as its batch system sees it.

    Parameters
    ----------
    job_id : str
        The id, as the system spells it here.
    state : str
        One of `STATES`. A suspended job is held; one whose state we do not know is waiting.
    word : str
        The system's own word for the state.
    reason : str, optional
        Why it waits, is held, or ended, in the system's words, where the query tells.
    name : str, optional
        The job's name, where the query tells.
    """

    job_id: str
    state: str
    word: str
    reason: str = ""
    name: str = ""


def _same(text: str) -> str:
    return text


def _never(code: int, said: str) -> bool:
    return False


@dataclass(frozen=True)
class Queue:
    """How the queue of one batch system is asked, and told to cancel.

    Parameters
    ----------
    system : str
        Its name: dask-jobqueue's ``config_name``.
    query : callable
        ``query(job_ids, user)`` is one command line that tells of all these jobs.
    parse : callable
        Returns the jobs that its standard output tells of; never raises.
    cancel : tuple of str
        The command that ids are appended to.
    walltime : callable
        Returns the seconds that a time limit in the system's notation means, None for no limit;
        raises ValueError for what the system would not take.
    key : callable, optional
        What two spellings of one job's id have in common.
    explain : callable, optional
        ``explain(job_id)`` is a command line whose output tells why one job waits.
    has_none : callable, optional
        ``has_none(exit_code, said)``: the query failed only because it knows no such jobs.
    """

    system: str
    query: Callable[[Sequence[str], str], list[str]]
    parse: Callable[[str], list[QueuedJob]]
    cancel: tuple[str, ...]
    walltime: Callable[[Any], float | None]
    key: Callable[[str], str] = _same
    explain: Callable[[str], list[str]] | None = None
    has_none: Callable[[int, str], bool] = _never

    @property
    def tells_all(self) -> bool:
        """Whether the query tells of all jobs of a user, whatever ids it is given."""
        return self.query([], "user") == self.query(["1"], "user")


def ask(
    queue: Queue, job_ids: Iterable[str], *, extra: Sequence[str] = (), timeout_s: float = 30.0
) -> dict[str, QueuedJob]:
    """Return what the queue says of each of `job_ids`; those it does not mention are absent.

    Parameters
    ----------
    queue : Queue
        The batch system.
    job_ids : iterable of str
        Ids as they were told on submission.
    extra : sequence of str, optional
        Arguments for the query, such as those that choose a cluster.
    timeout_s : float, optional
        How long the query may take.

    Raises
    ------
    QueueError
        If there is no such command, it failed, or it took too long.
    ValueError
        If an id is none.
    """
    ids = list(job_ids)
    if not ids:
        return {}
    jobs = look(queue, ids, extra=extra, timeout_s=timeout_s)
    found = {queue.key(job.job_id): job for job in jobs}
    return {job_id: found[key] for job_id in ids if (key := queue.key(job_id)) in found}


def look(
    queue: Queue, job_ids: Iterable[str], *, extra: Sequence[str] = (), timeout_s: float = 30.0
) -> list[QueuedJob]:
    """Return every job that the query for `job_ids` tells of; some tell all of the user's jobs.

    Raises as `ask` does.
    """
    ids = [_checked(job_id) for job_id in job_ids]
    if not ids and not queue.tells_all:
        return []
    argv = _with(extra, queue.query(ids, _user()))
    code, out, err = _run(argv, timeout_s)
    if code and not queue.has_none(code, err or out):
        raise QueueError(f"{argv[0]}: {_said(code, err or out)}")
    found: dict[str, QueuedJob] = {}
    for job in sorted(queue.parse(out), key=lambda job: _LIVELIEST.index(job.state)):
        found.setdefault(queue.key(job.job_id), job)
    return list(found.values())


def cancel(
    queue: Queue, job_ids: Iterable[str], *, extra: Sequence[str] = (), timeout_s: float = 30.0
) -> str:
    """Cancel jobs by one command; return what it said if it failed, else an empty string.

    A failure is often that of a job which is gone already; `ask` tells what is left.

    Raises
    ------
    QueueError
        If there is no such command, or it took too long.
    ValueError
        If an id is none.
    """
    ids = [_checked(job_id) for job_id in job_ids]
    if not ids:
        return ""
    code, out, err = _run(_with(extra, [*queue.cancel, *ids]), timeout_s)
    return _said(code, err or out) if code else ""


def why(queue: Queue, job_id: str, *, extra: Sequence[str] = (), timeout_s: float = 30.0) -> str:
    """Return the system's explanation why one job waits, empty where it has none.

    Raises
    ------
    QueueError
        If there is no such command, it failed, or it took too long.
    """
    if queue.explain is None:
        return ""
    argv = queue.explain(_checked(job_id))
    code, out, err = _run(_with(extra, argv), timeout_s)
    if code and not out.strip():
        raise QueueError(f"{argv[0]}: {_said(code, err)}")
    return out.strip()


def _with(extra: Sequence[str], argv: list[str]) -> list[str]:
    return [argv[0], *extra, *argv[1:]]


def _checked(job_id: str) -> str:
    if not re.fullmatch(r"\w[\w.\-\[\]+]*", job_id, re.ASCII):
        raise ValueError(f"{job_id!r} is no job id")
    return job_id


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _said(code: int, words: str) -> str:
    return f"exit code {code}: {words.strip()}" if words.strip() else f"exit code {code}"


def _run(argv: list[str], timeout_s: float) -> tuple[int, str, str]:
    """Run a command to its end, or kill it with all that it started."""
    # A user's SQUEUE_PARTITION and the like would hide jobs.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment, "LC_ALL": "C"},
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise QueueError(f"{argv[0]}: {error.strerror or error}") from error
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise QueueError(f"{argv[0]}: no answer within {timeout_s:g} s") from error
        finally:
            if process.returncode is None:
                # Behind a site's wrapper script, what hangs is a child that holds our pipes.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


# --- ids ---


def _leading_number(job_id: str) -> str:
    """``12345`` of ``12345.server``, ``12345[7]``, ``12345_7``."""
    found = re.match(r"\d+", job_id)
    return found[0] if found else job_id


def _first_number(job_id: str) -> str:
    """``12345`` of ``Moab.12345``."""
    found = re.search(r"\d+", job_id)
    return found[0] if found else job_id


def _host_and_number(job_id: str) -> str:
    """``host.12`` of ``host.domain.12`` (told on submission) and ``host.12.0`` (in the queue)."""
    labels = job_id.split(".")
    numbers = [n for n, label in enumerate(labels) if n and label.isdecimal()]
    trailing = [n for n in numbers if n >= len(labels) - 2]
    return f"{labels[0]}.{labels[trailing[0]]}" if trailing else job_id


# --- time limits ---


def _limit(seconds_of: Callable[[str], float], *none: str) -> Callable[[Any], float | None]:
    """Make a reader of time limits from a function of their text; words in `none` mean no limit."""

    def walltime(value: Any) -> float | None:
        text = "" if value is None else str(value).strip()
        if not text or text.lower() in none:
            return None
        try:
            return seconds_of(text)
        except ValueError:
            raise ValueError(f"{value!r} is no time limit") from None

    return walltime


def _numbers(text: str, most: int) -> list[float]:
    fields = text.split(":")
    if len(fields) > most or not all(re.fullmatch(r"[0-9]+(\.[0-9]+)?", field) for field in fields):
        raise ValueError(text)
    return [float(field) for field in fields]


def _clock(text: str, units: Sequence[int] = (86400, 3600, 60, 1)) -> float:
    """``[[[D:]H:]M:]S``."""
    numbers = _numbers(text, len(units))
    return sum(n * unit for n, unit in zip(numbers, units[-len(numbers) :], strict=True))


def _hours_first(text: str) -> float:
    """``H[:M[:S]]``."""
    return sum(n * unit for n, unit in zip(_numbers(text, 3), (3600, 60, 1), strict=False))


def _slurm_time(text: str) -> float:
    # https://slurm.schedmd.com/sbatch.html#OPT_time
    days, dash, rest = text.partition("-")
    if dash:
        return 86400 * _numbers(days, 1)[0] + _hours_first(rest)
    return _clock(text) if ":" in text else 60 * _numbers(text, 1)[0]


def _lsf_time(text: str) -> float:
    # bsub -W [hour:]minute[/host_name | /host_model]
    return 60 * _clock(text.partition("/")[0], (60, 1))


def _loadleveler_time(text: str) -> float:
    # wall_clock_limit = hard[,soft]; a job is told to go at the soft limit
    hard, _, soft = text.strip('"').partition(",")
    return _clock((soft or hard).strip())


# --- states ---


def _table(**words: str) -> dict[str, str]:
    """Turn ``waiting="Q W"`` around: ``{"Q": "waiting", "W": "waiting"}``."""
    return {word: state for state, listed in words.items() for word in listed.split()}


def _job(job_id: str, word: str, state: str | None, reason: str = "", name: str = "") -> QueuedJob:
    """Tidy up a job; one in a state that we do not know is not given up."""
    return QueuedJob(job_id.strip(), state or "waiting", word, _words(reason), name.strip())


def _words(text: str) -> str:
    text = " ".join(text.split())
    return "" if text.lower() in {"none", "-", "(null)", "undefined", "n/a"} else text


_SLURM = _table(  # https://slurm.schedmd.com/job_state_codes.html
    waiting="PENDING CONFIGURING REQUEUED REQUEUE_FED EXPEDITING POWER_UP_NODE",
    held="SUSPENDED STOPPED REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD",
    running="RUNNING RESIZING",
    ending="COMPLETING SIGNALING STAGE_OUT",
    ended="BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED"
    " REVOKED TIMEOUT LAUNCH_FAILED RECONFIG_FAIL UPDATE_DB",
)


def _parse_slurm(text: str) -> list[QueuedJob]:
    """Read ``id|state|reason|name`` lines."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 3)
        if len(fields) < 4 or not re.match(r"\d", fields[0].strip()):
            continue
        job_id, word, reason, name = (field.strip() for field in fields)
        state = _SLURM.get(word)
        # "JobHeldUser", "launch failed requeued held", "job requeued in held state"
        if word == "PENDING" and "held" in reason.lower():
            state = "held"
        elif word == "CANCELLED":  # it keeps the reason why it waited once
            reason = ""
        jobs.append(_job(job_id, word, state, reason, name))
    return jobs


_PBS = _table(  # qstat(1B) of OpenPBS and of Torque
    waiting="Q W T",
    held="H S U",
    running="R B",
    ending="E",
    ended="C F X M",
)
_PBS_CODES = ("Exit_status", "exit_status")


def _parse_pbs(text: str) -> list[QueuedJob]:
    """Read ``Job Id: x`` blocks of ``attribute = value``; long values go on after a tab."""
    jobs = []
    for block in re.split(r"^Job Id:", text.replace("\n\t", ""), flags=re.MULTILINE)[1:]:
        job_id, _, rest = block.partition("\n")
        attributes = dict(re.findall(r"^[ \t]*([\w.]+) = (.*?)[ \t\r]*$", rest, re.MULTILINE))
        word = attributes.get("job_state", "")
        if not job_id.strip() or not word:
            continue
        reason = attributes.get("comment", "")
        if word == "H" and not reason and "Hold_Types" in attributes:
            reason = f"Hold_Types = {attributes['Hold_Types']}"
        state = _PBS.get(word)
        if state == "ended":
            codes = [f"{key} = {value}" for key, value in attributes.items() if key in _PBS_CODES]
            reason = " ".join(codes) or reason
        elif word == "R":  # "Job run at ..."
            reason = ""
        jobs.append(_job(job_id, word, state, reason, attributes.get("Job_Name", "")))
    return jobs


def _sge_state(word: str) -> str:
    """Read a set of letters: ``hqw`` is held, ``dr`` is running and being deleted. See qstat(1)."""
    for letters, state in (("d", "ending"), ("EhsST", "held"), ("rt", "running")):
        if any(letter in word for letter in letters):
            return state
    return "ended" if "z" in word else "waiting"


def _parse_sge(text: str) -> list[QueuedJob]:
    """Read ``<job_list>`` elements, leniently: a job's name may make the XML invalid."""
    jobs = []
    for element in re.findall(r"<job_list\b.*?</job_list>", text, re.DOTALL):
        found = {
            tag: html.unescape(value.strip())
            for tag, value in re.findall(r"<(JB_job_number|JB_name|state)>([^<]*)</\1>", element)
        }
        if "JB_job_number" in found and (word := found.get("state", "")):
            name = found.get("JB_name", "")
            jobs.append(_job(found["JB_job_number"], word, _sge_state(word), "", name))
    return jobs


_LSF = _table(  # bjobs(1); UNKWN: the host is out of touch, the job may well run
    waiting="PEND WAIT PROV",
    held="PSUSP USUSP SSUSP",
    running="RUN UNKWN",
    ending="ZOMBI",
    ended="DONE EXIT",
)


def _parse_lsf(text: str) -> list[QueuedJob]:
    """Read ``jobid|stat|exit_reason|job_name`` lines."""
    jobs = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 3)]
        if len(fields) == 4 and re.match(r"\d", fields[0]):
            job_id, word, reason, name = fields
            jobs.append(_job(job_id, word, _LSF.get(word), reason, name))
    return jobs


_HTCONDOR = {  # JobStatus: https://htcondor.readthedocs.io, "Job ClassAd Attributes"
    "1": ("waiting", "Idle"),
    "2": ("running", "Running"),
    "3": ("ending", "Removed"),
    "4": ("ended", "Completed"),
    "5": ("held", "Held"),
    "6": ("ending", "Transferring Output"),
    "7": ("held", "Suspended"),
}


def _parse_htcondor(text: str) -> list[QueuedJob]:
    """Read tab-separated id, JobStatus, JobBatchName, RemoveReason, HoldReason."""
    jobs = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("\t", 4)]
        if len(fields) != 5 or not re.fullmatch(r"\d+\.\d+", fields[0]):
            continue
        job_id, number, name, removed, held = fields
        state, word = _HTCONDOR.get(number, ("waiting", number))
        jobs.append(_job(job_id, word, state, _words(held) or removed, _words(name)))
    return jobs


_OAR = _table(  # https://oar.readthedocs.io, "Database scheme", jobs.state
    waiting="Waiting toLaunch Launching toAckReservation",
    held="Hold Suspended Resuming",
    running="Running",
    ending="Finishing toError",
    ended="Terminated Error",
)


def _parse_oar(text: str) -> list[QueuedJob]:
    """Read a JSON object of jobs by id (OAR 2), or a list of them."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if isinstance(found, dict):
        pairs = [(str(job_id), job) for job_id, job in found.items()]
    else:
        pairs = [("", job) for job in found] if isinstance(found, list) else []
    jobs = []
    for key, job in pairs:
        if not isinstance(job, dict) or not isinstance(word := job.get("state"), str):
            continue
        job_id = key or str(job.get("Job_Id") or job.get("id") or "")
        if job_id.isdecimal():
            reason = "" if word == "Running" else str(job.get("message") or "")
            jobs.append(_job(job_id, word, _OAR.get(word), reason, str(job.get("name") or "")))
    return jobs


_MOAB = _table(  # Moab Workload Manager Administrator's Guide, "Job States"
    waiting="idle migrated notqueued staging staged",
    held="hold userhold systemhold batchhold deferred suspended",
    running="running starting",
    ending="canceling",
    ended="completed removed vacated cancelled failed",
)


def _parse_moab(text: str) -> list[QueuedJob]:
    """Read ``<job JobID="1" State="Idle" BlockReason="..."/>`` elements."""
    jobs = []
    for element in re.findall(r'<job\b((?:[^"<>]|"[^"]*")*)>', text):
        found = {
            name: html.unescape(value) for name, value in re.findall(r'(\w+)="([^"]*)"', element)
        }
        job_id, word = found.get("JobID", "").strip(), found.get("State", "").strip()
        if not job_id or not word:
            continue
        reason = found.get("BlockReason", "")
        state = _MOAB.get(word.lower())
        if state == "waiting" and "hold" in reason.lower():
            state = "held"
        if state == "ended" and found.get("CompletionCode"):
            reason = f"CompletionCode {found['CompletionCode']}"
        jobs.append(_job(job_id, word, state, reason, found.get("JobName", "")))
    return jobs


# NQ (not queued: too many of the user's jobs are) and D (deferred) are not considered until
# something else happens; V and X are ends for jobs with `restart = no`.
_LOADLEVELER = _table(
    waiting="I P",
    held="H S HS HU E EP NQ D",
    running="R ST CK MP",
    ending="CP RP VP XP",
    ended="C CA NR RM SX TX V X",
)


def _parse_loadleveler(text: str) -> list[QueuedJob]:
    """Read ``status!step id`` lines, as ``llq -r`` has them."""
    found = re.findall(r"^[ \t]*([A-Z]{1,2})!([^!\s]+)[ \t\r]*$", text, re.MULTILINE)
    return [_job(step_id, word, _LOADLEVELER.get(word)) for word, step_id in found]


# --- systems ---


def _only(pattern: str) -> Callable[[int, str], bool]:
    """Recognise a failure each of whose lines tells of jobs that are not known any more."""

    def has_none(code: int, said: str) -> bool:
        lines = said.strip().splitlines()
        return bool(lines) and all(re.search(pattern, line, re.IGNORECASE) for line in lines)

    return has_none


_CLOCK = _limit(_clock, "unlimited", "infinity", "-1")
_ALL = (
    Queue(
        system="slurm",
        query=lambda ids, user: [
            *("squeue", "--noheader", "--states=all"),
            *("--user", user, "--format", "%i|%T|%r|%j"),
        ],
        parse=_parse_slurm,
        cancel=("scancel",),
        walltime=_limit(_slurm_time, "unlimited", "infinite", "-1", "0"),
        key=_leading_number,
    ),
    Queue(
        system="pbs",
        query=lambda ids, user: ["qstat", "-f", *ids],
        parse=_parse_pbs,
        cancel=("qdel",),
        walltime=_CLOCK,
        key=_leading_number,
        has_none=_only(r"unknown job|has finished"),
    ),
    Queue(
        system="sge",
        query=lambda ids, user: ["qstat", "-u", user, "-xml"],
        parse=_parse_sge,
        cancel=("qdel",),
        walltime=_CLOCK,
        key=_leading_number,
        explain=lambda job_id: ["qstat", "-j", job_id],
    ),
    Queue(
        system="lsf",
        query=lambda ids, user: [
            *("bjobs", "-a", "-u", user, "-noheader"),
            *("-o", "jobid stat exit_reason job_name delimiter='|'"),
        ],
        parse=_parse_lsf,
        cancel=("bkill",),
        walltime=_limit(_lsf_time),
        key=_leading_number,
        explain=lambda job_id: ["bjobs", "-l", job_id],
        has_none=_only(r"no (\w+ )?job found|is not found"),
    ),
    Queue(
        system="htcondor",
        query=lambda ids, user: [
            *("condor_q", *ids),
            *("-af:jt", "JobStatus", "JobBatchName", "RemoveReason", "HoldReason"),
        ],
        parse=_parse_htcondor,
        cancel=("condor_rm",),
        walltime=_limit(lambda text: _numbers(text, 1)[0]),
    ),
    Queue(
        system="oar",
        query=lambda ids, user: ["oarstat", "-J", *(word for i in ids for word in ("-j", i))],
        parse=_parse_oar,
        cancel=("oardel",),
        walltime=_limit(_hours_first),  # oarsub(1): [hour:mn:sec|hour:mn|hour]
    ),
    Queue(
        system="moab",
        query=lambda ids, user: ["showq", "--xml", "-w", f"user={user}"],
        parse=_parse_moab,
        cancel=("canceljob",),
        walltime=_CLOCK,
        key=_first_number,
        explain=lambda job_id: ["checkjob", job_id],
    ),
    Queue(
        system="loadleveler",
        query=lambda ids, user: ["llq", "-u", user, "-r", "%st", "%id"],
        parse=_parse_loadleveler,
        cancel=("llcancel",),
        walltime=_limit(_loadleveler_time, "unlimited", "rlim_infinity", "copy"),
        key=_host_and_number,
        explain=lambda job_id: ["llq", "-s", job_id],
        has_none=lambda code, said: "no job status" in said or (code == 153 and not said.strip()),
    ),
)
QUEUES: dict[str, Queue] = {queue.system: queue for queue in _ALL}
