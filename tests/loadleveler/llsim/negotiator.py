"""The central manager and the machines in one process: it alone changes the state of steps.

Killed by SIGKILL it leaves the steps running, and the next one takes them over; SIGTERM ends them.
"""

import os
import resource
import shutil
import signal
import time

from . import config as site, processes, scheduling

QUEUED = {"I", "H", "S", "HS", "D", "NQ"}
BUSY = scheduling.OCCUPYING
ENDED = {"C", "CA", "RM", "NR", "SX", "TX"}
HOLDS = {(True, True): "HS", (True, False): "H", (False, True): "S"}
HOLD_KINDS = {"user": ["user"], "system": ["system"], "usersys": ["user", "system"]}
AFTER_REJECTS = {"HOLD": "user_hold", "SYSHOLD": "system_hold", "CANCEL": None}


class Negotiator:
    """Carries the steps of one spool from submission to their end, a small stride per cycle."""

    def __init__(self, spool, guardian=None):
        self.spool = spool
        self.guardian = guardian
        self.steps = {}
        self._children = {}
        self._changed = {}
        self._config_stamp = None
        self._is_stopping = False
        self._last_job = -1

    def run(self):
        """Work until SIGTERM, or until the guardian (the parent process) is gone."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        while not self._is_stopping and self.guardian in (None, os.getppid()):
            self.cycle()
            time.sleep(self.config["cycle_s"])
        self._end_all()

    def _stop(self, *_):
        self._is_stopping = True

    def cycle(self):
        """Do what is to be done now."""
        self.now = time.time()
        self._read_config()
        requests = self.spool.due_requests()
        self._take_in()  # after the requests, which are about steps submitted before them
        for verb, arguments in requests:
            getattr(self, f"do_{verb}")(*arguments)
        for step in list(self.steps.values()):
            if step["state"] in QUEUED:
                self._settle(step)
            elif step["state"] in ("P", "ST"):
                self._launch_when_due(step)
            elif step["state"] in BUSY:
                self._watch(step)
            elif step.get("flush_at", self.now + 1) <= self.now:
                self._flush(step)
        self._dispatch()
        self._save()

    def _read_config(self):
        stamp = os.stat(self.spool.directory / "config.json").st_mtime_ns
        if stamp != self._config_stamp:
            self.config = site.read(self.spool.directory)
            self._config_stamp = stamp

    def _take_in(self):
        for step in self.spool.steps(after_job=self._last_job):
            self.steps[step["id"]] = step
            self._last_job = max(self._last_job, step["job"])

    def _save(self):
        if self._changed:
            with self.spool.transaction():
                self.spool.save(*self._changed.values())
            self._changed = {}

    def _to(self, step, state, why=""):
        if state == step["state"]:
            return
        self.spool.log("state", id=step["id"], old=step["state"], new=state, why=why)
        if state in ENDED:
            step["completed"] = self.now
        step.update(state=state, why=why, history=[*step["history"], state])
        self._changed[step["id"]] = step

    # waiting

    def _settle(self, step):
        dependency = self._dependency(step)
        if dependency is False:
            self._to(step, "NR", "its dependency can no longer be met")
        elif hold := HOLDS.get((step["user_hold"], step["system_hold"])):
            self._to(step, hold)
        elif step["start_time"] > self._site_time(step):
            self._to(step, "D")
        elif dependency is None or self._too_many(step):
            self._to(step, "NQ")
        else:
            self._to(step, "I")

    def _dependency(self, step):
        if not step["keywords"].get("dependency"):
            return True
        siblings = [other for other in self.steps.values() if other["job"] == step["job"]]
        return scheduling.dependency_state(step, siblings)

    def _site_time(self, step):
        return step["submitted"] + (self.now - step["submitted"]) * self.config["time_scale"]

    def _too_many(self, step):
        most = self.config["classes"].get(step["class"], {}).get("maxqueued_per_user")
        if most is None:
            return False
        ahead = [
            other
            for other in self.steps.values()
            if other["state"] == "I"
            and (other["owner"], other["class"]) == (step["owner"], step["class"])
            and (other["job"], other["number"]) < (step["job"], step["number"])
        ]
        return len(ahead) >= most

    def _dispatch(self):
        states = self.spool.machine_states()
        machines = [
            {**node, "state": states.get(node["name"], node.get("state", "Idle"))}
            for node in self.config["nodes"]
        ]
        steps = [step for step in self.steps.values() if step["state"] not in ENDED]
        starts, reasons = scheduling.schedule(steps, machines, self.config, self.now)
        for step, hosts in starts:
            step.update(hosts=hosts, start_at=self.now + self.config["start_delay_s"])
            self._to(step, "P")
            self._to(step, "ST")
            self._launch_when_due(step)
        for step_id, why in reasons.items():
            step = self.steps[step_id]
            if step["why"] != why:
                step["why"] = why
                self._changed[step_id] = step

    # running

    def _launch_when_due(self, step):
        if self.now < step["start_at"]:
            return
        if self.spool.take_fault("start_fail") is not None:
            step.update(hosts=[])
            self._to(step, "SX", "the starter failed")
            return
        lag = self.spool.take_fault("output_lag")
        lagging = None
        if lag is not None:
            step["lag_s"] = lag.get("s", 2.0)
            lagging = self._lag_directory(step)
            lagging.mkdir(exist_ok=True)
        try:
            if self.spool.take_fault("reject") is not None:
                raise processes.StartError("the machine rejects the step")
            child = processes.start(step, self.spool, lagging)
        except processes.StartError as error:
            self._reject(step, str(error))
            return
        self._children[step["id"]] = child
        hard, soft = [
            limit and self.now + limit / self.config["time_scale"] for limit in step["wall"]
        ]
        step.update(pid=child.pid, dispatched=self.now, hard_at=hard, soft_at=soft, kill_at=None)
        self._to(step, "R")

    def _reject(self, step, why):
        self._to(step, "XP", why)
        self._to(step, "X", why)
        step.update(hosts=[], rejections=step["rejections"] + 1)
        if step["rejections"] <= self.config["max_job_reject"]:
            self._to(step, "I", why)
            return
        hold = AFTER_REJECTS[self.config["action_on_max_reject"]]
        if hold is None:
            self._to(step, "CA", why)
            return
        step[hold] = True
        self._to(step, HOLDS[step["user_hold"], step["system_hold"]], why)

    def _watch(self, step):
        code = self._code(step)
        if code is not None:
            processes.kill_step(step, self.spool)
            self._ended(step, code)
        elif step["kill_at"] and self.now >= step["kill_at"]:
            processes.kill_step(step, self.spool)
        elif step["state"] == "R" and step["hard_at"] and self.now >= step["hard_at"]:
            self._terminate(step, "RP", "the wall clock hard limit is exceeded")
        elif step["state"] == "R" and step["soft_at"] and self.now >= step["soft_at"]:
            step["soft_at"] = None
            self._changed[step["id"]] = step
            self.spool.log("signal", id=step["id"], signal="SIGXCPU")
            processes.signal_step(step, signal.SIGXCPU)

    def _code(self, step):
        child = self._children.get(step["id"])
        if child is None:  # a former negotiator's: how it ended cannot be known
            return None if processes.is_alive(step["pid"]) else 0
        if child.poll() is None:
            return None
        del self._children[step["id"]]
        return child.returncode << 8 if child.returncode >= 0 else -child.returncode

    def _ended(self, step, code):
        state, why = step["state"], step["why"]
        self._leave(step, code)
        if state == "RP":
            self._to(step, "RM", why)
        elif state == "VP":
            self._to(step, "V", why)
            self._requeue(step, "CA", why)
        else:
            self._to(step, "CP")
            self._to(step, "C")

    def _leave(self, step, code):
        """Note that the processes of `step` are gone."""
        step.update(completion_code=code, pid=None, kill_at=None)
        if "lag_s" in step:
            step["flush_at"] = self.now + step.pop("lag_s")

    def _requeue(self, step, otherwise, why):
        """Let `step` wait again, unless it must not be restarted."""
        if not step["restart"]:
            self._to(step, otherwise, why)
            return
        step.update(hosts=[], dispatched=None, completion_code=None)
        self._to(step, "I", why)
        self._settle(step)

    def _terminate(self, step, state, why, number=signal.SIGTERM):
        self.spool.log("signal", id=step["id"], signal=signal.Signals(number).name)
        processes.signal_step(step, number)
        processes.signal_step(step, signal.SIGCONT)
        step["kill_at"] = self.now + self.config["kill_grace_s"]
        self._to(step, state, why)

    def _lag_directory(self, step):
        return self.spool.directory / "jobs" / f"{step['id']}.lag"

    def _flush(self, step):
        del step["flush_at"]
        self._changed[step["id"]] = step
        for name in ("output", "error"):
            source = self._lag_directory(step) / name
            if source.exists() and step[name] != "/dev/null":
                shutil.copyfile(source, os.path.join(step["directory"], step[name]))

    # requests

    def _matching(self, wanted, states):
        return [
            step for step in self.steps.values() if step["id"] in wanted and step["state"] in states
        ]

    def do_cancel(self, *wanted, why="llcancel"):
        """End steps for good."""
        for step in self._matching(wanted, QUEUED | {"P", "ST"}):
            step["hosts"] = []
            self._to(step, "CA", why)
        for step in self._matching(wanted, BUSY - {"P", "ST", "RP"}):
            self._terminate(step, "RP", why)

    def do_remove(self, *wanted):
        """Let an administrator remove steps."""
        for step in self._matching(wanted, QUEUED | {"P", "ST"}):
            self._to(step, "RM", "removed")
        self.do_cancel(*wanted, why="removed")

    def do_vacate(self, *wanted):
        """Take machines away from steps."""
        for step in self._matching(wanted, {"R", "E"}):
            number = signal.SIGUSR1 if step["restart"] else signal.SIGTERM
            self._terminate(step, "VP", "vacated", number)

    def do_hold(self, kind, *wanted):
        """Hold steps; running ones when they would wait again."""
        self._set_hold(kind, True, wanted)

    def do_release(self, kind, *wanted):
        """Release steps from holds."""
        self._set_hold(kind, False, wanted)

    def _set_hold(self, kind, is_held, wanted):
        for step in self._matching(wanted, QUEUED | BUSY):
            step.update({f"{name}_hold": is_held for name in HOLD_KINDS[kind]})
            self._changed[step["id"]] = step

    def do_preempt(self, *wanted):
        """Stop running steps for a while."""
        for step in self._matching(wanted, {"R"}):
            self._to(step, "EP")
            processes.signal_step(step, signal.SIGSTOP)
            self._to(step, "E")

    def do_resume(self, *wanted):
        """Continue preempted steps."""
        for step in self._matching(wanted, {"E"}):
            self._to(step, "MP")
            processes.signal_step(step, signal.SIGCONT)
            self._to(step, "R")

    def do_kill(self, *wanted):
        """Kill the processes of steps behind LoadLeveler's back."""
        for step in self._matching(wanted, BUSY):
            processes.kill_step(step, self.spool)

    def do_terminate(self, *wanted):
        """Let running steps end in TX."""
        for step in self._matching(wanted, BUSY):
            self._die(step)
            self._to(step, "TX", "terminated")

    def do_crash(self, *names):
        """Let machines go down with all that runs on them."""
        for name in names:
            self.spool.set_machine_state(name, "Down")
            for step in self.steps.values():
                if name not in step["hosts"] or step["state"] not in BUSY:
                    continue
                self._die(step)
                if step["state"] == "RP":
                    self._to(step, "RM", step["why"])
                else:
                    self._requeue(step, "RM", f"{name} went down")

    def _die(self, step):
        processes.kill_step(step, self.spool)
        child = self._children.pop(step["id"], None)
        code = signal.SIGKILL if child is None or child.wait() < 0 else child.returncode << 8
        self._leave(step, int(code))

    def do_drain(self, *names):
        """Start nothing more on machines."""
        for name in names:
            self.spool.set_machine_state(name, "Drain")

    def do_up(self, *names):
        """Bring machines back."""
        for name in names:
            self.spool.set_machine_state(name, "Idle")

    def _end_all(self):
        self.now = time.time()
        for step in self.steps.values():
            if step["state"] in BUSY:
                self._die(step)
                self._to(step, "RM", "the stand-in was stopped")
            if "flush_at" in step:
                self._flush(step)
        self._save()
        processes.kill_all(self.spool)
