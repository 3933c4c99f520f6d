"""All sizes of the real-time path, counted in ticks of 20 ms.

A tick is exact at 16, 22.05 and 48 kHz (320, 441, 960 samples), is one Whisper frame and one Opus packet. The mel
frame (256 samples at 22.05 kHz) does not divide a tick and is the only rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from configs.schema import HOP as HOP
from configs.schema import MODEL_RATE as MODEL_RATE
from configs.schema import TICK_MS as TICK_MS
from configs.schema import ConfigError, LiveSettings, ticks_of

TICKS_PER_S = 1000 // TICK_MS
CONTENT_RATE = 16000
TICK_16K = CONTENT_RATE // TICKS_PER_S
TICK_MODEL = MODEL_RATE // TICKS_PER_S
SEARCH_TICKS = 1
MAX_SOLA_TICKS = 4


def mel_frames(n_samples: int) -> int:
    """Whole mel frames in samples at the model's rate."""
    return n_samples // HOP


@dataclass(frozen=True)
class Geometry:
    """One block's window: past context, then cross-fade and search room, the new block, and a look-ahead.

    window = left + crossfade + search + block + right, in ticks. The content encoder sees all of it; its first `drop`
    frames are dropped before the diffusion.
    """

    left_ticks: int
    crossfade_ticks: int
    block_ticks: int
    right_ticks: int
    drop_ticks: int

    def __post_init__(self) -> None:
        for name in ("crossfade_ticks", "block_ticks", "right_ticks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1 (20 ms)")
        if not 0 <= self.drop_ticks <= self.left_ticks:
            raise ConfigError(
                f"drop_ticks is {self.drop_ticks}; it must lie between 0 and the context of {self.left_ticks} ticks"
            )

    @classmethod
    def from_settings(cls, live: LiveSettings, block_ms: int | None = None) -> Geometry:
        """The geometry of a preset, or of its window in blocks of another size; ConfigError where it has no room."""
        left, kept = (
            ticks_of(live.context_ms, "context_ms"),
            ticks_of(live.diffusion_context_ms, "diffusion_context_ms"),
        )
        geometry = cls(
            left_ticks=left,
            crossfade_ticks=ticks_of(live.crossfade_ms, "crossfade_ms"),
            block_ticks=ticks_of(live.block_ms, "block_ms"),
            right_ticks=ticks_of(live.right_ms, "right_ms"),
            drop_ticks=left - kept,
        )
        if block_ms is None:
            return geometry
        live.check_block(block_ms)
        return geometry.with_block(block_ms // TICK_MS)

    @classmethod
    def from_seconds(
        cls,
        block_s: float,
        crossfade_s: float,
        context_s: float,
        diffusion_context_s: float,
        right_s: float,
        sample_rate: int = MODEL_RATE,
    ) -> Geometry:
        """Upstream's rounding of its settings at a stream's sample rate: half to even, on float products.

        0.35 s is 17 ticks at 22.05 and 44.1 kHz but 18 at 48 kHz; the difference of the two contexts is truncated, so
        0.6 - 0.5 s drops 4 frames, not 5.
        """
        tick = sample_rate // TICKS_PER_S

        def rounded(seconds: float) -> int:
            return int(np.round(seconds * sample_rate / tick))

        return cls(
            left_ticks=rounded(context_s),
            crossfade_ticks=rounded(crossfade_s),
            block_ticks=rounded(block_s),
            right_ticks=rounded(right_s),
            drop_ticks=int((context_s - diffusion_context_s) * TICKS_PER_S),
        )

    def with_block(self, block_ticks: int) -> Geometry:
        """The same window with more or less of it new, so that calls of both block sizes share a batch."""
        shift = self.block_ticks - block_ticks
        return replace(self, block_ticks=block_ticks, left_ticks=self.left_ticks + shift)

    def vocoder_frames(self, past_frames: int | None) -> int:
        """Mel frames that the vocoder renders per block: the returned ones, the look-ahead, and so much of the past."""
        if past_frames is None:
            return self.target_frames
        needed = -(-(self.return_samples + self.tail_samples) // HOP)
        return min(self.target_frames, needed + past_frames)

    @property
    def window_ticks(self) -> int:
        """What the content encoder sees."""
        return self.left_ticks + self.crossfade_ticks + SEARCH_TICKS + self.block_ticks + self.right_ticks

    @property
    def window_samples_16k(self) -> int:
        return self.window_ticks * TICK_16K

    @property
    def block_samples_16k(self) -> int:
        return self.block_ticks * TICK_16K

    @property
    def sola_ticks(self) -> int:
        """Length of the cross-fade itself, at most 80 ms."""
        return min(self.crossfade_ticks, MAX_SOLA_TICKS)

    @property
    def return_ticks(self) -> int:
        """Ticks that the stitcher needs of each block: block, cross-fade and search room."""
        return self.block_ticks + self.sola_ticks + SEARCH_TICKS

    @property
    def lag_ticks(self) -> int:
        """How far behind its newest sample a block's output ends; SOLA's search moves it by up to a tick less."""
        return self.sola_ticks + SEARCH_TICKS + self.right_ticks

    @property
    def rendered_ticks(self) -> int:
        """Ticks that the diffusion renders. With a cross-fade above 80 ms they are fewer than the features cover."""
        return self.left_ticks - self.drop_ticks + self.return_ticks + self.right_ticks

    @property
    def content_frames(self) -> int:
        """Content frames per block after the drop; Whisper gives one more than there are ticks."""
        return self.window_ticks + 1 - self.drop_ticks

    @property
    def target_frames(self) -> int:
        """Mel frames that the diffusion renders per block, without the prompt (T)."""
        return mel_frames(self.rendered_ticks * TICK_MODEL)

    @property
    def block_samples(self) -> int:
        """Output samples per block at the model's rate."""
        return self.block_ticks * TICK_MODEL

    @property
    def return_samples(self) -> int:
        return self.return_ticks * TICK_MODEL

    @property
    def tail_samples(self) -> int:
        """Samples behind the returned slice, under the look-ahead."""
        return self.right_ticks * TICK_MODEL

    def returned(self, wave: np.ndarray) -> np.ndarray:
        """The slice of a block's vocoder output [samples] that goes to the stitcher."""
        return wave[len(wave) - self.return_samples - self.tail_samples : len(wave) - self.tail_samples]


def prompt_samples(prompt_ms: int) -> int:
    """Length of a live prompt at the model's rate."""
    return ticks_of(prompt_ms, "prompt_ms") * TICK_MODEL
