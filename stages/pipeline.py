"""The loop: blocks -> encoder -> diffusion -> vocoder -> stitch. The same code runs in process and on a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Protocol

import numpy as np

from stages.blocks import BlockMaker, BlockWindow
from stages.gate import apply_gains, tick_gains
from stages.geometry import TICK_MODEL, Geometry, mel_frames
from stages.stitch import Stitcher
from stages.types import DiffuseRequest, EncodeRequest, Samples, VocodeRequest, Voice

MAX_IN_FLIGHT = 2

Pending = Any
"""A result that may still be on its way: an array in process, a call on a cluster."""


class BlockDropped(Exception):
    """A live block did not make its deadline."""


class Stages(Protocol):
    """What the loop needs of the three stages, in process (LocalStages) or behind handles (ServeStages)."""

    def encode(self, request: EncodeRequest) -> Pending:
        """Start one window; its content is [frames, d_model]."""

    def diffuse(self, content: Pending, request: DiffuseRequest) -> Pending:
        """Start rendering content in a voice; its mel is [mels, frames]."""

    def vocode(self, mel: Pending, request: VocodeRequest) -> Pending:
        """Start making a mel audible."""

    async def collect(self, wave: Pending) -> Samples:
        """Wait for the samples [256 * frames]; BlockDropped where a live block is late."""

    def cancel(self, wave: Pending) -> None:
        """Give up a result that nobody will collect."""


class Stream:
    """One live conversion: remembers the past sound and the last tail, nothing else."""

    def __init__(
        self,
        stages: Stages,
        voice: Voice | str,
        geometry: Geometry,
        *,
        seed: int,
        steps: int,
        cfg_rate: float,
        vocoder_frames: int | None = None,
    ) -> None:
        self._stages, self._voice, self._geometry = stages, voice, geometry
        self._seed, self._steps, self._cfg_rate, self._vocoder_frames = seed, steps, cfg_rate, vocoder_frames
        self._blocks = BlockMaker(geometry)
        self._stitcher = Stitcher(geometry)
        self._in_flight: deque[tuple[Pending | None, np.ndarray]] = deque()

    async def push(self, samples: Samples) -> AsyncIterator[Samples]:
        """Take samples at 16 kHz; yield the blocks [block] at 22.05 kHz that they complete, at most two in flight."""
        for window in self._blocks.push(samples):
            self._in_flight.append(self._start(window))
            if len(self._in_flight) == MAX_IN_FLIGHT:
                yield await self._finish()
        while self._in_flight:
            yield await self._finish()

    def close(self) -> None:
        """Give up what is still in flight."""
        while self._in_flight:
            wave, _ = self._in_flight.popleft()
            if wave is not None:
                self._stages.cancel(wave)

    def _start(self, window: BlockWindow) -> tuple[Pending | None, np.ndarray]:
        """Send one window through the stages; a window that would be silent anyway is not sent."""
        geometry = self._geometry
        first = geometry.window_ticks - geometry.right_ticks - geometry.return_ticks
        gains = tick_gains(window.samples)[first : first + geometry.return_ticks]
        if not gains.any():
            return None, gains
        n_frames = geometry.target_frames
        content = self._stages.encode(EncodeRequest(window.samples, geometry.drop_ticks, live=True))
        mel = self._stages.diffuse(
            content,
            DiffuseRequest(
                voice=self._voice,
                frames=n_frames,
                start=0,
                stop=n_frames,
                seed=self._seed,
                first_frame=mel_frames(window.end_tick * TICK_MODEL) - n_frames,
                steps=self._steps,
                cfg_rate=self._cfg_rate,
                live=True,
            ),
        )
        return self._stages.vocode(mel, VocodeRequest(self._vocoder_frames, live=True)), gains

    async def _finish(self) -> Samples:
        """Wait for the oldest block and stitch it on."""
        pending, gains = self._in_flight[0]
        try:
            if pending is None:
                return self._stitcher.push(np.zeros(self._geometry.return_samples, np.float32))
            wave = await self._stages.collect(pending)
            return self._stitcher.push(apply_gains(self._geometry.returned(wave), gains))
        except BlockDropped:
            return self._stitcher.conceal()
        finally:
            self._in_flight.popleft()
