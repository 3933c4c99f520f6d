"""What waits while the device is busy goes together; live goes first; an error is its own item's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from configs.serve import StageArgs
from serve_app.graph import batching
from serve_app.graph.batching import MAX_FAILED_BATCHES, Entry, GroupCommit


class Device:
    """Computes only when allowed to, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered, self.free = threading.Event(), threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.entered.set()
        self.free.wait()
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("13 is refused")
        return [item * 10 for item in items]


class Observed:
    """Keeps what the histograms would get."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.waits = 0

    def waited(self, milliseconds: float) -> None:
        self.waits += 1

    def computed(self, milliseconds: float, n_requests: int) -> None:
        self.sizes.append(n_requests)


async def results_after_busy(
    device: Device, observed: Observed, entries: list[Entry[int, int]]
) -> list[int | Exception | None]:
    """Results of `entries`, all of which came while the device was busy with item 0."""
    commit = GroupCommit(device, StageArgs(max_batch_size=3), observed)
    busy = asyncio.create_task(commit.run([Entry(0, live=False, arrived=0.0)]))
    await asyncio.to_thread(device.entered.wait)
    waiting = [asyncio.create_task(commit.run([entry])) for entry in entries]
    await asyncio.sleep(0)  # each has queued its entry when its task has had one turn
    device.free.set()
    await asyncio.gather(busy, *waiting)
    return [entry.result for entry in entries]


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def observed() -> Observed:
    return Observed()


def arriving(*items: int, live: Sequence[int] = ()) -> list[Entry[int, int]]:
    return [Entry(item, live=item in live, arrived=float(i + 1)) for i, item in enumerate(items)]


async def test_merges_what_waits(device: Device, observed: Observed) -> None:
    assert await results_after_busy(device, observed, arriving(1, 2, 3, 4, 5)) == [10, 20, 30, 40, 50]
    assert device.batches == [[0], [1, 2, 3], [4, 5]]
    assert observed.sizes == [1, 3, 2]
    assert observed.waits == 6


async def test_live_goes_first(device: Device, observed: Observed) -> None:
    await results_after_busy(device, observed, arriving(1, 2, 3, 4, 5, live=(4, 5)))
    assert device.batches == [[0], [4, 5, 1], [2, 3]]


async def test_error_is_its_own(device: Device, observed: Observed) -> None:
    first, refused, last = await results_after_busy(device, observed, arriving(12, 13, 14))
    assert (first, last) == (120, 140)
    assert isinstance(refused, ValueError)


async def test_abandoned_is_not_computed(device: Device, observed: Observed) -> None:
    entries = arriving(1, 2)
    entries[0].abandoned = True
    await results_after_busy(device, observed, entries)
    assert device.batches == [[0], [2]]


@pytest.mark.parametrize("error", [RuntimeError("device-side assert triggered"), MemoryError()])
async def test_a_lost_device_is_not_healthy(observed: Observed, error: Exception) -> None:
    def lost(items: Sequence[int]) -> list[int]:
        raise error

    commit: GroupCommit[int, int] = GroupCommit(lost, StageArgs(max_batch_size=3), observed)
    commit.check()
    for _ in range(MAX_FAILED_BATCHES):
        await commit.run(arriving(1))
    with pytest.raises(RuntimeError, match="batches failed"):
        commit.check()


async def test_bad_requests_leave_the_device_healthy(device: Device, observed: Observed) -> None:
    device.free.set()
    commit = GroupCommit(device, StageArgs(max_batch_size=3), observed)
    for _ in range(MAX_FAILED_BATCHES):
        await commit.run(arriving(13))
    commit.check()


@pytest.mark.parametrize(
    ("live", "healthy_s", "stuck_s"), [((1, 2), 29.0, 31.0), ((), 119.0, 121.0), ((1,), 119.0, 121.0)]
)
async def test_a_batch_that_takes_for_ever_is_noticed_sooner_where_all_of_it_is_live(
    device: Device,
    observed: Observed,
    monkeypatch: pytest.MonkeyPatch,
    live: Sequence[int],
    healthy_s: float,
    stuck_s: float,
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(batching, "perf_counter", lambda: now_s[0])
    commit = GroupCommit(device, StageArgs(stuck_after_s=120, live_stuck_after_s=30), observed)
    running = asyncio.create_task(commit.run(arriving(1, 2, live=live)))
    await asyncio.to_thread(device.entered.wait)
    now_s[0] = healthy_s
    commit.check()
    now_s[0] = stuck_s
    with pytest.raises(RuntimeError, match="has been running"):
        commit.check()
    device.free.set()
    await running
    commit.check()


async def test_a_stuck_batch_is_noticed_though_nobody_waits_for_it_any_more(
    device: Device, observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(batching, "perf_counter", lambda: now_s[0])
    commit = GroupCommit(device, StageArgs(), observed)
    running = asyncio.create_task(commit.run(arriving(1, live=(1,))))
    await asyncio.to_thread(device.entered.wait)
    running.cancel()
    await asyncio.wait([running])
    now_s[0] = 31.0
    with pytest.raises(RuntimeError, match="has been running for 31 s"):
        commit.check()
    device.free.set()
