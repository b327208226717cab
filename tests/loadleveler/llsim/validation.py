"""What llsubmit checks, and the step that it makes of the keywords it accepts."""

import os

from . import expressions, values
from .jcf import RefusedError

KEYWORDS = """
    account_no arguments as_limit bg_block bg_connection bg_connectivity bg_partition
    bg_requirements bg_rotate bg_shape bg_size blocking bulkxfer checkpoint ckpt_dir
    ckpt_execute_dir ckpt_file ckpt_subdir ckpt_time_limit class cluster_input_file
    cluster_list cluster_option cluster_output_file comment core_limit coschedule cpu_limit
    cpus_per_core data_limit dependency dstg_in_script dstg_node dstg_out_script
    energy_policy_tag env_copy environment error executable file_limit first_node_tasks
    group hold host_file image_size initialdir input island_count job_cpu_limit job_name
    job_type large_page ll_res_id locks_limit max_perf_decrease_allowed max_processors
    mcm_affinity_options memlock_limit metacluster_job min_processors
    minimize_time_to_solution node node_resources node_topology node_usage nofile_limit
    notification notify_user nproc_limit output parallel_path parallel_threads platforms
    preferences requirements resources restart restart_from_ckpt restart_on_same_nodes rset
    rss_limit shell smt stack_limit startdate step_name step_resources task_affinity
    task_geometry tasks_per_node total_tasks user_priority wall_clock_limit
"""
KNOWN = frozenset(KEYWORDS.split())
"""With `network.*`, the keywords that real files were seen to use, and those of the 3.5 manual."""

CHOICES = {
    "job_type": {"serial", "parallel", "mpich", "bluegene", "pvm3"},
    "node_usage": {"shared", "not_shared", "slice_not_shared"},
    "notification": {"always", "error", "start", "never", "complete"},
    "restart": {"yes", "no"},
    "hold": {"user", "system", "usersys"},
    "checkpoint": {"yes", "no", "interval"},
}
LAYOUT = ("node", "tasks_per_node", "total_tasks", "min_processors", "max_processors")


def check(keywords, config, owner):
    """Raise RefusedError when the site would not take a step with these keywords."""
    for keyword in keywords:
        is_known = keyword in KNOWN or keyword.startswith("network.")
        if not is_known and config["unknown_keyword"] == "reject":
            raise RefusedError(f"unknown keyword: {keyword}")
    for keyword, choices in CHOICES.items():
        value = keywords.get(keyword) or min(choices)
        if value.lower() not in choices:
            raise RefusedError(f"{keyword} = {value}: must be one of {', '.join(sorted(choices))}")
    if keywords.get("job_type", "serial").lower() == "serial":
        for keyword in LAYOUT:
            if keyword in keywords:
                raise RefusedError(f"{keyword} needs job_type = parallel")
    if "tasks_per_node" in keywords and "total_tasks" in keywords:
        raise RefusedError("tasks_per_node and total_tasks exclude each other")
    if config["accounts"] is not None and keywords.get("account_no") not in config["accounts"]:
        raise RefusedError(f"the account number {keywords.get('account_no')!r} is not valid")
    priority = keywords.get("user_priority", "50")
    if not priority.isdigit() or int(priority) > 100:
        raise RefusedError(f"user_priority = {priority}: must be 0 to 100")
    _check_class(keywords.get("class") or config["default_class"], keywords, config, owner)


def _check_class(name, keywords, config, owner):
    site_class = config["classes"].get(name)
    if site_class is None:
        raise RefusedError(f"the class {name!r} is not defined")
    allowed, denied = site_class.get("include_users"), site_class.get("exclude_users", [])
    if (allowed is not None and owner not in allowed) or owner in denied:
        raise RefusedError(f"{owner} may not use the class {name!r}")
    wanted = values.resources(keywords.get("resources", ""))
    for consumable in config["enforce_resource_submission"]:
        if consumable.lower() not in wanted:
            raise RefusedError(f"resources must name {consumable}")
    ceiling = site_class.get("wall_clock_limit")
    if "wall_clock_limit" in keywords:
        hard, _ = values.limits(keywords["wall_clock_limit"])
        if ceiling and (hard is None or hard > ceiling[0]):
            raise RefusedError(
                f"wall_clock_limit is above the {ceiling[0]} seconds of class {name!r}"
            )
    elif not ceiling and config["scheduler"] == "BACKFILL":
        raise RefusedError("wall_clock_limit is required")


def step_of(keywords, config, submission):
    """Return what is kept of a step: plain data, the values of keywords understood.

    `submission` has job, number, id, owner, group, uid, gid, cwd, command_file and submitted.
    """
    site_class = config["classes"][keywords.get("class") or config["default_class"]]
    serial = keywords.get("job_type", "serial").lower() == "serial"
    directory = os.path.join(submission["cwd"], keywords.get("initialdir") or ".")
    executable = keywords.get("executable")
    if executable:
        executable = os.path.normpath(os.path.join(directory, executable))
        if not os.access(executable, os.X_OK) or os.path.isdir(executable):
            raise RefusedError(f"cannot execute {executable}")
    for keyword in ("requirements", "preferences", "dependency"):
        if keywords.get(keyword):
            expressions.parse(keywords[keyword])
    processors = [keywords.get("min_processors", "1"), keywords.get("max_processors")]
    default_nodes = ",".join(filter(None, processors))
    has_limit = "wall_clock_limit" in keywords
    hold = keywords.get("hold", "").lower()
    return {
        **submission,
        "state": "I",
        "history": ["I"],
        "keywords": keywords,
        "class": keywords.get("class") or config["default_class"],
        "priority": int(keywords.get("user_priority", 50)),
        "job_name": keywords["job_name"],
        "step_name": keywords["step_name"],
        "serial": serial,
        "nodes": [1, 1] if serial else values.count_range(keywords.get("node", default_nodes)),
        "tasks_per_node": values.count_range(keywords.get("tasks_per_node", "1"))[0],
        "total_tasks": values.count_range(keywords.get("total_tasks", "1"))[0],
        "has_total": "total_tasks" in keywords,
        "has_nodes": serial or "node" in keywords or "total_tasks" not in keywords,
        "shared": keywords.get("node_usage", "shared").lower() == "shared",
        "resources": values.resources(
            keywords.get("resources") or site_class.get("default_resources", "")
        ),
        "node_resources": values.resources(keywords.get("node_resources", "")),
        "wall": values.limits(keywords["wall_clock_limit"])
        if has_limit
        else site_class.get("wall_clock_limit") or [None, None],
        "start_time": values.start_time(keywords["startdate"]) if keywords.get("startdate") else 0,
        "user_hold": hold in ("user", "usersys"),
        "system_hold": hold in ("system", "usersys"),
        "restart": keywords.get("restart", "yes").lower() == "yes",
        "executable": executable,
        "directory": os.path.normpath(directory),
        "input": keywords.get("input") or "/dev/null",
        "output": keywords.get("output") or "/dev/null",
        "error": keywords.get("error") or "/dev/null",
        "hosts": [],
        "dispatched": None,
        "completed": None,
        "completion_code": None,
        "pid": None,
        "rejections": 0,
        "why": "",
    }
