"""A real Slurm of several nodes on this host: private, without systemd, cgroups or a database.

PBS, LSF, HTCondor, OAR, Moab and LoadLeveler cannot be had as packages of Debian or PyPI; of the
batch systems that dask-jobqueue knows, only Slurm and Grid Engine are run for real in the tests.
"""

import os
import secrets
import shutil
import socket

from .batch_system import BatchSystem, free_ports

PROGRAMS = ["/usr/sbin/slurmctld", "/usr/sbin/slurmd", "/usr/sbin/munged", "sbatch", "srun"]

CONFIGURATION = """\
ClusterName=daskspace
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={path}/munge.socket
StateSaveLocation={path}/state
SlurmdSpoolDir={path}/spool.%n
SlurmctldPidFile={path}/slurmctld.pid
SlurmdPidFile={path}/slurmd.%n.pid
TmpFS={path}/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1,bf_min_age_reserve=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=256
ReturnToService=2
KillWait=3
SlurmctldTimeout=30
SlurmdTimeout=20
MessageTimeout=10
BatchStartTimeout=15
UnkillableStepTimeout=20
InactiveLimit=0
MinJobAge=300
SlurmdParameters=config_overrides
"""
NODE = (
    "NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000"
)
PARTITION = "PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP"


def missing():
    """Return why Slurm cannot be started here, or an empty string."""
    if os.geteuid():
        return "a private Slurm is started by root"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"slurm-wlm and munge are not installed: no {', '.join(absent)}" if absent else ""


class Slurm(BatchSystem):
    """A Slurm that is up with all its nodes idle, and down at the end of ``with``.

    Its jobs run as root. Whatever ends this program ends daemons and jobs as well.

    Parameters
    ----------
    path : path-like
        An empty directory for all that it writes.
    nodes, cpus : int, optional
        How many nodes, and how many CPUs each pretends to have.
    """

    def __init__(self, path, nodes=4, cpus=2):
        self.nodes, self.cpus = nodes, cpus
        super().__init__(path, {"SLURM_CONF": f"{path}/slurm.conf"})

    def _configure(self):
        for name in (
            "state",
            *(f"{kind}.n{n}" for kind in ("spool", "tmp") for n in self._numbers),
        ):
            (self.path / name).mkdir()
        host = socket.gethostname().partition(".")[0]
        port, *ports = free_ports(1 + self.nodes)
        lines = [
            CONFIGURATION.format(host=host, port=port, path=self.path),
            *(
                NODE.format(n=n, host=host, port=port, cpus=self.cpus)
                for n, port in zip(self._numbers, ports, strict=True)
            ),
            PARTITION,
        ]
        (self.path / "slurm.conf").write_text("\n".join(lines) + "\n")
        (self.path / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        key = self.path / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))

    @property
    def _numbers(self):
        return range(1, self.nodes + 1)

    def _start(self):
        files = [
            f"--{name}-file={self.path}/munge.{name}" for name in ("key", "pid", "log", "seed")
        ]
        # Root's own, for the directories of pytest let nobody else in: hence --force.
        socket_option = f"--socket={self.path}/munge.socket"
        self.start(
            *("/usr/sbin/munged", "--foreground", "--force", socket_option, *files),
            **self.environment,
        )
        self.wait_until((self.path / "munge.socket").exists, "munged")
        self.start("/usr/sbin/slurmctld", "-D", **self.environment)
        for n in self._numbers:
            self.start("/usr/sbin/slurmd", "-D", "-N", f"n{n}", **self.environment)
        self.wait_until(self._is_idle, f"{self.nodes} idle nodes")

    def _is_idle(self):
        idle = self.ran("sinfo", "--noheader", "--states=idle", "--format=%D").stdout
        return idle.strip() == str(self.nodes)
