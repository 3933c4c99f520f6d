"""Stages of this process for a live call: computed in one worker thread, so that the event loop never waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any

from stages.types import DiffuseRequest, EncodeRequest, Networks, Samples, VocodeRequest


class Work:
    """One stage's work on one block: waits in the worker's queue behind its source."""

    def __init__(
        self, worker: ThreadPoolExecutor, stage: str, compute: Callable[..., Any], request: Any, source: Work | None
    ) -> None:
        self.stage, self._source = stage, source
        self.took_ms: float | None = None
        self._compute, self._request = compute, request
        self.future: Future[Any] = worker.submit(self._run)

    def chain(self) -> list[Work]:
        """This work and all that it builds on, first stage first."""
        return [*(self._source.chain() if self._source is not None else ()), self]

    def _run(self) -> Any:
        results = () if self._source is None else (self._source.future.result(),)  # one worker: it is there, or failed
        start = perf_counter()
        result = self._compute(*results, self._request)
        self.took_ms = (perf_counter() - start) * 1000
        return result


class ThreadedStages:
    """Stages over networks of this process. Blocks of all calls take turns, one stage at a time."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="stages")

    def encode(self, request: EncodeRequest) -> Work:
        return Work(self._worker, "encoder", self._networks.encode, request, None)

    def render(self, content: Work, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Work:
        mel = Work(self._worker, "diffusion", self._networks.diffuse, diffuse, content)
        return Work(self._worker, "vocoder", self._networks.vocode, vocode, mel)

    def block(self, encode: EncodeRequest, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Work:
        return self.render(self.encode(encode), diffuse, vocode)

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
