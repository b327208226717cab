"""What llq, llclass and llstatus print: pure functions of steps and machines."""

import time

COLUMNS = (
    ("Id", 24), ("Owner", 10), ("Submitted", 11), ("ST", 2), ("PRI", 3), ("Class", 12),
    ("Running On", 11),
)  # fmt: skip
STATUS_WORDS = {
    "C": "Completed",
    "CA": "Canceled",
    "CK": "Checkpointing",
    "CP": "Complete Pending",
    "D": "Deferred",
    "E": "Preempted",
    "EP": "Preempt Pending",
    "H": "User Hold",
    "HS": "User and System Hold",
    "I": "Idle",
    "MP": "Resume Pending",
    "NQ": "Not Queued",
    "NR": "Not Run",
    "P": "Pending",
    "R": "Running",
    "RM": "Removed",
    "RP": "Remove Pending",
    "S": "System Hold",
    "ST": "Starting",
    "SX": "Submission Error",
    "TX": "Terminated",
    "V": "Vacated",
    "VP": "Vacate Pending",
    "X": "Rejected",
    "XP": "Reject Pending",
}
LIMITS = {
    "Ckpt": "ckpt_time_limit",
    "Cpu": "job_cpu_limit",
    "Data": "data_limit",
    "Core": "core_limit",
    "File": "file_limit",
    "Stack": "stack_limit",
    "Rss": "rss_limit",
    "Step Cpu": "cpu_limit",
}
COUNTED = {
    "waiting": {"I", "D"},
    "pending": {"P", "ST"},
    "running": {"R", "CP", "RP", "VP", "CK", "MP"},
    "held": {"H", "S", "HS", "NQ"},
    "preempted": {"E", "EP"},
}


def short_id(step_id):
    """Return `host.job.step` without the domain of the host."""
    host, *_, job, number = step_id.split(".")
    return f"{host}.{job}.{number}"


def is_meant(step_id, wanted):
    """Say whether `wanted` (host.job.step, host.job, job; host long or short) means `step_id`."""
    *host, job, number = step_id.split(".")
    if wanted == job:
        return True
    forms = {".".join(host), host[0]}
    return any(wanted in (f"{form}.{job}", f"{form}.{job}.{number}") for form in forms)


def day(moment):
    """Return ` 8/15 14:37`."""
    when = time.localtime(moment)
    return f"{when.tm_mon:2}/{when.tm_mday:<2} {when.tm_hour:02}:{when.tm_min:02}"


def date(moment):
    """Return `07/12 09:10`."""
    return time.strftime("%m/%d %H:%M", time.localtime(moment))


def long_date(moment):
    """Return `Tue Jul 24 10:19:37 CDT 2007`, or nothing for no moment."""
    if moment is None:
        return ""
    when = time.localtime(moment)
    clock = f"{when.tm_hour:02}:{when.tm_min:02}:{when.tm_sec:02}"
    return f"{time.strftime('%a %b', when)} {when.tm_mday} {clock} {when.tm_zone} {when.tm_year}"


def raw_date(moment):
    """Return `03/25/2014 13:47`, or nothing for no moment."""
    return "" if moment is None else time.strftime("%m/%d/%Y %H:%M", time.localtime(moment))


def listing(steps, title="Running On", selected=False):
    """Return the table of a plain llq."""
    titles = [name for name, _ in COLUMNS[:-1]] + [title]
    lines = [_row(titles), _row(["-" * width for _, width in COLUMNS])]
    for step in steps:
        run = step["hosts"][0].split(".")[0] if step["hosts"] else ""
        cells = [step["id"], step["owner"], day(step["submitted"]), step["state"]]
        lines.append(_row([*cells, str(step["priority"]), step["class"], run]))
    return [*lines, "", footer(steps, selected)]


def _row(cells):
    return " ".join(
        f"{cell:<{width}.{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True)
    )


def footer(steps, selected):
    """Return the line that counts steps, worded for a selection of them or for all."""
    counts = [
        f"{sum(step['state'] in states for step in steps)} {word}"
        for word, states in COUNTED.items()
    ]
    return f"{len(steps)} job step(s) in {'query' if selected else 'queue'}, {', '.join(counts)}"


def _code(step):
    return "" if step["completion_code"] is None else str(step["completion_code"])


