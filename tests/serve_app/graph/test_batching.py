"""What waits while the device is busy goes together; recordings give way to calls; an error is its own item's."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Sequence

import pytest

from serve_app.graph import batching
from serve_app.graph.batching import MAX_FAILED_BATCHES, Entry, GroupCommit, RightOfWay
from serve_app.threads import come_last
from stages.layers import next_layer

STUCK_AFTER_S = 120.0


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


def committed(compute: Callable[[Sequence[int]], list[int]], observed: Observed) -> GroupCommit[int, int]:
    return GroupCommit(compute, 3, STUCK_AFTER_S, observed)


async def results_after_busy(
    device: Device, observed: Observed, entries: list[Entry[int, int]]
) -> list[int | Exception | None]:
    """Results of `entries`, all of which came while the device was busy with item 0."""
    commit = committed(device, observed)
    busy = asyncio.create_task(commit.run([Entry(0, arrived=0.0)]))
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


def arriving(*items: int) -> list[Entry[int, int]]:
    return [Entry(item, arrived=float(i + 1)) for i, item in enumerate(items)]


async def test_merges_what_waits(device: Device, observed: Observed) -> None:
    assert await results_after_busy(device, observed, arriving(1, 2, 3, 4, 5)) == [10, 20, 30, 40, 50]
    assert device.batches == [[0], [1, 2, 3], [4, 5]]
    assert observed.sizes == [1, 3, 2]
    assert observed.waits == 6


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

    commit = committed(lost, observed)
    commit.check()
    for _ in range(MAX_FAILED_BATCHES):
        await commit.run(arriving(1))
    with pytest.raises(RuntimeError, match="batches failed"):
        commit.check()


async def test_bad_requests_leave_the_device_healthy(device: Device, observed: Observed) -> None:
    device.free.set()
    commit = committed(device, observed)
    for _ in range(MAX_FAILED_BATCHES):
        await commit.run(arriving(13))
    commit.check()


async def test_a_batch_that_takes_for_ever_is_noticed_though_nobody_waits_for_it_any_more(
    device: Device, observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(batching, "perf_counter", lambda: now_s[0])
    commit = committed(device, observed)
    running = asyncio.create_task(commit.run(arriving(1, 2)))
    await asyncio.to_thread(device.entered.wait)
    now_s[0] = STUCK_AFTER_S - 1
    commit.check()
    running.cancel()
    await asyncio.wait([running])
    now_s[0] = STUCK_AFTER_S + 1
    with pytest.raises(RuntimeError, match="has been running for 121 s"):
        commit.check()
    device.free.set()


class Layers:
    """Computes each batch in three layers, and remembers them. A recording (below ten) stops after its first ones until
    it may go on."""

    def __init__(self) -> None:
        self.stop_after = 1
        self.computed: list[tuple[int, int]] = []
        self.stopped, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> list[int]:
        for number in range(3):
            next_layer()
            self.computed.append((items[0], number))
            if items[0] < 10 and number < self.stop_after:
                self.stopped.release()
                self.may_go_on.acquire()
        return [item * 10 for item in items]

    async def wait(self) -> None:
        """Until a recording has stopped."""
        await asyncio.to_thread(self.stopped.acquire)


class Stage:
    """The two lanes of one stage, without Serve's batching in front."""

    def __init__(self, layers: Layers) -> None:
        self.way = RightOfWay()
        self.recordings = GroupCommit(layers, 1, STUCK_AFTER_S, Observed(), way=self.way)
        self.calls = GroupCommit(layers, 1, STUCK_AFTER_S, Observed())

    async def recording(self, item: int) -> int | Exception | None:
        entry: Entry[int, int] = Entry(item, arrived=0.0)
        try:
            await self.recordings.run([entry])
        except asyncio.CancelledError:
            entry.abandoned = True
            raise
        return entry.result

    async def block(self, item: int) -> int | Exception | None:
        with self.way.taken():
            return (await self.calls.run([Entry(item, arrived=0.0)]))[0].result


@pytest.fixture
def layers() -> Layers:
    return Layers()


@pytest.fixture
def stage(layers: Layers) -> Stage:
    return Stage(layers)


async def test_a_recording_stands_still_for_blocks(
    layers: Layers, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "LONGEST_STAND_S", 60.0)
    recording = asyncio.create_task(stage.recording(1))
    await layers.wait()
    others = [asyncio.create_task(other) for other in (stage.recording(2), stage.block(11), stage.block(12))]
    await asyncio.sleep(0)  # all are on their way when their tasks have had one turn
    layers.may_go_on.release(2)
    assert await asyncio.gather(recording, *others) == [10, 20, 110, 120]
    blocks = [(item, number) for item in (11, 12) for number in range(3)]
    assert layers.computed == [(1, 0), *blocks, (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a class of their own on Linux only")
async def test_recordings_take_what_other_threads_leave() -> None:
    def scheduler(items: Sequence[int]) -> list[int]:
        return [os.sched_getscheduler(threading.get_native_id()) for _ in items]

    found = []
    for prepare in (come_last, None):
        commit = GroupCommit(scheduler, 1, STUCK_AFTER_S, Observed(), prepare)
        found += [entry.result for entry in await commit.run(arriving(1))]
    assert found == [os.SCHED_IDLE, os.SCHED_OTHER]


async def test_a_recording_ends_beside_calls_that_never_rest(
    layers: Layers, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "LONGEST_STAND_S", 0.01)
    layers.may_go_on.release()
    with stage.way.taken():
        assert await stage.recording(1) == 10


async def test_what_nobody_waits_for_ends_before_its_next_layer(layers: Layers, stage: Stage) -> None:
    hung_up = asyncio.create_task(stage.recording(1))
    await layers.wait()
    hung_up.cancel()
    await asyncio.wait([hung_up])
    layers.may_go_on.release(2)
    assert await stage.recording(2) == 20
    assert layers.computed == [(1, 0), (2, 0), (2, 1), (2, 2)]
    stage.recordings.check()


async def test_what_computes_layer_after_layer_is_not_stuck(
    layers: Layers, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(batching, "perf_counter", lambda: now_s[0])
    layers.stop_after = 2
    recording = asyncio.create_task(stage.recording(1))
    await layers.wait()
    now_s[0] = STUCK_AFTER_S - 1
    layers.may_go_on.release()
    await layers.wait()
    now_s[0] = 2 * STUCK_AFTER_S - 2
    stage.recordings.check()
    now_s[0] = 2 * STUCK_AFTER_S
    with pytest.raises(RuntimeError, match="has been running"):
        stage.recordings.check()
    layers.may_go_on.release()
    await recording
    stage.recordings.check()
