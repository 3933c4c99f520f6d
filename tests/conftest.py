"""Settings that every test shares: one torch thread, which tests run side by side, what a left-out test means on CI."""

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

# Set before anything imports torch: replicas run with one thread, and results must equal theirs bit for bit.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

GIVING_WAY = (
    "tests/benchmarks/",
    "tests/cluster/",
    "tests/e2e/test_pages.py",
    "tests/fuzz/",
    "tests/serve_app/recordings/",
    "tests/serve_app/test_cli.py",
    "tests/serve_app/test_elevenlabs.py",
    "tests/serve_app/test_http.py",
    "tests/serve_app/test_multipart.py",
    "tests/serve_app/test_uploads.py",
    "tests/serve_app/voices/",
    "tests/stages/",
    "tests/test_",
    "tests/training/",
    "tests/webrtc/files/",
    "tests/webrtc/test_browser_offers.py",
    "tests/webrtc/test_page.py",
)
"""How the names of tests begin that give way to the others, which start Ray or play sound by the clock: these only
compute, or wait for what is their own."""
NICENESS = 10


def gives_way(name: str) -> bool:
    """Whether a test does."""
    return name.startswith(GIVING_WAY)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With `-n 2`: the others stay in one process, with one Ray instance; the tests that give way are shared out by
    file."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # the order is the one below
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = lambda name: name.partition("::")[0] if gives_way(name) else "the others"
    return scheduler


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n 2` the others come first: they take longest, and their process must not give way yet."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: gives_way(item.nodeid))


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Holds a lock of all processes on a file or folder that is there anyway."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """With `-n 2` a test marked `alone` waits until no other runs. This stands outside of what pytest-timeout times."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    here = Path(__file__)
    with ExitStack() as stack:
        with locked(here.parent, fcntl.LOCK_EX):  # who waits to be alone lets no other begin
            alone = item.get_closest_marker("alone") is not None
            stack.enter_context(locked(here, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """With `-n 2` a process gives way from its first such test on. Leaves `gpu` tests out where there is no CUDA
    device, on CI too: its machines have none."""
    if hasattr(item.config, "workerinput") and gives_way(item.nodeid):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
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
