import os

import pytest

from .schedulers.fixtures import gridengine, slurm  # noqa: F401 - one of each for all tests

ON_PURPOSE = "takes minutes"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With DASKSPACE_NO_SKIP, as in CI, a test that cannot run here is a failure."""
    report = yield
    if report.skipped and os.environ.get("DASKSPACE_NO_SKIP") and not hasattr(report, "wasxfail"):
        reason = str(call.excinfo.value) if call.excinfo else ""
        if ON_PURPOSE not in reason:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} must not be skipped here: {reason}"
    return report


def pytest_runtest_logreport(report):
    """Show a failure when it comes, for the whole run takes its time."""
    if report.failed:
        print(f"\n{report.nodeid} failed in {report.when}:\n{report.longreprtext}", flush=True)
