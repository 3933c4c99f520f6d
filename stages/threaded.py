"""Stages of this process for a live call: computed in one worker thread, so that the event loop never waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any

from stages.pipeline import Stages
from stages.types import DiffuseRequest, EncodeRequest, Samples, VocodeRequest


class Work:
    """One stage's work on one block: waits in the worker's queue behind its source."""

    def __init__(
        self, worker: ThreadPoolExecutor, stage: str, compute: Callable[..., Any], request: Any, source: Work | None
    ) -> None:
        self.stage, self.source = stage, source
        self.took_ms: float | None = None
        self._compute, self._request = compute, request
        self.future: Future[Any] = worker.submit(self._run)

    def chain(self) -> list[Work]:
        """This work and all that it builds on, first stage first."""
        return [*(self.source.chain() if self.source is not None else ()), self]

    def _run(self) -> Any:
        results = () if self.source is None else (self.source.future.result(),)  # one worker: it is there, or failed
        start = perf_counter()
        result = self._compute(*results, self._request)
        self.took_ms = (perf_counter() - start) * 1000
        return result


class ThreadedStages:
    """pipeline.Stages over stages that compute at once. Blocks of all calls take turns, one stage at a time."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="stages")

    def encode(self, request: EncodeRequest) -> Work:
        return Work(self._worker, "encoder", self._stages.encode, request, None)

    def diffuse(self, content: Work, request: DiffuseRequest) -> Work:
        return Work(self._worker, "diffusion", self._stages.diffuse, request, content)

    def vocode(self, mel: Work, request: VocodeRequest) -> Work:
        return Work(self._worker, "vocoder", self._stages.vocode, request, mel)

    async def collect(self, wave: Work) -> Samples:
        """Wait for the samples; a stage's own error where it failed."""
        samples: Samples = await asyncio.wrap_future(wave.future)
        return samples

    def cancel(self, wave: Work) -> None:
        """Leave out what has not begun; a stage that computes now cannot be stopped."""
        for work in wave.chain():
            work.future.cancel()

    def stage_ms(self, wave: Work) -> dict[str, float]:
        """What each stage took for this wave, without waiting."""
        return {work.stage: work.took_ms for work in wave.chain() if work.took_ms is not None}
