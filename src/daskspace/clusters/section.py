"""A section of dask-jobqueue's configuration: whose it is, filled, and put right."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from daskspace.errors import ConfigError, did_you_mean

BACKEND_OF = {
    "slurm": "slurm",
    "pbs": "pbs",
    "sge": "sge",
    "lsf": "lsf",
    "htcondor": "htcondor",
    "oar": "oar",
    "moab": "moab",
    "loadleveler": "loadl",
}
"""For each batch system, by the name of its section, the name of its backend."""

RENAMED = {
    "project": "account",
    "job-extra": "job-extra-directives",
    "env-extra": "job-script-prologue",
    "header-skip": "job-directives-skip",
    "extra": "worker-extra-args",
}
"""Keys of dask-jobqueue that have another name today."""

SYSTEM_KEY = "job-scheduling-system"

_PROGRAMS = {
    "slurm": "sbatch",
    "pbs": "qsub",
    "sge": "qsub",
    "lsf": "bsub",
    "htcondor": "condor_submit",
    "oar": "oarsub",
    "moab": "msub",
    "loadleveler": "llsubmit",
}
_OTHER_NAMES = {"loadl": "loadleveler", "torque": "pbs", "gridengine": "sge", "condor": "htcondor"}
_TIME = re.compile(r"\d+(:\d+)+")


@functools.cache
def defaults() -> Mapping[str, Mapping[str, Any]]:
    """Return the defaults of each batch system, as dask-jobqueue and we ship them."""
    found: dict[str, Mapping[str, Any]] = {}
    spec = importlib.util.find_spec("dask_jobqueue")
    homes = [Path(home) for home in (spec.submodule_search_locations or ())] if spec else []
    files = [*(home / "jobqueue.yaml" for home in homes), Path(__file__).with_name(_OURS)]
    for file in files:
        sections = yaml.safe_load(file.read_text("utf-8"))["jobqueue"]
        found.update({name: keys for name, keys in sections.items() if name in BACKEND_OF})
    return found


_OURS = "loadleveler.yaml"


def system_named(word: Any, where: str) -> str:
    """Return the batch system that a word names, such as ``slurm`` or ``SLURM``.

    Raises
    ------
    ConfigError
        There is none.
    """
    name = str(word).lower()
    name = _OTHER_NAMES.get(name, name)
    if name not in BACKEND_OF:
        near = did_you_mean(name, BACKEND_OF)
        raise ConfigError(
            f"{where} names no batch system: {word!r}; known are {', '.join(BACKEND_OF)}{near}"
        )
    return name


def is_installed(system: str) -> bool:
    """Whether the programs of a batch system are on PATH."""
    if shutil.which(_PROGRAMS[system]) is None:
        return False
    has_qconf = shutil.which("qconf") is not None  # both Grid Engine and PBS have a qsub
    return {"sge": has_qconf, "pbs": not has_qconf}.get(system, True)


def system_of(name: str, section: Mapping[str, Any], told: Any = None, where: str = "") -> str:
    """Return the batch system that a section is for.

    Parameters
    ----------
    name : str
        Its name.
    section : mapping
        Its keys.
    told : str, optional
        What the user says.
    where : str
        Where it is, for people.

    Raises
    ------
    ConfigError
        It cannot be told.
    """
    if told:
        return system_named(told, "system")
    keys = {hyphened(key): value for key, value in section.items()}
    if keys.get(SYSTEM_KEY):
        return system_named(keys[SYSTEM_KEY], f"{where}: {SYSTEM_KEY}")
    if name in BACKEND_OF:
        return name
    common = set.intersection(*(set(known) for known in defaults().values())) | set(RENAMED)
    own = {key for key in keys if key not in common and any(key in d for d in defaults().values())}
    fitting = [system for system, known in defaults().items() if own <= set(known)]
    others = [system for system in fitting if system != "loadleveler"]
    fitting = others or fitting  # LoadLeveler has most keys of the others
    words = re.split(r"[^a-z0-9]+", name.lower())
    candidates = (
        fitting if own and len(fitting) == 1 else [],
        [s for s in BACKEND_OF if s in words],
        [s for s in fitting if is_installed(s)],
        [s for s in BACKEND_OF if is_installed(s)] if not fitting else [],
    )
    for found in candidates:
        if len(found) == 1:
            return found[0]
    raise ConfigError(
        f"{where} does not tell which batch system it is for: say it by system=..., on the command"
        f" line -O system=NAME, or in the section by {SYSTEM_KEY}; known are"
        f" {', '.join(BACKEND_OF)}"
    )


def put_right(
    keys: Mapping[str, Any],
    system: str,
    spelled: Callable[[str], str] = lambda key: "",
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the keys as dask-jobqueue takes them today, and what was changed.

    Parameters
    ----------
    keys : mapping
        Keys of a section, or keywords of a cluster class; hyphens come out.
    system : str
        The batch system.
    spelled : callable
        Returns how a file spells the value of a key.
    """
    known = defaults()[system]
    right: dict[str, Any] = {}
    remarks = []
    for key, value in keys.items():
        name = hyphened(key)
        if isinstance(value, str) and not value and system != "loadleveler":
            remarks.append(f"{key}: empty, taken as not set")
            continue
        if name == "walltime" and isinstance(value, int) and _TIME.fullmatch(spelled(key)):
            remarks.append(
                f"{key}: YAML takes {spelled(key)} for the number {value}; put right,"
                " but do put it in quotes"
            )
            value = spelled(key)
        right[name] = value
    for old, new in RENAMED.items():
        if old not in right or (old == "project" and "project" in known):
            continue
        value = right.pop(old)
        if value is None or value == []:
            continue
        if right.get(new):
            remarks.append(f"{old}: passed over, for {new} is set as well")
        else:
            right[new] = value
            remarks.append(f"{old}: called {new} today; put right")
    for name in ("job-extra-directives", "worker-extra-args", "job-script-prologue"):
        value = right.get(name)
        if isinstance(value, Mapping | set) and _is_set(value):
            right[name] = [str(entry) for entry in value]
            remarks.append(f"{name}: a set, {{...}}, in YAML; taken as a list")
        elif isinstance(value, str):
            right[name] = value.splitlines()
            remarks.append(f"{name}: a text; taken as a list of lines")
    return right, tuple(remarks)


def filled(keys: Mapping[str, Any], system: str) -> dict[str, Any]:
    """Return the keys, and for those that are missing the defaults of the batch system."""
    known = defaults()[system]
    old = {old for old in RENAMED if old != "project" or "project" not in known}
    return {
        **{key: value for key, value in known.items() if key not in keys},
        **dict.fromkeys(old & set(known)),
        **keys,
    }


def is_set_up(keys: Any) -> bool:
    """Whether a section says anything."""
    return isinstance(keys, Mapping) and any(value is not None for value in keys.values())


def hyphened(key: Any) -> str:
    """Return a key as Dask's configuration spells it."""
    return str(key).replace("_", "-")


def _is_set(value: Collection[Any]) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(entry is None for entry in value.values())
    return True
