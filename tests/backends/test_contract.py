"""What every backend promises; a new backend is a line in BACKENDS_UNDER_TEST."""

import subprocess
import sys

import pytest

from daskspace import Backend
from daskspace.backends import BACKENDS
from daskspace.testing import BackendContract, InPlaceContract

from .backends_under_test import BACKENDS_UNDER_TEST, NOT_TO_BE_HAD


class TestSerial(InPlaceContract):
    def make_backend(self):
        return BACKENDS_UNDER_TEST["serial"]()


class TestWithWorkers(BackendContract):
    @pytest.fixture(
        scope="module",
        params=[
            pytest.param(name, marks=pytest.mark.xdist_group(f"contract of {name}"))
            for name in BACKENDS_UNDER_TEST
            if name != "serial"
        ],
    )
    @classmethod
    def warm_backend(cls, request):
        with BACKENDS_UNDER_TEST[request.param]() as backend:
            yield backend


def test_every_registered_backend_is_under_test():
    assert set(BACKENDS) - NOT_TO_BE_HAD <= set(BACKENDS_UNDER_TEST)


def test_the_abstract_methods_are_exactly_the_documented_five():
    five = {"execute", "check_status", "retrieve", "consolidate", "cleanup"}
    assert Backend.__abstractmethods__ == five


def test_without_pytest_the_contract_says_what_it_needs_and_its_processes_are_there():
    program = """
import sys
sys.modules["pytest"] = None
import daskspace.testing.processes
try:
    daskspace.testing.BackendContract
except ImportError as error:
    print(error)
"""
    argv = [sys.executable, "-c", program]
    ran = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "BackendContract is made of tests for pytest: pip install pytest\n"
