"""Configuration that holds for a while, and what is there before, meanwhile and afterwards."""

import subprocess
import sys

import dask.config
import pytest

from daskspace.clusters.own_config import holding


def test_what_holds_for_a_while_is_gone_afterwards_and_the_rest_stays():
    before = {"one": {"a": 1, "b-c": 2}, "list": [1]}
    with dask.config.set(before):
        held = {"one": {"b_c": 3, "d": {"e": 4}}, "two": {"x": None}, "list": [], "none": {}}
        with holding(held):
            assert dask.config.get("one") == {"a": 1, "b-c": 3, "d": {"e": 4}}
            assert dask.config.get("two.x", 1) is None
            assert dask.config.get("list") == []
        assert dask.config.get("one.a") == 1
        assert dask.config.get("one.b-c") == 2
        assert dask.config.get("one.d.e", None) is None
        assert dask.config.get("two.x", 1) == 1
        assert dask.config.get("list") == [1]


def test_it_is_put_back_after_an_error():
    with pytest.raises(ZeroDivisionError), holding({"one": {"a": 1}}):
        1 / 0
    assert dask.config.get("one.a", None) is None


def test_defaults_of_what_is_imported_meanwhile_stay():
    program = """
import dask.config
from daskspace.clusters.own_config import setting
key = "distributed.admin.low-level-log-length"
with setting({key: 3, "distributed.mine": 4}):
    import distributed
    print(dask.config.get(key))
print(dask.config.get(key), dask.config.get("distributed.mine", None))
print(dask.config.get("distributed.comm.timeouts.connect"))
"""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == ["3", "1000", "None", "30s"]