CATEGORIES = {
    "%a": ("Account", 12, lambda step: step["keywords"].get("account_no", "")),
    "%BS": ("BG Size", 7, lambda step: step["keywords"].get("bg_size", "")),
    "%c": ("Class", 12, lambda step: step["class"]),
    "%cc": ("CC", 5, _code),
    "%dc": ("Completed", 11, lambda step: raw_date(step["completed"])),
    "%dd": ("Disp. Date", 11, lambda step: raw_date(step["dispatched"])),
    "%dq": ("Queue Date", 11, lambda step: raw_date(step["submitted"])),
    "%gl": ("LL Group", 12, lambda step: step["keywords"].get("group", "No_Group")),
    "%gu": ("Unix Group", 12, lambda step: step["group"]),
    "%h": ("Running On", 16, lambda step: step["hosts"][0] if step["hosts"] else ""),
    "%id": ("Step Id", 24, lambda step: step["id"]),
    "%jn": ("Job Name", 16, lambda step: step["job_name"]),
    "%jt": ("Type", 8, lambda step: "Serial" if step["serial"] else "General Parallel"),
    "%nh": ("NM", 4, lambda step: str(len(set(step["hosts"])) or step["nodes"][0])),
    "%o": ("Owner", 11, lambda step: step["owner"]),
    "%p": ("PRI", 3, lambda step: str(step["priority"])),
    "%sn": ("Step Name", 16, lambda step: step["step_name"]),
    "%st": ("ST", 2, lambda step: step["state"]),
    "%X": ("Cluster", 16, lambda step: step["cluster"]),
    "%Xs": ("Cluster", 16, lambda step: step["cluster"]),
}
"""What `llq -f` and `-r` can show: title, width, value."""


def _in_table(code, step):
    if code == "%dq":
        return date(step["submitted"])
    if code == "%dd":
        return date(step["dispatched"]) if step["dispatched"] else ""
    return CATEGORIES[code][2](step)


def custom(steps, codes, selected=False):
    """Return the table of `llq -f`."""
    shape = [CATEGORIES[code] for code in codes]
    rows = [[title for title, _, _ in shape], ["-" * width for _, width, _ in shape]]
    rows += [[_in_table(code, step) for code in codes] for step in steps]
    lines = [
        " ".join(f"{cell:<{width}.{width}}" for cell, (_, width, _) in zip(row, shape, strict=True))
        for row in rows
    ]
    return [*lines, "", footer(steps, selected)]


def raw(steps, codes):
    """Return the lines of `llq -r`."""
    return ["!".join(CATEGORIES[code][2](step) for code in codes) for step in steps]


def clock(limit):
    """Return `00:01:00 (60 seconds)`, or `undefined`."""
    if limit is None:
        return "undefined"
    minutes, rest = divmod(int(limit), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest:02} ({int(limit)} seconds)"


def _memory(step, name):
    return f"{step['resources'].get(name, 0) * max(len(step['hosts']), 1):.3f} mb"


