"""Real batch systems as fixtures, one of each for a whole test run.

Tests that use one say so to pytest-xdist, so that one of its workers runs them all::

    pytestmark = pytest.mark.xdist_group("slurm")
"""

import pytest

from . import gridengine as gridengine_, slurm as slurm_


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A private Slurm of 4 nodes with 2 CPUs each."""
    if reason := slurm_.missing():
        pytest.skip(reason)
    with slurm_.Slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def gridengine(tmp_path_factory):
    """A private Grid Engine of 1 node with 4 slots."""
    if reason := gridengine_.missing():
        pytest.skip(reason)
    with gridengine_.GridEngine(tmp_path_factory.mktemp("gridengine")) as running:
        yield running
