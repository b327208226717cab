"""LoadLeveler for a test: `with StandIn(tmp_path, nodes=4, cpus=2) as site: ...`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .llsim import config as site_config, formats, processes
from .llsim.control import FAULTS, LASTING
from .llsim.spool import Spool

HERE = Path(__file__).parent


class StandIn:
    """A site of its own below `path`, whose jobs are processes of this machine.

    `environment` is to be merged into `os.environ` of who calls `llsubmit` and the others. Ids are
    those that llsubmit and llq print; one of a job means all its steps. `config` is described in
    `llsim/config.py`.
    """

    def __init__(self, path, nodes=4, cpus=2, memory_mb=16384, **config):
        self.directory = Path(path, "loadleveler-spool")
        if isinstance(nodes, int):
            nodes = site_config.nodes(nodes, cpus, memory_mb)
        config = {"cycle_s": 0.05, "allow_root": True, **config, "nodes": nodes}
        self.config = site_config.complete(config)
        self.directory.mkdir(parents=True)
        site_config.write(self.directory, config)
        self.spool = Spool.create(self.directory, self.config["first_id"])
        self._negotiator = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop()
        self.spool.close()

    @property
    def environment(self):
        """What makes the commands and this site be found."""
        path = f"{HERE / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {"PATH": path, "LLSIM_SPOOL": str(self.directory)}

    def start(self):
        """Start the central manager; it ends with this process, however that ends."""
        command = [sys.executable, str(HERE / "bin" / "llsimctl"), "start", "--foreground"]
        log = self.directory / "negotiator.log"
        with log.open("ab") as stream:
            self._negotiator = subprocess.Popen(
                [*command, "--guardian", str(os.getpid())],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self._wait(
            lambda: self.spool.has_negotiator() or self._negotiator.poll() is not None,
            lambda: "the negotiator to start",
        )
        if self._negotiator.poll() is not None:
            raise RuntimeError(f"the negotiator did not start:\n{log.read_text()}")

    def stop(self):
        """End the central manager and all jobs."""
        if self._negotiator is not None:
            self._negotiator.terminate()
            try:
                self._negotiator.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._negotiator.kill()
                self._negotiator.wait()
            self._negotiator = None
        processes.kill_all(self.spool)

    def lose_central_manager(self):
        """Let the central manager be gone while jobs keep running; `start()` brings it back."""
        self._negotiator.send_signal(signal.SIGKILL)
        self._negotiator.wait()
        self._negotiator = None

    def run(self, *command, stdin=None, timeout=30, **options):
        """Run a command such as `"llq", "-l"` at this site; return its CompletedProcess."""
        environment = {**os.environ, **self.environment, **options.pop("env", {})}
        return subprocess.run(
            command,
            env=environment,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=timeout,
            **options,
        )

    def configure(self, **changes):
        """Change the configuration of the running site."""
        self.config = site_config.complete({**self.config, **changes})
        site_config.write(self.directory, self.config)

    def steps(self):
        """Return all that is known of every step since the start, as dicts."""
        return self.spool.steps()

    def jobs(self):
        """Return `{step id: state}` of every step since the start, also of what llq forgot."""
        return {step["id"]: step["state"] for step in self.steps()}

    def states(self, job):
        """Return the states that a step went through."""
        ids = self._ids(job)
        return [state for step in self.steps() if step["id"] in ids for state in step["history"]]

    def events(self):
        """Return the event log: commands with their streams, changes of state, signals."""
        return self.spool.events()

    def commands(self, name):
        """Return the logged calls of the command `name`."""
        return [event for event in self.events() if event.get("argv", [None])[0] == name]

    def fault(self, kind, count=..., **options):
        """Let the next `count` occasions go wrong in the way of `kind`, see `control.FAULTS`."""
        if kind not in FAULTS:
            raise ValueError(f"{kind!r} is none of {', '.join(FAULTS)}")
        if count is ...:
            count = None if kind in LASTING else 1
        self.spool.add_fault(kind, count, **options)

    def mend(self, kind=None):
        """Forget the faults of `kind`, or all."""
        self.spool.clear_faults(kind)

    def hold(self, job, kind="user"):
        """Hold a job; a running one is held when it would wait again."""
        self.spool.request("hold", kind, *self._ids(job))

    def release(self, job):
        """Release a job from its holds."""
        self.spool.request("release", "usersys", *self._ids(job))

    def cancel(self, job):
        """Cancel a job, as llcancel does."""
        self.spool.request("cancel", *self._ids(job))

    def vacate(self, job):
        """Take the machines away from a job: it waits again, or ends with `restart = no`."""
        self.spool.request("vacate", *self._ids(job))

    def remove(self, job):
        """Remove a job, as an administrator does."""
        self.spool.request("remove", *self._ids(job))

    def preempt(self, job):
        """Stop the processes of a job."""
        self.spool.request("preempt", *self._ids(job))

    def resume(self, job):
        """Continue a preempted job."""
        self.spool.request("resume", *self._ids(job))

    def kill(self, job):
        """Kill the processes of a job behind LoadLeveler's back."""
        self.spool.request("kill", *self._ids(job))

    def terminate(self, job):
        """Let a running job end in TX."""
        self.spool.request("terminate", *self._ids(job))

    def crash_node(self, name):
        """Let a machine go down, and what runs on it with it."""
        self.spool.request("crash", name)

    def drain_node(self, name):
        """Let a machine start nothing more."""
        self.spool.request("drain", name)

    def recover_node(self, name):
        """Bring a machine back."""
        self.spool.request("up", name)

    def wait_for(self, job, state, timeout=30):
        """Wait until all steps of `job` are in `state`, a name or a collection of names."""
        wanted = {state} if isinstance(state, str) else set(state)

        def current():
            ids = self._ids(job)
            return [known for step_id, known in self.jobs().items() if step_id in ids]

        self._wait(
            lambda: bool(current()) and set(current()) <= wanted,
            lambda: f"{job} to be {' or '.join(sorted(wanted))}, it is {current()}",
            timeout,
        )

    def _ids(self, job):
        return [step_id for step_id in self.jobs() if formats.is_meant(step_id, str(job))]

    def _wait(self, condition, what, timeout=30):
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                log = "\n".join(map(str, self.events()[-20:]))
                raise TimeoutError(f"waited {timeout} s for {what()}; the last events:\n{log}")
            time.sleep(0.02)


@pytest.fixture
def loadleveler(tmp_path, monkeypatch):
    """A site of four machines with two processors, whose commands are found on PATH."""
    with StandIn(tmp_path) as site:
        for name, value in site.environment.items():
            monkeypatch.setenv(name, value)
        yield site