def details(step):
    """Return the labels and values that `llq -l` shows of a step before its nodes."""
    get = step["keywords"].get
    schedd = step["id"].rsplit(".", 2)[0]
    held_until = raw_date(step["start_time"]) if step["start_time"] else ""
    limits = {}
    for kind, keyword in LIMITS.items():
        hard, _, soft = get(keyword, "undefined").partition(",")
        limits |= {f"{kind} Hard Limit": hard.strip(), f"{kind} Soft Limit": (soft or hard).strip()}
    network = [f"({value})" for keyword, value in step["keywords"].items() if "network." in keyword]
    return {
        "Job Step Id": step["id"],
        "Job Name": step["job_name"],
        "Step Name": step["step_name"],
        "Structure Version": "10",
        "Owner": step["owner"],
        "Queue Date": long_date(step["submitted"]),
        "Status": STATUS_WORDS[step["state"]],
        "Reservation ID": "",
        "Requested Res. ID": "",
        "Scheduling Cluster": step["cluster"],
        "Submitting Cluster": "",
        "Sending Cluster": "",
        "Requested Cluster": "",
        "Schedd History": "",
        "Outbound Schedds": "",
        "Submitting User": "",
        "Execution Factor": "1",
        "Dispatch Time": long_date(step["dispatched"]),
        "Completion Date": long_date(step["completed"]),
        "Completion Code": _code(step),
        "Favored Job": "No",
        "User Priority": str(step["priority"]),
        "user_sysprio": "0",
        "class_sysprio": "0",
        "group_sysprio": "0",
        "System Priority": "0",
        "q_sysprio": "0",
        "Previous q_sysprio": "0",
        "Notifications": get("notification", "complete").capitalize(),
        "Virtual Image Size": "1 kb",
        "Large Page": "N",
        "Checkpointable": get("checkpoint", "no"),
        "Ckpt Start Time": "",
        "Good Ckpt Time/Date": "",
        "Ckpt Elapse Time": "0 seconds",
        "Fail Ckpt Time/Date": "",
        "Ckpt Accum Time": "0 seconds",
        "Checkpoint File": "",
        "Ckpt Execute Dir": "",
        "Restart From Ckpt": "no",
        "Restart Same Nodes": "no",
        "Restart": "yes" if step["restart"] else "no",
        "Preemptable": "yes",
        "Preempt Wait Count": "0",
        "Hold Job Until": held_until,
        "RSet": get("rset", "RSET_NONE"),
        "Mcm Affinity Options": get("mcm_affinity_options", ""),
        "Env": get("environment", ""),
        "In": step["input"],
        "Out": step["output"],
        "Err": step["error"],
        "Initial Working Dir": step["directory"],
        "Dependency": get("dependency", ""),
        "Resources": get("resources", ""),
        "Step Type": "Serial" if step["serial"] else "General Parallel",
        "Node Usage": get("node_usage", "shared"),
        "Submitting Host": step["submit_host"],
        "Schedd Host": schedd,
        "Job Queue Key": "",
        "Notify User": get("notify_user", f"{step['owner']}@{step['submit_host']}"),
        "Shell": get("shell", step["shell"]),
        "LoadLeveler Group": get("group", "No_Group"),
        "Class": step["class"],
        **limits,
        "Wall Clk Hard Limit": clock(step["wall"][0]),
        "Wall Clk Soft Limit": clock(step["wall"][1]),
        "Comment": get("comment", "").strip('"'),
        "Account": get("account_no", ""),
        "Unix Group": step["group"],
        "NQS Submit Queue": "",
        "NQS Query Queues": "",
        "Negotiator Messages": step["why"],
        "Bulk Transfer": "Yes" if get("bulkxfer", "no").lower() == "yes" else "No",
        "Step Adapter Memory": "0 bytes",
        "Adapter Requirement": ",".join(network),
        "Step Cpus": str(step["resources"].get("consumablecpus", 0)),
        "Step Virtual Memory": _memory(step, "consumablevirtualmemory"),
        "Step Real Memory": _memory(step, "consumablememory"),
    }


def long_listing(steps, selected=False):
    """Return what `llq -l` prints."""
    lines = []
    for step in steps:
        lines.append(f"=============== Job Step {step['id']} ===============")
        lines += [f"{label:>19}: {value}".rstrip() for label, value in details(step).items()]
        lines += ["-" * 80, "Node", "----", "", *_node_block(step), ""]
    return [*lines, footer(steps, selected)]


def _node_block(step):
    get = step["keywords"].get
    hosts = list(dict.fromkeys(step["hosts"]))
    executable = step["executable"] or step["command_file"]
    pairs = [
        ("Name", ""),
        ("Requirements", get("requirements", "")),
        ("Preferences", get("preferences", "")),
        ("Node minimum", step["nodes"][0]),
        ("Node maximum", step["nodes"][1]),
        ("Node actual", len(hosts) or ""),
    ]
    lines = [f"   {label:<16}: {value}".rstrip() for label, value in pairs]
    allocated = [f"{host}::" for host in hosts] or [""]
    lines.append(f"   {'Allocated Hosts':<16}: {allocated[0]}".rstrip())
    lines += [f"   {'':<16}+ {host}" for host in allocated[1:]]
    lines += ["", "   Master Task", "   -----------", ""]
    lines.append(f"      {'Executable':<13}: {executable}")
    lines.append(f"      {'Exec Args':<13}: {get('arguments', '')}".rstrip())
    lines.append(f"      {'Num Task Inst':<13}: {len(step['hosts']) or 1}")
    instances = ", ".join(f"{host}:{task}" for task, host in enumerate(step["hosts"]))
    return [*lines, f"      {'Task Instance':<13}: {instances}".rstrip()]


