"""llsimctl: what no user of a site can do, from starting the site to breaking it."""

import argparse
import os
import signal
import subprocess
import sys
import time

from . import config as site, processes
from .negotiator import Negotiator
from .spool import Spool

FAULTS = {
    "submit_fail": "llsubmit fails; rc=1 text=...",
    "submit_hang": "llsubmit takes long; s=60",
    "submit_ok_but_no_id": "llsubmit succeeds and does not say the id",
    "submit_noise": "llsubmit says something else on stderr as well; text=...",
    "cm_down": "the commands but llsubmit do not reach the central manager",
    "llq_empty_once": "llq says that there are no jobs",
    "llq_slow": "llq takes long; s=5",
    "llq_fail": "llq fails; rc=1 text=...",
    "cancel_lost": "llcancel succeeds, and nothing happens",
    "cancel_fail": "llcancel fails; rc=1 text=...",
    "reject": "the machine rejects a step",
    "start_fail": "the starter fails: SX",
    "output_lag": "output appears some time after the end of the step; s=2",
}
LASTING = {"cm_down", "output_lag", "submit_noise"}
ON_STEPS = ("cancel", "remove", "vacate", "preempt", "resume", "kill", "terminate")
ON_MACHINES = ("crash", "drain", "up")


def main():
    """Run llsimctl."""
    arguments = _parser().parse_args()
    sys.exit(arguments.run(arguments))


def _parser():
    parser = argparse.ArgumentParser(prog="llsimctl", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="verb")

    start = verbs.add_parser("start", help="make a site if there is none, and start it")
    start.add_argument("--nodes", type=int, default=4)
    start.add_argument("--cpus", type=int, default=2)
    start.add_argument("--memory-mb", type=int, default=16384)
    start.add_argument("--allow-root", action="store_true", help="let root submit jobs")
    start.add_argument("--foreground", action="store_true", help="stay, and stop at the end")
    start.add_argument("--guardian", type=int, help="stop when this parent process is gone")
    start.set_defaults(run=_start)

    stop = verbs.add_parser("stop", help="stop the site with all its jobs")
    stop.set_defaults(run=_stop)

    fault = verbs.add_parser("fault", help="let something go wrong")
    fault.add_argument("kind", choices=[*FAULTS, "clear"])
    fault.add_argument(
        "options", nargs="*", metavar="name=value", help="count=1 and those of the kind"
    )
    fault.set_defaults(run=_fault)

    setting = verbs.add_parser("set", help="change the configuration of the running site")
    setting.add_argument("options", nargs="+", metavar="name=value")
    setting.set_defaults(run=_set)

    for verb in ON_STEPS:
        on_steps = verbs.add_parser(verb, help=f"{verb} steps")
        on_steps.add_argument("names", nargs="+")
        on_steps.set_defaults(run=lambda a, verb=verb: _request(verb, *_steps(a.names)))
    for verb in ON_MACHINES:
        on_machines = verbs.add_parser(verb, help=f"{verb} machines")
        on_machines.add_argument("names", nargs="+")
        on_machines.set_defaults(run=lambda a, verb=verb: _request(verb, *a.names))
    return parser


def _steps(names):
    from .commands import _meant

    meant, unknown = _meant(Spool.of_environment(), names, [])
    if unknown:
        raise SystemExit(f"llsimctl: no such steps: {' '.join(unknown)}")
    return meant


def _request(verb, *arguments):
    Spool.of_environment().request(verb, *arguments)


def _start(arguments):
    directory = os.environ.get("LLSIM_SPOOL")
    if not directory:
        raise SystemExit("llsimctl: set LLSIM_SPOOL to a directory that may be made")
    os.makedirs(directory, exist_ok=True)
    if not os.path.exists(os.path.join(directory, "config.json")):
        machines = site.nodes(arguments.nodes, arguments.cpus, arguments.memory_mb)
        site.write(directory, {"nodes": machines, "allow_root": arguments.allow_root})
    spool = Spool.create(directory, site.read(directory)["first_id"])
    if not arguments.foreground:
        return _start_in_background(spool)
    lock = spool.hold_negotiator_lock()
    if lock is None:
        raise SystemExit("llsimctl: this site runs already")
    (spool.directory / "negotiator.pid").write_text(str(os.getpid()))
    Negotiator(spool, arguments.guardian).run()
    return 0


def _start_in_background(spool):
    if spool.has_negotiator():
        raise SystemExit("llsimctl: this site runs already")
    with open(spool.directory / "negotiator.log", "ab") as log:
        child = subprocess.Popen(
            [sys.executable, sys.argv[0], "start", "--foreground"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    if not _wait_until(lambda: spool.has_negotiator() or child.poll() is not None):
        return 1
    if child.poll() is not None:
        print((spool.directory / "negotiator.log").read_text().strip(), file=sys.stderr)
        return 1
    return 0


def _stop(arguments):
    spool = Spool.of_environment()
    if spool.has_negotiator():
        os.kill(int((spool.directory / "negotiator.pid").read_text()), signal.SIGTERM)
    has_stopped = _wait_until(lambda: not spool.has_negotiator())
    processes.kill_all(spool)
    return 0 if has_stopped else 1


def _wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _fault(arguments):
    spool = Spool.of_environment()
    if arguments.kind == "clear":
        spool.clear_faults(*arguments.options)
        return 0
    chosen = _assignments(arguments.options)
    count = chosen.pop("count", None if arguments.kind in LASTING else 1)
    spool.add_fault(arguments.kind, count, **chosen)
    return 0


def _set(arguments):
    spool = Spool.of_environment()
    site.write(spool.directory, {**site.read(spool.directory), **_assignments(arguments.options)})
    return 0


def _assignments(texts):
    import json

    chosen = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            chosen[name] = json.loads(value)
        except ValueError:
            chosen[name] = value
    return chosen
