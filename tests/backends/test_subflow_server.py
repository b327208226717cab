"""Processes of pySPACE's own kind ask for subflows as its SubflowHandler does."""

import ast
import os
import pickle
import socket
import sys
import time
import uuid

import cloudpickle
import pytest

from daskspace import create_backend, operation

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/net/tcp"),
]
cloudpickle.register_pickle_by_value(sys.modules[__name__])

KINDS = {
    "serial": {"backend_type": "serial"},
    "serial in a child": {"backend_type": "serial", "isolation": "process"},
    "mcore": {"backend_type": "mcore", "n_workers": 2},
}


class Chain:
    def __init__(self, number, how="return"):
        self.id = str(uuid.uuid4())
        self.number = number
        self.how = how

    def __call__(self, train_instances, runs):
        match self.how:
            case "raise":
                raise ValueError(f"no; {self.number}")
            case "exit":
                os._exit(1)
        return self.id, {"number": self.number, "sum": sum(train_instances), "runs": runs}

    def __reduce__(self):
        if self.how == "be unreadable":
            return int, ("no number",)
        return super().__reduce__()


class Client:
    """What pySPACE's SubflowHandler does, without its sleeps."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=60)

    def inform(self, message):
        self.socket.sendall(message.encode() + b"!END!")

    def talk(self, message):
        self.inform(message)
        answer = b""
        while not answer.endswith(b"!END!"):
            part = self.socket.recv(4096)
            assert part, "the server is gone"
            answer += part
        return answer.removesuffix(b"!END!").decode()

    def execute(self, directory, chains, runs):
        place = os.path.join(directory, "sp0")
        os.makedirs(place, exist_ok=True)
        with open(os.path.join(place, "subflow_data.pickle"), "wb") as file:
            pickle.dump([1, 2, 3], file)
        assert self.talk("name") == "mcore"
        self.inform("subflow_poolsize;2")
        pickles = [cloudpickle.dumps(chain) for chain in chains]
        told = self.talk(f"execute_subflows;{place};{len(pickles)};{pickles!r};{runs!r}")
        assert told == "OK"
        left = {chain.id for chain in chains}
        until = time.monotonic() + 60
        while left:
            left -= ast.literal_eval(self.talk(f"is_ready;{len(left)};{left!r}"))
            time.sleep(0.05)
            assert time.monotonic() < until
        return self.talk(f"send_results;{[chain.id for chain in chains]!r}")


def asks(x, directory):
    from daskspace.execution.attempt import current_attempt

    client = Client(current_attempt().backend_com)
    with client.socket:
        return ask(client, x, directory)


def ask(client, x, directory):
    chains = [Chain(number) for number in range(x, x + 6)]
    results = [pickle.loads(r) for r in ast.literal_eval(client.execute(directory, chains, [0, 1]))]
    assert [result["number"] for result in results] == list(range(x, x + 6))
    assert {result["sum"] for result in results} == {6}
    assert results[0]["runs"] == [0, 1]
    again = client.talk(f"send_results;[{chains[0].id!r}]")
    troubles = []
    for how in ("raise", "exit", "be unreadable"):
        odd = Chain(7, how)
        told = client.execute(directory, [Chain(1), odd], [0])
        troubles.append(told.replace(odd.id, "ID"))
    return {
        "again": again.startswith("error;there is no subflow"),
        "raised": troubles[0],
        "exited": troubles[1],
        "unreadable": troubles[2].startswith("error;") and "ValueError" in troubles[2],
        "odd": client.talk("set;state;__import__('os')"),
        "two": [client.talk("name!END!name"), client.socket.recv(100).decode()],
    }


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.xdist_group(f"server {k}")) for k in KINDS]
)
def test_an_original_client_gets_its_results_or_an_error_and_never_silence(
    kind, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with create_backend(subflow_server=True, **KINDS[kind]) as backend:
        rows = backend.run(operation(asks, grid={"x": [0, 10, 20]})).rows()
    for row in rows:
        assert row["state"] == "done", row["message"]
        assert row["again"]
        assert row["raised"] == "error;subflow ID failed: ValueError: no; 7"
        assert "error;subflow ID crashed: Exit: it ended its interpreter" in row["exited"]
        assert row["unreadable"]
        assert row["odd"] == "error;unknown message 'set'"
        assert row["two"][0] in ("mcore", "mcore!END!mcore")


def has_no_server(x):
    from daskspace.execution.attempt import current_attempt

    return {"address": current_attempt().backend_com}


def test_nothing_is_served_unless_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with create_backend("serial") as backend:
        (row,) = backend.run(operation(has_no_server, grid={"x": [0]})).rows()
    assert row["address"] is None
