"""Batches across requests: those that wait while the device is busy are computed together when it is free.

Serve's own batching cuts batches by a timer even while the device computes, and runs them one behind another. Here it
only collects what arrives together; the cut happens when the device is free (measured in docs/decisions).

Blocks of calls and recordings have a lane each, so neither waits in the other's queue. Recordings give way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event
from time import perf_counter
from typing import Any, Generic, Protocol, TypeVar

from ray import serve

from configs.serve import StageArgs
from serve_app.threads import come_last
from stages.layers import before_each_layer

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WAITING_BATCHES = 64
MAX_FAILED_BATCHES = 3
LONGEST_STAND_S = 0.25
"""How long a recording stands still before each layer at most, so that it goes on beside calls that never rest."""


class GivenUp(Exception):
    """Nobody waits for this batch any more."""


class RightOfWay:
    """Recordings stand still while blocks of calls are under way in the same process.

    The system's priorities alone would not do: a thread that has to wait for a core may hold what the calls' threads
    need, as Python's lock.
    """

    def __init__(self) -> None:
        self._n_calls = 0
        self._is_free = Event()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A block of a call is under way inside. In one thread only: that of the event loop."""
        self._n_calls += 1
        self._is_free.clear()
        try:
            yield
        finally:
            self._n_calls -= 1
            if not self._n_calls:
                self._is_free.set()

    def give_way(self) -> None:
        """Waits, in any thread, until no block is under way; not for ever."""
        if self._n_calls:
            self._is_free.wait(LONGEST_STAND_S)


class Watch:
    """Whether a device works, judged by how long its batch runs and how the last ones ended.

    The computing thread reports, since the waiting task may have left.
    """

    def __init__(self) -> None:
        self._work: tuple[float, float] | None = None  # when it began, how long it may take
        self._failed = 0

    def begin(self, limit_s: float) -> None:
        """A batch begins; it is stuck when it runs longer than `limit_s`."""
        self._work = perf_counter(), limit_s

    def end(self, results: Sequence[object]) -> None:
        """The batch is over. It failed where all results are RuntimeError or MemoryError, as torch raises them.

        A bad request raises other errors.
        """
        self._work = None
        is_lost = all(isinstance(result, RuntimeError | MemoryError) for result in results)
        self._failed = self._failed + 1 if is_lost else 0

    def check(self) -> None:
        """RuntimeError where one batch runs too long, or several in a row failed."""
        work = self._work
        if work is not None and (busy_s := perf_counter() - work[0]) > work[1]:
            raise RuntimeError(f"a batch has been running for {busy_s:.0f} s")
        if self._failed >= MAX_FAILED_BATCHES:
            raise RuntimeError(f"the last {self._failed} batches failed")


class Observer(Protocol):
    """Gets how long requests waited and what a batch cost."""

    def waited(self, milliseconds: float) -> None:
        """One request waited this long for the device."""

    def computed(self, milliseconds: float, n_requests: int) -> None:
        """One batch of so many requests took this long."""


@dataclass(eq=False)
class Entry(Generic[Item, Result]):
    """One request on its way through the gate."""

    item: Item
    arrived: float
    abandoned: bool = False
    done: bool = False
    result: Result | Exception | None = None


