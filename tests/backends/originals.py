"""Operations and processes as pySPACE's own, written from what its backends are told to expect."""

import copy
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
import warnings
from pathlib import Path

FORK = multiprocessing.get_context("fork")  # as all of it was, when pySPACE was written
BIG = 2 * 2**20


class Process:
    """The base class of its processes."""

    def prepare(self, configuration, handler_class=None, handler_args=None, backend_com=None):
        self.configuration = copy.deepcopy(configuration)
        self.handler_class = handler_class
        self.handler_args = handler_args
        self.backend_com = backend_com

    def pre_benchmarking(self):
        self.logger = logging.getLogger(f"{socket.gethostname()}-{os.getpid()}")
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        self.handler = None
        if self.handler_class is not None:
            self.handler = self.handler_class(**self.handler_args)
            self.logger.addHandler(self.handler)
        sys.path = [*self.configuration["paths"], *sys.path]

    def post_benchmarking(self):
        if self.handler is not None:
            self.handler.close()
            self.logger.removeHandler(self.handler)


class Flow(Process):
    """One that can be called once only, and may do all that user code does."""

    def __init__(self, number, directory, does="", ballast=0):
        self.number, self.does, self.directory = number, does, directory
        self.node_chain = ["node"]
        self.ballast = os.urandom(ballast)

    def __call__(self):
        self.pre_benchmarking()
        for n in range(3):
            self.logger.info("record %d of process %d", n, self.number)
        self.logger.debug("detail of process %d", self.number)
        del self.node_chain
        getattr(self, f"_{self.does}", lambda: None)()
        path = Path(self.directory, f"result_{self.number}")
        path.write_text(f"{self.configuration['name']} {os.getcwd()} {len(self.ballast)}")
        self.post_benchmarking()

    def _fail(self):
        raise ValueError("as wanted")

    def _fail_once(self):
        mark = Path(self.directory, f"tried_{self.number}")
        if not mark.exists():
            mark.touch()
            raise ValueError("at first")

    def _wander(self):
        os.chdir("/")
        sys.path.insert(0, "/nowhere")
        os.environ["WANDERED"] = "yes"
        logging.getLogger("left").addHandler(self.handler_class(**self.handler_args))

    def _look(self):
        seen = [os.getcwd(), "/nowhere" in sys.path, "WANDERED" in os.environ]
        seen.append(len(logging.getLogger("left").handlers))
        Path(self.directory, f"seen_{self.number}").write_text(repr(seen))

    def _kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def _log_an_object(self):
        self.logger.info("with more than text", extra={"where": Path("/")})

    def _log_much(self):
        for n in range(2000):
            self.logger.warning("much %d", n)


class OldFlow(Flow):
    """One of an older version, which is told less."""

    def prepare(self, conf, handler=None, args=None):
        super().prepare(conf, handler, args)


class Operation:
    """An operation whose queue is full before it is run."""

    number_processes = 3

    def __init__(self, directory, flows=(), spec=None):
        directory = Path(directory)
        directory.mkdir(exist_ok=True)
        (directory / "source_operation.yaml").write_text("type: test\n")
        self.result_directory = str(directory)
        self.operation_spec = spec if spec is not None else {"type": "test"}
        self.processes = FORK.Queue()
        self.create_process = None
        self.consolidated = 0
        for flow in flows:
            self.processes.put(flow)
        if type(self) is Operation:
            self.processes.put(False)

    def get_output_directory(self):
        return self.result_directory

    def consolidate(self, _=None):
        self.consolidated += 1
        os.chdir(self.result_directory)
        found = sorted(Path().glob("result_*"))
        Path("results.csv").write_text("\n".join(path.name for path in found))


class LiveOperation(Operation):
    """An operation whose queue has little room, and is filled while it is emptied."""

    def __init__(self, directory, flows=(), ends="well", spec=None):
        super().__init__(directory, spec=spec if spec is not None else ["templates"])
        self.processes = FORK.Queue(4)
        arguments = (self.processes, list(flows), ends)
        self.create_process = FORK.Process(target=_create, args=arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            self.create_process.start()


def _create(processes, flows, ends):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        if ends == "well":
            random.shuffle(flows)
        for flow in flows:
            processes.put(flow)
        if ends == "killed":
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        if ends in ("raising", "raising after all"):
            raise ValueError("misspelt")
    finally:
        if ends in ("well", "raising after all"):
            processes.put(False)


def run_operation(backend, operation):
    """Do what pySPACE's function of this name does."""
    if str(backend) == "MulticoreBackend":
        backend.reset_queue()
    backend.stage_in(operation)
    try:
        backend.execute(timeout=1e6)
        backend.retrieve(timeout=1e6)
        backend.consolidate()
        return operation.get_output_directory()
    finally:
        backend.cleanup()
