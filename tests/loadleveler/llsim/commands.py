"""The commands that users type: arguments in, a Reply out; all but llsubmit ask the negotiator."""

import os
import sys
import time

from . import config as site, formats, messages, scheduling, submission
from .jcf import RefusedError
from .spool import Spool

INFORMATION = ("-?", "-H", "-v")


class Reply:
    """What a command says and returns."""

    def __init__(self, out=(), err=(), code=0):
        self.out, self.err, self.code = list(out), list(err), code


class UsageError(Exception):
    """An option that the command does not have."""


def main(name):
    """Run the command `name` with the arguments of this process, and log it."""
    spool = Spool.of_environment()
    arguments = sys.argv[1:]
    config = site.read(spool.directory)
    try:
        if arguments and arguments[0] in INFORMATION:
            reply = Reply(out=[f"{name}: a stand-in for LoadLeveler's {name}, for tests"])
        elif name != "llsubmit" and _is_central_manager_away(spool):
            reply = _away(name, config)
        else:
            reply = COMMANDS[name](arguments, spool, config)
    except UsageError as error:
        reply = Reply(err=[messages.NUMBERED["usage"].format(command=name, option=error)], code=1)
    out, err = ("".join(f"{line}\n" for line in lines) for lines in (reply.out, reply.err))
    spool.log(
        "command", argv=[name, *arguments], out=out, err=err, code=reply.code, cwd=os.getcwd()
    )
    sys.stderr.write(err)
    sys.stderr.flush()
    try:
        sys.stdout.write(out)
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)
    os._exit(reply.code)  # spares the interpreter's slow way out


def options(arguments, flags="", valued="", categories=""):
    """Split `arguments` into `{letter: words}` and the rest.

    `flags` take nothing, `valued` options one word, `categories` all that follow with a `%`.
    """
    chosen, rest, pending = {}, [], list(arguments)
    while pending:
        argument = pending.pop(0)
        letter, attached = argument[1:2], argument[2:]
        if argument == "-" or not argument.startswith("-"):
            rest.append(argument)
        elif letter and letter in categories:
            chosen[letter] = [attached] if attached else []
            while pending and pending[0].startswith("%"):
                chosen[letter].append(pending.pop(0))
        elif letter and letter in valued and (attached or pending):
            chosen[letter] = [attached or pending.pop(0)]
        elif letter and letter in flags and not attached:
            chosen[letter] = []
        else:
            raise UsageError(argument)
    return chosen, rest


def _is_central_manager_away(spool):
    return not spool.has_negotiator() or spool.take_fault("cm_down") is not None


def _away(name, config):
    text = messages.NUMBERED["no central manager"]
    return Reply(err=[text.format(command=name, host=config["schedd_host"])], code=1)


def llsubmit(arguments, spool, config):
    """`llsubmit [-q] [-X clusters] [file | -]`."""
    chosen, rest = options(arguments, flags="q", valued="X")
    if (hang := spool.take_fault("submit_hang")) is not None:
        time.sleep(hang.get("s", 60))
    if (failure := spool.take_fault("submit_fail")) is not None:
        text = failure.get("text", "llsubmit: the schedd does not answer.")
        return Reply(err=[text, messages.NUMBERED["not submitted"]], code=failure.get("rc", 1))
    if config["quirks"]["submit_needs_central_manager"] and _is_central_manager_away(spool):
        return _away("llsubmit", config)
    reply = Reply()
    if (noise := spool.take_fault("submit_noise")) is not None:
        reply.err.append(noise.get("text", "KBGT60003-I Budget function authenticated somebody."))
    try:
        text, notice = submission.read_command_file(rest[0] if rest else "-", sys.stdin, spool)
        line = submission.submit(text, spool, config, command_file=rest[0] if rest else "-")
    except RefusedError as error:
        reason = messages.NUMBERED["refused"].format(why=error)
        return Reply(err=[*reply.err, reason, messages.NUMBERED["not submitted"]], code=1)
    chatter = [notice] if notice else []
    site_filter = config["submit_filter"] or {}
    chatter += site_filter.get("before", [])
    if "path" in site_filter:
        chatter.append(messages.FILTERED.format(path=site_filter["path"]))
    (reply.out if site_filter.get("stream") == "stdout" else reply.err).extend(chatter)
    if spool.take_fault("submit_ok_but_no_id") is None and "q" not in chosen:
        reply.out.append(line)
    return reply


