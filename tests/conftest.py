"""Settings that every test shares: one torch thread, and what a left-out test means on CI."""

import os
from collections.abc import Generator

import pytest

# Set before anything imports torch: replicas run with one thread, and results must equal theirs bit for bit.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves `gpu` tests out where there is no CUDA device, on CI too: its machines have none."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a test that is left out for a missing part fails instead, except for want of a GPU or weights."""
    report: pytest.TestReport = yield
    may_be_left_out = any(item.get_closest_marker(name) for name in ("gpu", "weights")) or hasattr(report, "wasxfail")
    if report.skipped and os.environ.get("CI") == "true" and not may_be_left_out:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"left out, which CI does not allow: {reason}"
    return report
