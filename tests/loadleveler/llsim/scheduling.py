"""Who runs where: pure functions from machines and steps to placements."""

import math

from . import expressions

OCCUPYING = {"P", "ST", "R", "CP", "RP", "VP", "EP", "E", "MP", "CK"}
CODES = {"CC_NOTRUN": 1002, "CC_REMOVED": 1001}  # of steps that have no code; unverified


def machine_view(node, running):
    """Return what is free on `node` beside the steps that occupy it."""
    capacity = {"consumablecpus": node["cpus"], "consumablememory": node["memory_mb"]}
    capacity |= {name.lower(): count for name, count in node.get("resources", {}).items()}
    slots = node.get("max_starters", node["cpus"])
    alone = False
    occupied = False
    for step in running:
        tasks = step["hosts"].count(node["name"])
        if not tasks:
            continue
        occupied = True
        alone = alone or not step["shared"]
        slots -= tasks
        for name, amount in step["resources"].items():
            if name in capacity:
                capacity[name] -= amount * tasks
        for name, amount in step["node_resources"].items():
            if name in capacity:
                capacity[name] -= amount
    return {"capacity": capacity, "slots": slots, "alone": alone, "occupied": occupied}


def room(step, node, view, scheduled):
    """Return how many tasks of `step` find room on `node`."""
    if view["alone"] or (view["occupied"] and not step["shared"]):
        return 0
    capacity = view["capacity"]
    for name, amount in step["node_resources"].items():
        if name in scheduled and capacity.get(name, 0) < amount:
            return 0
    bounds = [
        capacity.get(name, 0) // amount
        for name, amount in step["resources"].items()
        if name in scheduled
    ]
    return max(0, min([view["slots"], *bounds]))


def satisfies(step, node):
    """Say whether `node` meets the requirements of `step`."""
    text = step["keywords"].get("requirements")
    return not text or bool(expressions.holds(expressions.parse(text), machine_facts(node).get))


def machine_facts(node):
    """Return what requirements may ask of a machine."""
    return {
        "Machine": [
            node["name"],
            *([f"{node['name']}.{node['domain']}"] if "domain" in node else []),
        ],
        "Feature": list(node.get("features", [])),
        "Arch": node.get("arch", ""),
        "OpSys": node.get("opsys", ""),
        "Memory": node["memory_mb"],
        "Adapter": list(node.get("adapters", [])),
    }


def place(step, nodes, running, config):
    """Return the hosts of the tasks of `step`, one name a task, or None when there is no room."""
    scheduled = {name.lower() for name in config["schedule_by_resources"]}
    allowed = config["classes"].get(step["class"], {}).get("nodes")
    rooms = {
        node["name"]: room(step, node, machine_view(node, running), scheduled)
        for node in nodes
        if satisfies(step, node) and (allowed is None or node["name"] in allowed)
    }
    rooms = {name: tasks for name, tasks in rooms.items() if tasks}
    fewest, most = step["nodes"]
    if not step["has_nodes"]:  # total_tasks and blocking: anywhere
        hosts = [name for name, tasks in rooms.items() for _ in range(tasks)]
        return hosts[: step["total_tasks"]] if len(hosts) >= step["total_tasks"] else None
    for count in range(min(most, len(rooms)), fewest - 1, -1):
        shares = _shares(step, count)
        roomy = sorted(rooms, key=lambda name: -rooms[name])[:count]
        pairs = list(zip(roomy, shares, strict=True))
        if all(rooms[name] >= share for name, share in pairs):
            if step["serial"]:  # the first machine that has room
                return list(rooms)[:1]
            return [name for name, share in pairs for _ in range(share)]
    return None


def _shares(step, count):
    if not step["has_total"]:
        return [step["tasks_per_node"]] * count
    total = step["total_tasks"]
    return sorted((math.ceil((total - index) / count) for index in range(count)), reverse=True)


def schedule(steps, nodes, config, now):
    """Return `[(step, hosts)]` that can start now, and `{id: why}` for those that cannot.

    Nobody overtakes a step that will find room later, unless the site has `backfill`.
    """
    up = [node for node in nodes if node.get("state", "Idle") == "Idle"]
    running = [step for step in steps if step["state"] in OCCUPYING]
    waiting = sorted(
        (step for step in steps if step["state"] == "I"),
        key=lambda step: (-step["priority"], step["job"], step["number"]),
    )
    starts, reasons, is_blocked = [], {}, False
    for step in waiting:
        if now < step["submitted"] + queue_delay(step, config["queue_delay_s"]):
            continue
        reason = class_full(step, running, config)
        if not reason and is_blocked:
            reason = "Not enough resources for this step as backfill."
        hosts = None if reason else place(step, up, running, config)
        if hosts:
            starts.append((step, hosts))
            running = [*running, {**step, "hosts": hosts}]
            continue
        if not reason:
            reason = "Not enough resources to start now."
            if place(step, nodes, [], config) is None:
                reason = "This step can never run: no machines of this site meet its needs."
            elif not config["backfill"]:
                is_blocked = True
        reasons[step["id"]] = reason
    return starts, reasons


def queue_delay(step, seconds):
    """Return how long `step` waits at least; `[shortest, longest]` differ from job to job."""
    if not isinstance(seconds, list):
        return seconds
    shortest, longest = seconds
    return shortest + (longest - shortest) * (0.618034 * step["job"] % 1)


def class_full(step, running, config):
    """Say why the class of `step` lets it not start, or return nothing."""
    site_class = config["classes"].get(step["class"], {})
    same = [other for other in running if other["class"] == step["class"]]
    slots = site_class.get("max_starters")
    if slots is not None and sum(len(other["hosts"]) for other in same) + tasks(step) > slots:
        return (
            "The number of available initiators of this class is not sufficient for this job step."
        )
    most = site_class.get("maxjobs_per_user")
    own = {other["job"] for other in same if other["owner"] == step["owner"]}
    if most is not None and len(own) >= most:
        return f"The user has {len(own)} running jobs of this class, the most it allows."
    return ""


def tasks(step):
    """Return how many tasks `step` has at least."""
    return step["total_tasks"] if step["has_total"] else step["nodes"][0] * step["tasks_per_node"]


def dependency_state(step, siblings):
    """Return True, False, or None while it cannot be told, for the step's dependency."""
    text = step["keywords"]["dependency"]
    for name, code in CODES.items():
        text = text.replace(name, str(code))
    codes = {other["step_name"]: _dependency_code(other) for other in siblings}
    return expressions.holds(expressions.parse(text), codes.get)


def _dependency_code(step):
    if step["state"] == "C":
        return float((step["completion_code"] or 0) >> 8)
    code = {"NR": "CC_NOTRUN", "RM": "CC_REMOVED", "CA": "CC_REMOVED"}.get(step["state"])
    return code and float(CODES[code])