def llcancel(arguments, spool, config):
    """`llcancel [-q] [-X clusters] [-u users] [-h hosts] [ids]`."""
    chosen, rest = options(arguments, flags="q", valued="Xuh")
    if (failure := spool.take_fault("cancel_fail")) is not None:
        text = failure.get("text", "llcancel: the central manager refuses.")
        return Reply(err=[text], code=failure.get("rc", 1))
    meant, unknown = _meant(spool, rest, _words(chosen.get("u", [])))
    errors = [
        messages.NUMBERED["unknown step"].format(command="llcancel", step=name) for name in unknown
    ]
    if not meant:
        return Reply(err=errors or ["llcancel: no steps are named."], code=1)
    if spool.take_fault("cancel_lost") is None:
        spool.request("cancel", *meant, delay_s=config["cancel_latency_s"])
    return Reply(out=[] if "q" in chosen else [messages.CANCEL_SENT], err=errors)


def llhold(arguments, spool, config):
    """`llhold [-r] [-s] ids`."""
    chosen, rest = options(arguments, flags="rsq", valued="uXh")
    meant, unknown = _meant(spool, rest, _words(chosen.get("u", [])))
    errors = [
        messages.NUMBERED["unknown step"].format(command="llhold", step=name) for name in unknown
    ]
    if not meant:
        return Reply(err=errors or ["llhold: no steps are named."], code=1)
    kind = "system" if "s" in chosen else "user"
    spool.request("release" if "r" in chosen else "hold", kind, *meant)
    return Reply(out=["llhold: Hold command has been sent to the central manager."], err=errors)


def llq(arguments, spool, config):
    """`llq [-l | -s | -f categories | -r categories] [-u users] [-c classes] [-j id] [ids]`."""
    chosen, rest = options(arguments, flags="lsxmw", valued="uchjX", categories="fr")
    if (slow := spool.take_fault("llq_slow")) is not None:
        time.sleep(slow.get("s", 5))
    if (failure := spool.take_fault("llq_fail")) is not None:
        text = failure.get("text", "llq: the central manager is busy.")
        return Reply(err=[text], code=failure.get("rc", 1))
    wanted = [*rest, *_words(chosen.get("j", []))]
    users, classes = _words(chosen.get("u", [])), _words(chosen.get("c", []))
    steps = [
        step
        for step in _visible(spool, config)
        if (not wanted or any(formats.is_meant(step["id"], name) for name in wanted))
        and (not users or step["owner"] in users)
        and (not classes or step["class"] in classes)
    ]
    if spool.take_fault("llq_empty_once") is not None:
        steps = []
    quirks = config["quirks"]
    if not steps:
        if wanted and quirks["done_rc"]:
            return Reply(code=quirks["done_rc"])
        return Reply(out=[messages.NO_STATUS])
    selected = bool(wanted or users or classes)
    if "s" in chosen:
        return Reply(out=[line for step in steps for line in formats.evaluations(step)])
    if "l" in chosen or "x" in chosen or "m" in chosen:
        return Reply(out=formats.long_listing(steps, selected))
    if quirks["short_ids_in_llq"]:
        steps = [{**step, "id": formats.short_id(step["id"])} for step in steps]
    if "r" in chosen:
        return Reply(out=formats.raw(steps, _codes(chosen["r"])))
    if "f" in chosen:
        return Reply(out=formats.custom(steps, _codes(chosen["f"]), selected))
    return Reply(out=formats.listing(steps, quirks["running_on_title"], selected))


