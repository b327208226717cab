"""What a site has decided: machines, classes, filters and quirks, as plain data in config.json."""

import json
import os
from pathlib import Path

DEFAULTS = {
    "schedd_host": "submit1.example.org",
    "cluster": "",
    "first_id": 1,
    "scheduler": "BACKFILL",
    "backfill": False,  # may later steps overtake one that waits for room?
    "nodes": [],
    "classes": {
        "No_Class": {"wall_clock_limit": [86400, 86400], "description": "what names no class"},
        "general": {"wall_clock_limit": [86400, 86400], "description": "serial and parallel jobs"},
        "short": {"wall_clock_limit": [3600, 3600], "description": "up to an hour"},
        "long": {"wall_clock_limit": [604800, 604800], "description": "up to a week"},
    },
    "default_class": "No_Class",
    "accounts": None,  # the account numbers that a job must name one of, if not None
    "schedule_by_resources": ["ConsumableCpus", "ConsumableMemory"],
    "enforce_resource_submission": [],
    "unknown_keyword": "reject",  # or "ignore"; unverified
    "submit_filter": None,  # {"path", "before", "stream": "stderr" | "stdout", "reject"}
    "login_path": "/usr/local/bin:/usr/bin:/bin",
    "login_shell": "/bin/sh",
    "allow_root": False,
    "max_job_reject": 0,
    "action_on_max_reject": "HOLD",  # or "SYSHOLD", "CANCEL"
    "cycle_s": 0.1,
    "queue_delay_s": 0.0,  # or [shortest, longest]
    "start_delay_s": 0.0,
    "cancel_latency_s": 0.0,
    "linger_s": 10.0,  # how long llq shows ended steps; unverified
    "kill_grace_s": 2.0,  # two minutes in reality
    "time_scale": 1.0,  # how much faster than ours the site's clocks run
    "quirks": {
        "short_ids_in_llq": True,
        "running_on_title": "Running On",
        "done_rc": 0,  # or 153: what llq says of an id it does not know
        "submit_needs_central_manager": False,
    },
}


def nodes(count, cpus, memory_mb=16384, **others):
    """Return `count` equal machines, n01, n02, ..."""
    machine = {"cpus": cpus, "memory_mb": memory_mb, "features": [], "arch": "x86_64"}
    machine |= {"opsys": "Linux2", **others}
    return [{"name": f"n{number:02}", **machine} for number in range(1, count + 1)]


def complete(config):
    """Return `config` on top of the defaults; an unknown key is a mistake."""
    unknown = set(config) - set(DEFAULTS)
    if unknown:
        raise ValueError(f"unknown keys of the site's configuration: {sorted(unknown)}")
    quirks = {**DEFAULTS["quirks"], **config.get("quirks", {})}
    return {**DEFAULTS, **config, "quirks": quirks}


def write(spool, config):
    """Write `config` into the spool directory at once."""
    path = Path(spool, "config.json")
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(config, indent=1))
    draft.replace(path)


def read(spool):
    """Return the configuration of the spool directory."""
    return complete(json.loads(Path(spool, "config.json").read_text()))