def evaluations(step):
    """Return why `step` does not run, as `llq -s` puts it."""
    return [
        f"==================== EVALUATIONS FOR JOB STEP {step['id']} ====================",
        f'The class of this job step is "{step["class"]}".',
        f"The status of this job step is: {STATUS_WORDS[step['state']]}",
        *([step["why"]] if step["why"] else []),
    ]


def _slots(count):
    return "9999+" if count > 9999 else str(count)


def class_table(classes, constrained=()):
    """Return what llclass prints of `[(name, free, maximum, description)]`."""
    row = "{:<15} {:>14} {:>14} {:>5} {:>5} {:<21}"
    lines = [
        row.format("Name", "MaxJobCPU", "MaxProcCPU", "Free", "Max", "Description"),
        row.format("", "d+hh:mm:ss", "d+hh:mm:ss", "Slots", "Slots", ""),
        " ".join("-" * width for width in (15, 14, 14, 5, 5, 21)),
    ]
    for name, free, most, description in classes:
        slots = _slots(free), _slots(most)
        lines.append(row.format(name, "undefined", "undefined", *slots, description))
    lines.append("-" * 80)
    for name in constrained:
        template = '"{} Slots" value of the class "{}" is constrained by the MAX_STARTERS limit(s).'
        lines += [template.format(kind, name) for kind in ("Maximum", "Free")]
    return lines


def class_details(name, site_class):
    """Return what `llclass -l` prints of one class."""
    hard, soft = site_class.get("wall_clock_limit") or [None, None]
    values = {
        "Name": name,
        "Class_comment": site_class.get("description", ""),
        "Include_Users": " ".join(site_class.get("include_users", [])),
        "Exclude_Users": " ".join(site_class.get("exclude_users", [])),
        "Default_resources": site_class.get("default_resources", ""),
        "Maximum_slots": str(site_class.get("max_starters", "")),
        "Wall_clock_limit": f"{clock(hard)}, {clock(soft)}",
    }
    head = f"=============== Class {name} ==============="
    return [head, *(f"{key:>17}: {value}".rstrip() for key, value in values.items()), "-" * 80]


def machine_table(machines, manager, scheduler="BACKFILL"):
    """Return what llstatus prints of machines as dicts with the columns' names in small letters."""
    head = ["Name", "Schedd", "InQ", "Act", "Startd", "Run", "LdAvg", "Idle", "Arch", "OpSys"]
    left = "{:<25} {:<6} {:<4} {:<3} {:<6} {:<3} {:<5} {:<4} {:<9} {:<9}"
    row = "{name:<25} {schedd:<6} {inq:>4} {act:>3} {startd:<6} {run:>3} {load:<5.2f} {idle:>4}"
    row += " {arch:<9} {opsys:<9}"
    lines = [left.format(*head), *(row.format(**machine) for machine in machines), ""]
    kinds = {}
    for machine in machines:
        kinds.setdefault(f"{machine['arch']}/{machine['opsys']}", []).append(machine)
    kinds["Total Machines"] = machines
    for kind, members in kinds.items():
        jobs, running = (sum(member[key] for member in members) for key in ("inq", "run"))
        lines.append(
            f"{kind:<22} {len(members):>6} machines {jobs:>6}  jobs {running:>6}  running tasks"
        )
    lines += ["", f"The Central Manager is defined on {manager}", ""]
    lines += [f"The {scheduler} scheduler is in use", ""]
    absent = [machine["name"] for machine in machines if machine["startd"] == "Down"]
    if not absent:
        return [*lines, "All machines on the machine_list are present."]
    return [*lines, "The following machines are absent", *absent]


def consumables(machines):
    """Return what `llstatus -R` prints of `[(name, is_down, {consumable: (available, total)})]`."""
    lines = [f"{'Machine':<32} {'Consumable Resource(Available, Total)'}"]
    lines.append("-" * 32 + " " + "-" * 46)
    for name, is_down, amounts in machines:
        cells = " ".join(f"{key}({free},{total})" for key, (free, total) in amounts.items())
        lines.append(f"{name + ('#' if is_down else ''):<32} {cells}")
    return lines
