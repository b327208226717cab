"""What can be wrong in the section that describes a batch job; pure functions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask.utils import format_bytes, parse_bytes, parse_timedelta

from daskspace.clusters.queues import QUEUES
from daskspace.clusters.section import RENAMED, SYSTEM_KEY
from daskspace.clusters.sources import Entry, canonical
from daskspace.errors import did_you_mean

LEVELS = ("error", "warning", "note")
"""It cannot be or does something else than it says; it is likely not meant so; good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing in a configuration that somebody should know of.

    Parameters
    ----------
    level : str
        One of `LEVELS`.
    key : str
        The key that it is about.
    place : str
        Where that is set: a file and its line, an environment variable, an option, or a default.
    found : str
        What was seen.
    remedy : str
        What to do; empty where nothing has to be done.
    """

    level: str
    key: str
    place: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Section:
    """The settings of a job, with what is known about them.

    Parameters
    ----------
    system : str
        The batch system, by the name of its section in Dask's configuration.
    name : str
        Where the section is, such as ``jobqueue.casper``.
    keys : mapping
        What is set, by name, with hyphens.
    known : frozenset of str
        The keys that the cluster class reads.
    arguments : frozenset of str
        What the cluster class and daskspace take as arguments, with hyphens.
    defaults : mapping
        What counts for a key that is not set.
    interfaces : mapping, optional
        The addresses of this machine by interface.
    loader : str
        The package that puts in variables when it reads such a section, if one does.
    """

    system: str
    name: str
    keys: Mapping[str, Entry]
    known: frozenset[str]
    arguments: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    interfaces: Mapping[str, Sequence[str]] | None = None
    loader: str = ""

    def value(self, key: str) -> Any:
        """Return what counts for a key, None where nothing does."""
        if key not in self.keys:
            return self.defaults.get(key)
        entry = self.keys[key]
        # We take a time limit as it is written.
        return entry.text if key == "walltime" and yaml_number(entry) else entry.value

    def finding(self, level: str, key: str, found: str, remedy: str = "") -> Finding:
        """Return a finding about a key that is set."""
        entry = self.keys.get(key)
        spelled = entry.path[-1] if entry is not None else key
        place = entry.place if entry is not None else f"default of {self.name}"
        return Finding(level, spelled, place, found, remedy)

    def number(self, key: str) -> int | None:
        """Return the value of a key that is a positive whole number, else None."""
        try:
            number = int(self.value(key))
        except (TypeError, ValueError, OverflowError):
            return None
        return number if number > 0 else None

    def bytes(self, key: str) -> int | None:
        """Return how many bytes a key means to Dask, None where that cannot be told."""
        return _bytes(self.value(key))

    def walltime(self) -> float | None:
        """Return the time limit in seconds, None where that cannot be told."""
        try:
            return _limit(self, self.value("walltime"))
        except (KeyError, ValueError):
            return None


def traps_in(section: Section) -> list[Finding]:
    """Return what is wrong in a section, or odd, in the order of `LEVELS`."""
    found = [finding for trap in _TRAPS for finding in trap(section)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


ELSEWHERE = {
    "distributed": "Dask reads `distributed:` at the top level of a file only: move it there",
    "silence-logs": "set the level by `distributed: {logging: {distributed: error}}` instead",
    "n-workers": "say how many jobs there may be: -O jobs=N",
}
_LINES = (
    *("job-extra-directives", "job-extra", "job-script-prologue", "env-extra"),
    *("worker-extra-args", "extra"),
)
_LISTS = (*_LINES, "job-directives-skip", "header-skip", "job-script-epilogue")
_TEXTS = ("queue", "account", "project", "group", "job-mem", "resource-spec", "shebang", "python")
_COUNTS = ("cores", "processes", "job-cpu", "ncpus")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")
_SHORT_DEATH_S = 30.0


def yaml_number(entry: Entry) -> str:
    """Return what YAML has made of a value that looks like a text, empty if nothing."""
    if isinstance(entry.value, bool) or not isinstance(entry.value, int | float):
        return ""
    if _SEXAGESIMAL.fullmatch(entry.text) or re.fullmatch(r"[-+]?0[0-9_]+", entry.text):
        return f"YAML takes {entry.text} for the number {entry.value}"
    return ""


def _walltime(section: Section) -> Iterator[Finding]:
    entry = section.keys.get("walltime")
    queue = QUEUES.get(section.system)
    if entry is None or queue is None or entry.value in (None, ""):
        return
    try:
        seconds = queue.walltime(entry.value)
        _limit(section, section.value("walltime"))
    except ValueError:
        known = {"slurm": "'1-00:00:00' or '12:00:00'", "lsf": "'12:00'"}.get(section.system)
        yield section.finding(
            "error",
            "walltime",
            f"{section.value('walltime')!r} is no time limit for {section.system}",
            f"write it like {known or repr('12:00:00')}",
        )
        return
    if changed := yaml_number(entry):
        effect = f"which {section.system} takes for the same time"
        if seconds != _limit(section, entry.text):
            effect = (
                "which daskspace puts right; with dask-jobqueue by itself it would be"
                f" {_time(seconds)} for {section.system}"
            )
        yield section.finding(
            "warning",
            "walltime",
            f"{changed}, {effect}",
            f"put it in quotes: walltime: '{entry.text}'",
        )
    elif isinstance(entry.value, int) and section.system in ("slurm", "lsf"):
        level = "warning" if entry.value >= 1800 else "note"
        yield section.finding(
            level,
            "walltime",
            f"{section.system} reads a bare number as minutes: {entry.value} is {_time(seconds)}",
            "write it with colons, in quotes" if level == "warning" else "",
        )
    elif section.system not in ("lsf", "oar") and re.fullmatch(r"\d+:\d+", str(entry.value)):
        yield section.finding(
            "note",
            "walltime",
            f"{section.system} reads {entry.value} as minutes and seconds: {_time(seconds)}",
            "with hours, write three parts, in quotes",
        )


def _numbers_of_yaml(section: Section) -> Iterator[Finding]:
    for key, entry in section.keys.items():
        if key != "walltime" and (changed := yaml_number(entry)):
            yield section.finding("warning", key, changed, f"put it in quotes: '{entry.text}'")


def _renamed(section: Section) -> Iterator[Finding]:
    for old, new in RENAMED.items():
        if old == "project" and "project" in section.known:
            continue
        if old not in section.keys or section.value(old) in (None, "", []):
            continue
        if section.value(new):
            place = section.keys[new].place if new in section.keys else "a default"
            found = f"is passed over, because {new} is set as well ({place})"
            yield section.finding("error", old, found, f"move what is in it to {new}")
        else:
            remedy = f"rename it: {new}"
            found = f"is now called {new}; the old name is still taken, but not for ever"
            yield section.finding("warning", old, found, remedy)


def _unknown(section: Section) -> Iterator[Finding]:
    names = {*section.known, *RENAMED, SYSTEM_KEY}
    for key, entry in section.keys.items():
        if key in names or canonical(entry.path[:-1]) != canonical(section.name):
            continue
        spelled = entry.path[-1]
        if key in ELSEWHERE:
            yield section.finding("warning", key, "nothing reads it here", ELSEWHERE[key])
        elif key in section.arguments:
            yield section.finding(
                "warning",
                key,
                "nothing reads it here, it is an argument only",
                f"give it where the backend is made: -O {key.replace('-', '_')}=...",
            )
        else:
            near = did_you_mean(key, sorted(section.known))
            remedy = f"remove it{near}" if near else "remove it"
            yield section.finding(
                "warning", key, f"nothing reads {spelled} in {section.name}", remedy
            )


def _kinds(section: Section) -> Iterator[Finding]:
    for key in _LISTS:
        if key not in section.keys:
            continue
        value = section.value(key)
        if isinstance(value, str) and value and key in _LINES:
            yield section.finding(
                "warning",
                key,
                "a text; daskspace takes it as a list of lines, dask-jobqueue by itself takes it"
                " apart into characters",
                f"make it a list: {value.splitlines()}",
            )
        elif isinstance(value, str) and value:
            yield section.finding(
                "error",
                key,
                "a text is taken apart into characters",
                f"make it a list: {value.splitlines()}",
            )
        elif isinstance(value, Mapping):
            yield from _set(section, key, value)
        elif value is not None and not isinstance(value, str | list | tuple | set | frozenset):
            yield section.finding(
                "error", key, f"{value!r} is not a list", "make it a list, one text for each line"
            )
    for key in _TEXTS:
        if key in section.keys and isinstance(value := section.value(key), bool):
            text = section.keys[key].text or str(value)
            yield section.finding(
                "error", key, f"YAML takes {text} for {value}", f"put it in quotes: '{text}'"
            )
    for key in _COUNTS:
        value = section.value(key)
        if key not in section.keys or value is None or value == "":
            continue
        if section.number(key) is None or isinstance(value, bool):
            yield section.finding(
                "error", key, f"{value!r} is no whole number of at least 1", "such as 4"
            )
        elif not isinstance(value, int):
            yield section.finding(
                "error", key, f"{value!r} is a text or a fraction", f"write {section.number(key)}"
            )
    options = section.value("scheduler-options")
    if "scheduler-options" in section.keys and not isinstance(options, Mapping | None):
        yield section.finding(
            "error", "scheduler-options", f"{options!r} is not a mapping", "such as {port: 8786}"
        )


def _set(section: Section, key: str, value: Mapping[Any, Any]) -> Iterator[Finding]:
    lost = {name: content for name, content in value.items() if content is not None}
    told = ", ".join(map(str, value))
    if not value:
        return
    if section.system == "loadleveler" and key in ("job-extra-directives", "job-extra"):
        return
    if lost:
        pairs = ", ".join(f"{name}: {content}" for name, content in lost.items())
        lines = [f"{name}={content}" for name, content in lost.items()]
        yield section.finding(
            "error",
            key,
            f"only the names of this mapping are taken; the values are lost: {pairs}",
            f"make it a list, spelled as the batch system takes it: {lines}",
        )
    else:
        yield section.finding(
            "note", key, f"a YAML set, which is taken as the list of what is in it: {told}"
        )


def _lifetime(section: Section) -> Iterator[Finding]:
    key = "worker-extra-args" if section.value("worker-extra-args") else "extra"
    given = section.value(key)
    if not isinstance(given, list | tuple):
        return
    words = " ".join(map(str, given)).replace("=", " ").split()
    if "--lifetime" not in words[:-1]:
        return
    text = words[words.index("--lifetime") + 1]
    try:
        lifetime = float(parse_timedelta(text))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        yield section.finding("error", key, f"--lifetime {text} is no time", "such as 55m")
        return
    walltime = section.walltime()
    if walltime is None:
        return
    share = f"--lifetime {text} next to walltime {section.value('walltime')}"
    if lifetime >= walltime:
        yield section.finding(
            "error",
            key,
            f"{share}: the job ends before its workers would leave",
            "give less than the walltime, or leave --lifetime out",
        )
    elif lifetime < 0.5 * walltime:
        yield section.finding(
            "warning",
            key,
            f"{share}: workers leave after {100 * lifetime / walltime:.0f} % of the job",
            "leave --lifetime out: daskspace's workers leave in time by themselves",
        )


def _cores(section: Section) -> Iterator[Finding]:
    cores = section.number("cores")
    processes = section.number("processes")
    if cores is None:
        return
    about = next((key for key in ("processes", "cores") if key in section.keys), "cores")
    if processes is not None and processes > cores:
        yield section.finding(
            "error",
            about,
            f"{processes} processes for {cores} cores leave each without a thread",
            "raise cores, or lower processes",
        )
    elif processes is not None and cores % processes:
        used = cores // processes * processes
        yield section.finding(
            "warning",
            about,
            f"{processes} processes have {cores // processes} of {cores} cores each:"
            f" {cores - used} idle",
            "make cores a multiple of processes",
        )
    for key, asked, text in _asked_cores(section):
        if asked > cores:
            yield section.finding(
                "warning",
                key,
                f"{text} asks for {asked} cores, cores: {cores} uses {cores}: {asked - cores} idle",
                "make both the same",
            )
        elif asked < cores:
            yield section.finding(
                "warning",
                key,
                f"{text} asks for {asked} cores, where workers use cores: {cores}",
                "make both the same",
            )
    for key, text in _directives(section):
        if section.system == "slurm" and re.search(r"--exclusive\b", text):
            yield section.finding(
                "note", key, f"with --exclusive a job has all of a node, and uses {cores} cores"
            )


def _nodes(section: Section) -> Iterator[Finding]:
    patterns = {
        "pbs": r"\b(?:select|nodes)=(\d+)",
        "moab": r"\bnodes=(\d+)",
        "oar": r"\bnodes=(\d+)",
        "slurm": r"(?:^|\s)(?:-N\s*|--nodes[= ]|-n\s*|--ntasks[= ])(\d+)",
    }
    if section.system not in patterns:
        return
    for key, text in _directives(section):
        found = re.search(patterns[section.system], text)
        if found and int(found[1]) > 1:
            yield section.finding(
                "warning",
                key,
                f"{found[0].strip()}: workers start on the first node or task of a job only",
                "ask for one, and for more jobs",
            )


def _asked_cores(section: Section) -> Iterator[tuple[str, int, str]]:
    """Yield where the batch system is told how many cores a job has: key, number, wording."""
    for key in ("job-cpu", "ncpus"):
        if (number := section.number(key)) is not None and not isinstance(section.value(key), bool):
            yield key, number, "it"
    patterns = {
        "pbs": r"\b(?:ncpus|ppn)=(\d+)",
        "moab": r"\bppn=(\d+)",
        "oar": r"\bcore=(\d+)",
        "slurm": r"(?:^|\s)(?:-c\s*|--cpus-per-task[= ])(\d+)",
        "loadleveler": r"ConsumableCpus\((\d+)\)",
    }
    pattern = patterns.get(section.system)
    for key, text in _directives(section) if pattern else ():
        if found := re.search(str(pattern), text):
            yield key, int(found[1]), found[0].strip()


def _directives(section: Section) -> Iterator[tuple[str, str]]:
    """Yield the texts of a section that go to the batch system as they are."""
    for key in ("resource-spec", "resources", "job-extra-directives", "job-extra"):
        value = section.value(key)
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list | tuple | Mapping | set | frozenset):
            yield from ((key, str(text)) for text in texts)


_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def _memory(section: Section) -> Iterator[Finding]:
    value = section.value("memory")
    if "memory" in section.keys and value not in (None, ""):
        size = _bytes(value)
        is_bare = re.fullmatch(r"\s*[\d.]+\s*", str(value)) is not None
        if size is None or size <= 0:
            yield section.finding(
                "error", "memory", f"{value!r} is no amount of memory", "write it like '8 GB'"
            )
        elif is_bare and size < 2**20:
            yield section.finding(
                "error", "memory", f"{value} without a unit is {value} bytes", f"'{value} GB'?"
            )
        elif is_bare:
            found = f"{value} without a unit is in bytes: {format_bytes(size)}"
            yield section.finding("note", "memory", found)
        elif size < 100 * 10**6 * (section.number("processes") or 1):
            yield section.finding(
                "warning",
                "memory",
                f"a worker gets {format_bytes(size // (section.number('processes') or 1))},"
                " less than Python with Dask takes",
                "raise memory, which is that of a whole job",
            )
    memory = section.bytes("memory")
    if memory is None or memory < 2**20:
        return
    for key, asked, text in _asked_memory(section):
        told = (
            f"memory: {section.value('memory')} is {_binary(memory)} for Dask, {text} is"
            f" {_binary(asked)} for {section.system}"
        )
        if asked < 0.99 * memory:
            level = "error" if asked < 0.9 * memory else "warning"
            remedy = "lower memory, or the batch system ends jobs whose workers use what they may"
            yield section.finding(level, key, told, remedy)
        elif asked > 1.2 * memory:
            yield section.finding("warning", key, f"{told}, so a part is idle", "raise memory")
        elif asked != memory:
            yield section.finding("note", key, f"{told}: GB is not GiB")


def _asked_memory(section: Section) -> Iterator[tuple[str, int, str]]:
    """Yield where the batch system is told the memory of a job: key, bytes, wording."""
    value = section.value("job-mem")
    if value not in (None, "") and not isinstance(value, bool):
        bare = 2**20  # Slurm and LoadLeveler take a bare number for megabytes
        if (size := _binary_bytes(str(value), bare)) is not None:
            yield "job-mem", size, f"job-mem: {value}"
    patterns = {
        "pbs": r"(?<!\w)p?mem=(\d+(?:\.\d+)?\s*[kmgt]?)b?\b",
        "moab": r"(?<!\w)p?mem=(\d+\s*[kmgt]?)b?\b",
        "slurm": r"(?:^|\s)--mem[= ](\d+[kmgt]?)b?\b",
        "loadleveler": r"ConsumableMemory\((\d+\s*[kmgt]?)b?\)",
    }
    pattern = patterns.get(section.system)
    bare = 1 if section.system in ("pbs", "moab") else 2**20
    for key, text in _directives(section) if pattern else ():
        found = re.search(str(pattern), text, re.IGNORECASE)
        if found and (size := _binary_bytes(found[1], bare)) is not None:
            yield key, size, found[0].strip()


def _lsf(section: Section) -> Iterator[Finding]:
    if section.system != "lsf" or not section.keys:
        return
    mem = section.value("mem")
    if isinstance(mem, str) and mem:
        size = _bytes(mem)
        number = f": mem: {size}" if size else ""
        yield section.finding("error", "mem", f"{mem!r} is not a number of bytes", f"write{number}")
    units = section.value("lsf-units")
    if units in (None, "") and any(key in section.keys for key in ("memory", "mem")):
        key = "mem" if "mem" in section.keys else "memory"
        yield section.finding(
            "note",
            key,
            "LSF's unit of memory (-M) is read from lsf.conf (LSF_UNIT_FOR_LIMITS), else it is kb",
            "set lsf-units, such as mb, if your site has another",
        )
    elif units not in (None, "") and str(units).lower()[0] not in "kmgtpez":
        yield section.finding(
            "error", "lsf-units", f"{units!r} is no unit", "one of kb, mb, gb, tb, pb, eb"
        )


def _paths(section: Section) -> Iterator[Finding]:
    python = section.value("python")
    if isinstance(python, str) and "python" in section.keys and python:
        if re.search(r"\s", python.strip()):
            yield section.finding(
                "note", "python", "a command with arguments, which goes into the job as it is"
            )
        elif "/" in python and "$" not in python and not Path(python).expanduser().exists():
            yield section.finding(
                "note", "python", f"there is no {python} on this machine; nodes may have one"
            )
    shared = section.value("shared-temp-directory")
    if isinstance(shared, str) and "shared-temp-directory" in section.keys and shared:
        here = os.path.expanduser(os.path.expandvars(shared))
        if not os.path.isdir(here):
            yield section.finding(
                "error",
                "shared-temp-directory",
                f"there is no directory {here} here, where keys are to be made",
                "make it, on a file system that nodes share",
            )


def _variables(section: Section) -> Iterator[Finding]:
    for key in section.keys:
        value = section.value(key)
        texts = value if isinstance(value, list | tuple | Mapping) else [value]
        named = [v[0] for text in texts if isinstance(text, str) for v in _VARIABLE.finditer(text)]
        variables = ", ".join(dict.fromkeys(named))
        if not variables or key in ("job-script-prologue", "env-extra", "job-script-epilogue"):
            continue
        if key in ("local-directory", "python", "worker-extra-args", "extra", "worker-command"):
            found = f"{variables}: put in by the shell of the job, not here"
            if section.loader:
                found += f"; {section.loader} by itself puts it in where it is loaded"
            yield section.finding("note", key, found)
        elif key in ("log-directory", "shared-temp-directory"):
            yield section.finding(
                "note",
                key,
                f"{variables}: put in here by daskspace; dask-jobqueue by itself would not",
            )
        elif key in ("account", "queue", "project", "walltime", "job-mem", "interface"):
            yield section.finding(
                "warning",
                key,
                f"{variables}: no shell reads it there, so it stays as it is written",
                "write the value",
            )
        elif key in ("job-extra-directives", "job-extra", "resource-spec"):
            yield section.finding(
                "note", key, f"{variables}: the batch system gets it as it is written"
            )


def _empty(section: Section) -> Iterator[Finding]:
    for key, entry in section.keys.items():
        if entry.value != "" or section.system == "loadleveler":
            continue
        yield section.finding(
            "note",
            key,
            "an empty text is taken as not set; dask-jobqueue by itself writes it into the job",
            "write null, or leave it out",
        )


def _missing(section: Section) -> Iterator[Finding]:
    entries = section.keys.values()
    place = next((e.place for e in entries if re.search(r":\d+$", e.place)), section.name)
    for key, like in (("cores", "cores=4"), ("memory", "memory='8 GB'")):
        if section.value(key) in (None, ""):
            found = f"not set in {section.name}, and every job needs it"
            yield Finding("error", key, place, found, f"set it there, or by -O {like}")
    lacking = [key for key in section.defaults if key not in section.keys]
    if section.name != f"jobqueue.{section.system}" and section.keys and lacking:
        found = f"{len(lacking)} keys that it leaves out are those of jobqueue.{section.system}"
        yield Finding("note", section.name, place, found)


def _times(section: Section) -> Iterator[Finding]:
    value = section.value("death-timeout")
    if "death-timeout" not in section.keys or value in (None, ""):
        return
    try:
        seconds = float(parse_timedelta(value))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        yield section.finding("error", "death-timeout", f"{value!r} is no time", "such as 60")
        return
    if seconds < _SHORT_DEATH_S:
        yield section.finding(
            "warning",
            "death-timeout",
            f"a worker gives up when it finds no scheduler within {seconds:g} s",
            "give it 60 s or more, for nodes may be slow to start",
        )


def _interface(section: Section) -> Iterator[Finding]:
    interface = section.value("interface")
    known = section.interfaces
    if "interface" in section.keys and interface and known is not None and interface not in known:
        options = section.value("scheduler-options")
        if isinstance(options, Mapping) and (options.get("interface") or options.get("host")):
            return
        yield section.finding(
            "note",
            "interface",
            f"there is no interface {interface} on this machine; it has {', '.join(known)}",
            "where it differs from that of the nodes: scheduler-options: {interface: NAME}",
        )


_TRAPS: tuple[Callable[[Section], Iterator[Finding]], ...] = (
    *(_missing, _walltime, _numbers_of_yaml, _renamed, _unknown, _kinds, _lifetime, _cores),
    *(_nodes, _memory, _lsf, _paths, _variables, _empty, _times, _interface),
)


def _limit(section: Section, value: Any) -> float | None:
    return QUEUES[section.system].walltime(value)


def _bytes(value: Any) -> int | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        return int(parse_bytes(value))
    except (TypeError, ValueError, KeyError, OverflowError, AttributeError):
        return None


def _binary_bytes(text: str, bare: int) -> int | None:
    """Return how many bytes a batch system takes a text for; their units are binary."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if found is None:
        return None
    unit = found[2].lower()
    return int(float(found[1]) * (_BINARY[unit] if unit else bare))


def _binary(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _time(seconds: float | None) -> str:
    """Return a time limit as people read it."""
    if seconds is None:
        return "no limit"
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:g} s"
