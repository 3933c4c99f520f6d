"""One line of blocks, the same for calls and recordings: sound in, windows out to the networks, their sound stitched.

It has no event loop and no clock. The holder of a line passes the time, sends the windows, and waits for the networks:
a call until a deadline, a recording for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from configs.schema import LiveSettings
from stages.blocks import BlockMaker, BlockWindow
from stages.clock import CaptureClock
from stages.gate import apply_gains
from stages.geometry import CONTENT_RATE, MODEL_RATE, TICK_16K, TICK_MODEL, mel_frames
from stages.high_pass import RESULT_BLOCKS, HighPass
from stages.level import LevelFollower, limited
from stages.quiet import raised
from stages.settings import CallSettings, geometry_of
from stages.stitch import Stitcher
from stages.types import DiffuseRequest, EncodeRequest, Pending, Samples, Stages, VocodeRequest, Voice
from stages.vad import SpeechGate

MAX_IN_FLIGHT = 2
"""Blocks of one stream that the networks may have at once: one that they compute, one on its way."""

Gate = Callable[[Samples, int], NDArray[np.float32]]
"""A window at 16 kHz and how many of its ticks are new, to a gain for each tick."""


@dataclass(frozen=True)
class Sampling:
    """How blocks are rendered; `vocoder_past_frames` None: the vocoder renders the whole window."""

    seed: int
    steps: int
    cfg_rate: float
    vocoder_past_frames: int | None = None


@dataclass(frozen=True)
class BlockRequests:
    """One block as the stages are asked for it."""

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
        """Sends them. The stages' `collect` waits for the result."""
        return stages.block(self.encode, self.diffuse, self.vocode)


@dataclass(frozen=True, eq=False)
class Block:
    """One block on its way through a line, and the settings that it was cut with."""

    window: BlockWindow
    gains: NDArray[np.float32]
    """For each tick that is returned: 0 where nobody speaks."""
    captured_s: float
    """When its last sample was captured, on the clock of `push`."""
    settings: CallSettings
    sampling: Sampling

    @property
    def spoken(self) -> bool:
        """Whether there is speech in it."""
        return bool(self.gains.any())

    @property
    def way(self) -> Literal["render", "bypass", "skip"]:
        """What becomes of it. Silence is skipped."""
        if self.settings.bypass:
            return "bypass"
        return "render" if self.spoken else "skip"

    @property
    def requests(self) -> BlockRequests:
        """What the networks are asked for it."""
        return BlockRequests.of(self.window, self.settings.voice, self.sampling)


class BlockLine:
    """Remembers the past sound, the last tail and how loud both sides are; the networks remember nothing.

    Each block that `push` gives goes once, in the order of the blocks, into one of `finish`, `skip`, `bypass` and
    `conceal`, which give its final samples [block] at 22.05 kHz.
    """

    def __init__(self, live: LiveSettings, settings: CallSettings, *, seed: int = 0, gate: Gate | None = None) -> None:
        self._live, self._seed = live, seed
        self._gate: Gate = gate or SpeechGate()
        self._settings = settings
        self.geometry = geometry_of(live, settings)
        self._blocks = BlockMaker(self.geometry, live.high_pass)
        self._stitcher, self._clock = Stitcher(self.geometry), CaptureClock()
        self._level = LevelFollower() if live.follow_level else None
        self._high_pass = HighPass(RESULT_BLOCKS) if live.high_pass else None

    @property
    def settings(self) -> CallSettings:
        """What the next block is cut with."""
        return self._settings

    @settings.setter
    def settings(self, settings: CallSettings) -> None:
        """ConfigError where they cannot work; the line then stays as it was."""
        geometry = geometry_of(self._live, settings)
        self._blocks.resize(geometry)
        self._settings, self.geometry = settings, geometry

    def push(self, samples: Samples, now_s: float) -> Iterator[Block]:
        """Take samples of any number at 16 kHz that have come by `now_s`; yield the blocks that they complete."""
        self._clock.heard(self._blocks.n_samples + len(samples), now_s)
        for window in self._blocks.push(samples):
            gains = window.returned_ticks(self._gate(window.samples, window.geometry.block_ticks))
            captured_s = self._clock.at(window.end_tick * TICK_16K)
            settings = self._settings
            sampling = Sampling(self._seed, settings.steps, settings.cfg_rate, self._live.vocoder_past_frames)
            yield Block(window, gains, captured_s, settings, sampling)

    def finish(self, block: Block, wave: Samples) -> Samples:
        """A block with the vocoder's samples: silent where the source is, and as loud."""
        heard = apply_gains(block.window.geometry.returned(wave), block.gains)
        return self._stitched(self._level.block(heard, block.window) if self._level else heard)

    def skip(self, block: Block) -> Samples:
        """A block of silence."""
        return self._stitched(np.zeros(block.window.geometry.return_samples, np.float32))

    def bypass(self, block: Block) -> Samples:
        """A block that sounds as it came."""
        return self._stitched(original(block.window))

    def conceal(self, block: Block) -> Samples:
        """A block that is lost: the one before it fades out, the one after it fades in."""
        return self._heard(self._stitcher.conceal(block.window.geometry.block_samples))

    def _stitched(self, returned: Samples) -> Samples:
        return self._heard(self._stitcher.push(returned))

    def _heard(self, final: Samples) -> Samples:
        """The same without the vocoder's offset. Every sample passes here, so that no seam is heard."""
        return limited(self._high_pass.push(final)) if self._high_pass else final


def original(window: BlockWindow) -> Samples:
    """The source at 22.05 kHz, for the stitcher of a block that sounds as it came."""
    ticks = np.arange(len(window.samples) // TICK_16K)
    first, last = window.returned_ticks(ticks)[[0, -1]]
    margin = min(window.geometry.right_ticks, first)
    heard = window.samples[(first - margin) * TICK_16K : (last + 1 + margin) * TICK_16K]
    resampled = soxr.resample(heard, CONTENT_RATE, MODEL_RATE, quality="HQ")
    return np.asarray(resampled[margin * TICK_MODEL :][: window.geometry.return_samples], np.float32)
