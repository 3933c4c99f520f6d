"""The loop: blocks -> encoder -> diffusion -> vocoder -> stitch. The same code runs in process and on a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from configs.schema import LiveSettings
from stages.blocks import BlockMaker, BlockWindow
from stages.gate import apply_gains, tick_gains
from stages.geometry import TICK_MODEL, Geometry, mel_frames
from stages.level import LevelFollower
from stages.quiet import raised
from stages.stitch import Stitcher
from stages.types import DiffuseRequest, EncodeRequest, Samples, VocodeRequest, Voice

MAX_IN_FLIGHT = 2

Pending = Any
"""A result that may still be on its way: an array in process, a call on a cluster."""


class BlockLost(Exception):
    """The stages gave a block up; a call goes on without it, a recording cannot."""


class Stages(Protocol):
    """What the loop needs of the three stages, in process (LocalStages) or behind handles (ServeStages)."""

    def encode(self, request: EncodeRequest) -> Pending:
        """Start one window; its content is [frames, d_model]."""

    def diffuse(self, content: Pending, request: DiffuseRequest) -> Pending:
        """Start rendering content in a voice; its mel is [mels, frames]."""

    def vocode(self, mel: Pending, request: VocodeRequest) -> Pending:
        """Start making a mel audible."""

    async def collect(self, wave: Pending) -> Samples:
        """Wait for the samples [256 * frames]; BlockLost where the stages gave up."""

    def cancel(self, wave: Pending) -> None:
        """Give up a result that nobody will collect."""


@dataclass(frozen=True)
class Sampling:
    """How blocks are rendered."""

    seed: int
    steps: int
    cfg_rate: float
    vocoder_past_frames: int | None = None
    follow_level: bool = False
    high_pass: bool = False

    @classmethod
    def of(cls, live: LiveSettings, seed: int, steps: int | None = None) -> Sampling:
        """A preset's own way, with its own number of steps where none is given."""
        past, level = live.vocoder_past_frames, live.follow_level
        return cls(seed, steps or live.steps, live.cfg_rate, past, level, live.high_pass)


@dataclass(frozen=True)
class BlockRequests:
    """One block as the three stages are asked for it."""

    encode: EncodeRequest
    diffuse: DiffuseRequest
    vocode: VocodeRequest

    @classmethod
    def of(
        cls, window: BlockWindow, voice: Voice | str, sampling: Sampling, noise: np.ndarray | None = None
    ) -> BlockRequests:
        """The whole window to the encoder, raised if quiet; `noise` [mels, P + T] or [mels, T] is taken if given."""
        geometry = window.geometry
        n_frames, n_heard = geometry.target_frames, geometry.vocoder_frames(sampling.vocoder_past_frames)
        diffuse = DiffuseRequest(
            voice=voice,
            frames=n_frames,
            start=0,
            stop=n_frames,
            seed=sampling.seed,
            first_frame=mel_frames(window.end_tick * TICK_MODEL) - n_frames,
            steps=sampling.steps,
            cfg_rate=sampling.cfg_rate,
            live=True,
            noise=noise,
            last_frames=n_heard,
        )
        encode = EncodeRequest(
            raised(window.samples, window.lift), geometry.drop_ticks, live=True, usual_hz=window.usual_hz
        )
        return cls(encode, diffuse, VocodeRequest(n_heard, live=True))

    def start(self, stages: Stages) -> Pending:
        """Send them; what comes back is the wave's to `collect`."""
        return stages.vocode(stages.diffuse(stages.encode(self.encode), self.diffuse), self.vocode)


def stitchable(
    wave: Samples | None, gains: np.ndarray, window: BlockWindow, level: LevelFollower | None = None
) -> Samples:
    """The returned slice of a vocoder's output, silent where the source is; None: a block that was not sent."""
    if wave is None:
        return np.zeros(window.geometry.return_samples, np.float32)
    heard = apply_gains(window.geometry.returned(wave), gains)
    return level.block(heard, window) if level else heard


class Stream:
    """One conversion in blocks that may take as long as it takes: remembers the past sound and the last tail."""

    def __init__(self, stages: Stages, voice: Voice | str, geometry: Geometry, sampling: Sampling) -> None:
        self._stages, self._voice, self._geometry, self._sampling = stages, voice, geometry, sampling
        self._blocks = BlockMaker(geometry, sampling.high_pass)
        self._stitcher = Stitcher(geometry)
        self._level = LevelFollower() if sampling.follow_level else None
        self._in_flight: deque[tuple[Pending | None, np.ndarray, BlockWindow]] = deque()

    async def push(self, samples: Samples) -> AsyncIterator[Samples]:
        """Take samples at 16 kHz; yield the blocks [block] at 22.05 kHz that they complete, at most two in flight."""
        for window in self._blocks.push(samples):
            self._in_flight.append((*self._start(window), window))
            if len(self._in_flight) == MAX_IN_FLIGHT:
                yield await self._finish()
        while self._in_flight:
            yield await self._finish()

    def close(self) -> None:
        """Give up what is still in flight."""
        while self._in_flight:
            wave, _, _ = self._in_flight.popleft()
            if wave is not None:
                self._stages.cancel(wave)

    def _start(self, window: BlockWindow) -> tuple[Pending | None, np.ndarray]:
        """Send one window through the stages; a window that would be silent anyway is not sent."""
        gains = window.returned_ticks(tick_gains(window.samples))
        if not gains.any():
            return None, gains
        return BlockRequests.of(window, self._voice, self._sampling).start(self._stages), gains

    async def _finish(self) -> Samples:
        """Wait for the oldest block and stitch it on."""
        pending, gains, window = self._in_flight[0]
        try:
            wave = None if pending is None else await self._stages.collect(pending)
        finally:
            self._in_flight.popleft()
        return self._stitcher.push(stitchable(wave, gains, window, self._level))
