"""A real Grid Engine of one node on this host: private, without systemd.

Debian's packages set up a cell in /var/lib/gridengine; this leaves it alone and has its own root.
"""

import os
import re
import shutil
import socket
from pathlib import Path

from .batch_system import BatchSystem, free_ports

PROGRAMS = Path("/usr/lib/gridengine")
SHARED = Path("/usr/share/gridengine")
DAEMONS = ["sge_qmaster", "sge_execd", "spoolinit", "spooldefaults"]

BOOTSTRAP = """\
admin_user none
default_domain none
ignore_fqdn false
spooling_method classic
spooling_lib libspoolc
spooling_params {spooling}
binary_path /usr/sbin
qmaster_spool_dir {path}/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
"""
CONFIGURATION = {
    "execd_spool_dir": "{path}/execd",
    "min_uid": "0",
    "min_gid": "0",
    "load_report_time": "00:00:02",
    "max_unheard": "00:00:20",
    "gid_range": "20000-20100",
    "shell_start_mode": "unix_behavior",
}
# Jobs wait for load averages and for the next of the scheduler's rounds otherwise.
SCHEDULER = {
    "schedule_interval": "0:0:1",
    "flush_submit_sec": "1",
    "flush_finish_sec": "1",
    "job_load_adjustments": "NONE",
    "load_formula": "slots",
}
QUEUE = {
    "qname": "all.q",
    "hostlist": "{host}",
    "slots": "{slots}",
    "pe_list": "smp",
    "load_thresholds": "NONE",
    "shell_start_mode": "unix_behavior",
    "min_cpu_interval": "00:00:05",
}
PARALLEL_ENVIRONMENT = """\
pe_name smp
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args /bin/true
stop_proc_args /bin/true
allocation_rule $pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""


def missing():
    """Return why Grid Engine cannot be started here, or an empty string."""
    if os.geteuid():
        return "a private Grid Engine is started by root"
    absent = [name for name in DAEMONS if not (PROGRAMS / name).exists()]
    if shutil.which("qsub") is None:
        absent.append("qsub")
    return f"gridengine is not installed: no {', '.join(absent)}" if absent else ""


class GridEngine(BatchSystem):
    """A Grid Engine that is up with an idle node, and down at the end of ``with``.

    Its jobs run as root, in the queue ``all.q`` with the parallel environment ``smp``. Whatever
    ends this program ends daemons and jobs as well.

    Parameters
    ----------
    path : path-like
        An empty directory for all that it writes.
    slots : int, optional
        How many jobs run at once.
    """

    def __init__(self, path, slots=4):
        self.slots = slots
        self.host = socket.gethostname().partition(".")[0]
        master, execd = map(str, free_ports(2))
        environment = {
            "SGE_ROOT": str(path),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": master,
            "SGE_EXECD_PORT": execd,
        }
        super().__init__(path, environment)

    def _configure(self):
        common = self.path / "default/common"
        for path in (common, self.path / "qmaster/job_scripts", self.path / "execd"):
            path.mkdir(parents=True)
        for name in ("bin", "lib", "util", "utilbin"):
            (self.path / name).symlink_to(f"/var/lib/gridengine/{name}")
        spooling = f"{common};{self.path}/qmaster"
        (common / "bootstrap").write_text(BOOTSTRAP.format(path=self.path, spooling=spooling))
        (common / "act_qmaster").write_text(f"{self.host}\n")
        # One name for all that the address of this host may be called.
        _, aliases, _ = socket.gethostbyname_ex(self.host)
        names = {*aliases, socket.getfqdn(), "localhost"} - {self.host}
        (common / "host_aliases").write_text(" ".join([self.host, *sorted(names)]) + "\n")
        configuration = self._write(
            "configuration",
            self._edited((SHARED / "default-configuration").read_text(), CONFIGURATION),
        )
        self.run(str(PROGRAMS / "spoolinit"), "classic", "libspoolc", spooling, "init")
        resources = SHARED / "util/resources"
        for kind, value in {
            "configuration": configuration,
            "complexes": str(resources / "centry"),
            "usersets": str(resources / "usersets"),
            "managers": "root",
        }.items():
            self.run(str(PROGRAMS / "spooldefaults"), kind, value)

    def _start(self):
        foreground = {**self.environment, "SGE_ND": "1"}
        self.start(str(PROGRAMS / "sge_qmaster"), **foreground)
        self.wait_until(lambda: self.ran("qconf", "-sh").returncode == 0, "sge_qmaster")
        self.ran("qconf", "-ah", self.host)  # known already where its name is the plain one
        self.run("qconf", "-as", self.host)
        self.run("qconf", "-Ap", self._write("pe", PARALLEL_ENVIRONMENT))
        self.run(
            "qconf", "-Aq", self._write("queue", self._edited(self.run("qconf", "-sq"), QUEUE))
        )
        scheduler = self._edited(self.run("qconf", "-ssconf"), SCHEDULER)
        self.run("qconf", "-Msconf", self._write("scheduler", scheduler))
        self.start(str(PROGRAMS / "sge_execd"), **foreground)
        self.wait_until(self._is_idle, "an idle node")

    def _is_idle(self):
        rows = [line.split() for line in self.ran("qstat", "-f").stdout.splitlines()]
        return any(
            row[0].startswith("all.q@") and len(row) == 5 and row[3] != "-NA-"
            for row in rows
            if row
        )

    def _write(self, name, text):
        path = self.path / name
        path.write_text(text)
        return str(path)

    def _edited(self, text, values):
        """Return a list of ``name value`` lines with some values replaced."""
        for name, value in values.items():
            value = value.format(path=self.path, host=self.host, slots=self.slots)
            text = re.sub(rf"^{name}\s+.*", f"{name} {value}", text, flags=re.MULTILINE)
        return text + "\n"