def _visible(spool, config):
    """Return the steps in the queue, and those that have left it a moment ago."""
    oldest = time.time() - config["linger_s"]
    return [s for s in spool.steps() if not s["completed"] or s["completed"] > oldest]


def _words(texts):
    return [word for text in texts for word in text.replace(",", " ").split()]


def _codes(texts):
    codes = _words(texts)
    for code in codes:
        if code not in formats.CATEGORIES:
            raise UsageError(code)
    return codes


def _meant(spool, wanted, users):
    """Return the ids of the steps that are meant, and the words that mean none."""
    steps = [step for step in spool.steps() if not step["completed"]]
    meant = [step["id"] for step in steps if step["owner"] in users]
    unknown = []
    for name in wanted:
        ids = [step["id"] for step in steps if formats.is_meant(step["id"], name)]
        meant += ids
        if not ids:
            unknown.append(name)
    return list(dict.fromkeys(meant)), unknown


def llclass(arguments, spool, config):
    """`llclass [-l] [names]`."""
    chosen, rest = options(arguments, flags="l", valued="X")
    classes = {
        name: config["classes"][name]
        for name in rest or config["classes"]
        if name in config["classes"]
    }
    if not classes:
        return Reply(out=["llclass: There is currently no class information to report."])
    if "l" in chosen:
        details = (formats.class_details(*item) for item in classes.items())
        return Reply(out=[line for lines in details for line in lines])
    running = [step for step in spool.steps() if step["state"] in scheduling.OCCUPYING]
    starters = sum(node.get("max_starters", node["cpus"]) for node in config["nodes"])
    rows = []
    for name, site_class in classes.items():
        most = site_class.get("max_starters", starters)
        used = sum(len(step["hosts"]) for step in running if step["class"] == name)
        rows.append((name, max(0, most - used), most, site_class.get("description", "")))
    return Reply(out=formats.class_table(rows))


def llstatus(arguments, spool, config):
    """`llstatus [-l | -R] [machines]`."""
    chosen, rest = options(arguments, flags="lR", valued="X")
    states = spool.machine_states()
    running = [step for step in spool.steps() if step["state"] in scheduling.OCCUPYING]
    nodes = [node for node in config["nodes"] if not rest or node["name"] in rest]
    machines, amounts = [], []
    for node in nodes:
        state = states.get(node["name"], node.get("state", "Idle"))
        tasks = sum(step["hosts"].count(node["name"]) for step in running)
        if state == "Idle" and tasks:
            state = "Busy" if tasks >= node["cpus"] else "Run"
        facts = {"schedd": "Avail", "inq": 0, "act": 0, "load": float(tasks), "idle": 9999}
        machine = {**facts, "name": node["name"], "startd": state, "run": tasks}
        machines.append({**machine, "arch": node.get("arch", ""), "opsys": node.get("opsys", "")})
        free = scheduling.machine_view(node, running)["capacity"]
        cells = {
            "ConsumableCpus*": (free["consumablecpus"], node["cpus"]),
            "ConsumableMemory*": (f"{free['consumablememory']} mb", f"{node['memory_mb']} mb"),
        }
        amounts.append((node["name"], state == "Down", cells))
    if "R" in chosen:
        return Reply(out=formats.consumables(amounts))
    if "l" in chosen:
        return Reply(
            out=[f"{key} = {value}" for machine in machines for key, value in machine.items()]
        )
    manager = config["schedd_host"].split(".")[0]
    return Reply(out=formats.machine_table(machines, manager, config["scheduler"]))


COMMANDS = {
    "llsubmit": llsubmit,
    "llcancel": llcancel,
    "llhold": llhold,
    "llq": llq,
    "llclass": llclass,
    "llstatus": llstatus,
}