class GroupCommit(Generic[Item, Result]):
    """Runs `compute` over the waiting items in one worker thread, at most `max_batch_size` at once.

    `compute` takes a list of items and returns as many results in their order. An error in a batch is each item's own:
    the batch is run again item by item, so that one bad request fails alone. A batch that nobody waits for any more
    ends before its next layer. `prepare` runs once in the worker; with `way` it gives way before each layer.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        max_batch_size: int,
        stuck_after_s: float,
        observer: Observer,
        prepare: Callable[[], None] | None = None,
        way: RightOfWay | None = None,
    ) -> None:
        self._compute, self._observer, self._way = compute, observer, way
        self._max_batch_size, self._stuck_after_s = max_batch_size, stuck_after_s
        self._device = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, initializer=prepare)
        self._waiting: list[Entry[Item, Result]] = []
        self._watch = Watch()

    def check(self) -> None:
        """RuntimeError where one batch runs too long, or several in a row failed."""
        self._watch.check()

    async def run(self, entries: list[Entry[Item, Result]]) -> list[Entry[Item, Result]]:
        """Wait until all `entries` are done. Whoever gets the device computes the next batch of all that waits."""
        self._waiting.extend(entries)
        while not all(entry.done for entry in entries):
            async with self._device:
                if not all(entry.done for entry in entries):
                    await self._run(self._take())
        return entries

    def _take(self) -> list[Entry[Item, Result]]:
        """The next batch, in order of arrival. Abandoned entries are left out."""
        for entry in self._waiting:
            entry.done |= entry.abandoned
        self._waiting = sorted((e for e in self._waiting if not e.done), key=lambda e: e.arrived)
        batch = self._waiting[: self._max_batch_size]
        self._waiting = self._waiting[self._max_batch_size :]
        return batch

    async def _run(self, batch: list[Entry[Item, Result]]) -> None:
        if not batch:
            return
        started = perf_counter()
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._worker, self._work_off, batch)
        except asyncio.CancelledError:  # only this waiter leaves; the others' items are still wanted
            self._waiting.extend(batch)
            raise
        except Exception as error:  # the executor has shut down, and all waiting entries need a result
            results = [error] * len(batch)
        for entry, result in zip(batch, results, strict=True):
            entry.result, entry.done = result, True
            self._observer.waited((started - entry.arrived) * 1000)
        self._observer.computed((perf_counter() - started) * 1000, len(batch))

    def _work_off(self, batch: list[Entry[Item, Result]]) -> Sequence[Result | Exception]:
        results: Sequence[Result | Exception] = ()
        try:
            with before_each_layer(partial(self._before_layer, batch)):
                self._before_layer(batch)
                results = self._results_of(batch)
            return results
        except GivenUp as error:
            results = [error] * len(batch)
            return results
        finally:
            self._watch.end(results)

    def _before_layer(self, batch: list[Entry[Item, Result]]) -> None:
        """Each layer is a sign of life: what stands still for calls is not stuck."""
        if self._way is not None:
            self._way.give_way()
        if all(entry.abandoned for entry in batch):
            raise GivenUp
        self._watch.begin(self._stuck_after_s)

    def _results_of(self, batch: list[Entry[Item, Result]]) -> Sequence[Result | Exception]:
        try:
            results = self._compute([entry.item for entry in batch])
            if len(results) != len(batch):  # an entry without a result would wait for ever, so each gets an error
                raise ValueError(f"{len(batch)} requests were computed to {len(results)} results")
            return results
        except GivenUp:
            raise
        except Exception as error:  # each caller gets its own item's error, whatever it is
            if len(batch) == 1:
                return [error]
            return [result for entry in batch for result in self._results_of([entry])]


class Lane(Generic[Item, Result]):
    """Serve's batching in front, which collects what arrives together and keeps its metrics; a group commit behind."""

    def __init__(self, commit: GroupCommit[Item, Result], args: StageArgs) -> None:
        @serve.batch(
            max_batch_size=args.max_batch_size,
            batch_wait_timeout_s=args.batch_wait_ms / 1000,
            max_concurrent_batches=MAX_WAITING_BATCHES,
        )
        async def gather(entries: list[Entry[Item, Result]]) -> list[Entry[Item, Result]]:
            return await commit.run(entries)

        self._gather: Any = gather
        self.check = commit.check

    async def __call__(self, item: Item) -> Result:
        """The result of one item; its own exception where computing it failed."""
        entry: Entry[Item, Result] = Entry(item, perf_counter())
        try:
            await self._gather(entry)
        except asyncio.CancelledError:
            entry.abandoned = True
            raise
        if isinstance(entry.result, Exception):
            raise entry.result
        assert entry.result is not None
        return entry.result


class BatchGate(Generic[Item, Result]):
    """The way to one stage's device: a lane for blocks of calls, and one for recordings, which gives way to it.

    `compute_first` runs once in the thread that computes for calls.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        args: StageArgs,
        observer: Observer,
        way: RightOfWay,
        compute_first: Callable[[], None],
    ) -> None:
        self._way = way
        size = args.max_batch_size
        calls = GroupCommit(compute, size, args.live_stuck_after_s, observer, compute_first)
        recordings = GroupCommit(compute, size, args.stuck_after_s, observer, come_last, way)
        self._calls, self._recordings = Lane(calls, args), Lane(recordings, args)

    async def __call__(self, item: Item, for_call: bool) -> Result:
        """The result of one item; its own exception where computing it failed."""
        if not for_call:
            return await self._recordings(item)
        with self._way.taken():
            return await self._calls(item)

    def check(self) -> None:
        """RuntimeError where one batch runs too long, or several in a row failed."""
        self._calls.check()
        self._recordings.check()
