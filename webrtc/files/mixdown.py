"""The channels of a recording to one, at the level that a listener expects.

A plain mean loses what cancels: a channel that is inverted silences the other, and one that carries nothing halves it.
So the channels are compared first, block by block. The blocks are counted in samples from the start: what comes out
depends on the sound alone, not on the frames in which it came. Where the choice of channels changes, it is faded in
over 10 ms.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from webrtc.files.codecs import Samples

Wave = NDArray[np.float64]

BLOCKS_PER_S = 20
FADES_PER_BLOCK = 5
# Energies are compared as ratios: a channel counts as silent 40 dB below the loudest, and as sounding from -30 dB on.
SOUNDS, SILENT = 1e-3, 1e-4
SOUNDS_NOW = 1e-2  # the same over the last moments, for a second speaker who begins late
FORGET = 0.9  # of what the last moments are, per block: half of it is younger than 0.35 s
# Two channels work against each other where their sum holds less than unrelated ones would by this share.
AGAINST_NOW, AGAINST, WITH = -0.6, -0.4, -0.2
CANCELLED_S = 0.2  # that the user is told of
CANCELLED_SHARE = 0.1


class Mixdown:
    """Channels to mono, in nominal full scale: the mean of those that carry sound and do not cancel each other."""

    def __init__(self, channels: int, sample_rate: int) -> None:
        self.warnings: list[str] = []
        self._channels = channels
        self._block = max(1, sample_rate // BLOCKS_PER_S)
        self._pending: Wave = np.zeros((channels, 0))
        self._weights: Wave | None = None  # none before the first sound
        self._energy: Wave = np.zeros(channels)  # the mean of all blocks so far, times their number
        self._lately: Wave = np.zeros((channels, channels))  # energies and products over the last moments
        self._sounding = np.zeros(channels, bool)
        self._against = np.zeros((channels, channels), bool)
        self._sounding_blocks = 0
        self._cancelled_blocks = 0

    def push(self, by_channel: Wave) -> Wave:
        """Mixes (C, T) samples and what was left of those before; a last part of a block is kept back."""
        pending = np.concatenate([self._pending, by_channel], axis=1)
        whole = pending.shape[1] // self._block * self._block
        self._pending = pending[:, whole:]
        blocks = [self._mix(pending[:, at : at + self._block]) for at in range(0, whole, self._block)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def finish(self) -> Wave:
        """The rest."""
        rest, self._pending = self._pending, np.zeros((self._channels, 0))
        return self._mix(rest) if rest.shape[1] else np.zeros(0)

    def _mix(self, block: Wave) -> Wave:
        products: Wave = block @ block.T / block.shape[1]
        if products.any():
            weights = self._choose(products)
            before = weights if self._weights is None else self._weights
            self._weights = weights
            if before is not weights and (before != weights).any():
                towards = np.minimum(1.0, np.arange(1, block.shape[1] + 1) * FADES_PER_BLOCK / self._block)
                faded: Wave = before @ block * (1 - towards) + weights @ block * towards
                return faded
        mixed: Wave = (np.full(self._channels, 1 / self._channels) if self._weights is None else self._weights) @ block
        return mixed

    def _choose(self, products: Wave) -> Wave:
        """The weights of the channels, by this block and those before it."""
        now = np.diag(products)
        self._energy += now
        self._lately = self._lately * FORGET + products
        self._sounding_blocks += 1
        loudest = self._energy.max()
        lately = np.diag(self._lately)
        audible = loudest / self._sounding_blocks * SILENT
        joins = (lately >= lately.max() * SOUNDS_NOW) & (now >= audible)
        self._sounding = np.where(self._sounding, self._energy >= loudest * SILENT, self._energy >= loudest * SOUNDS)
        self._sounding |= joins
        self._compare(products, audible)
        # The first channel leads, unless another is more than twice as strong.
        order = sorted(map(int, np.flatnonzero(self._sounding)), key=lambda c: (self._energy[c] < loudest / 4, c))
        taken: list[int] = []
        for channel in order:
            if not self._against[channel, taken].any():
                taken.append(channel)
        if len(taken) < len(order):
            self._cancelled_blocks += 1
            self._tell(taken)
        weights = np.zeros(self._channels)
        weights[taken] = 1 / len(taken)
        return weights

    def _compare(self, products: Wave, audible: float) -> None:
        """Notes which channels work against each other."""
        both = np.diag(products)[:, None] + np.diag(products)
        both_lately = np.diag(self._lately)[:, None] + np.diag(self._lately)
        with np.errstate(divide="ignore", invalid="ignore"):  # two silent channels: not a number, so never against
            now, lately = 2 * products / both, 2 * self._lately / both_lately
        starts = ((now < AGAINST_NOW) & (both > audible)) | (lately < AGAINST)
        self._against = starts | (self._against & ~(lately > WITH))

    def _tell(self, taken: list[int]) -> None:
        enough = CANCELLED_S * BLOCKS_PER_S
        if self.warnings or self._cancelled_blocks < max(enough, CANCELLED_SHARE * self._sounding_blocks):
            return
        which = ", ".join(str(channel + 1) for channel in sorted(taken))
        self.warnings.append(
            f"the channels of the recording cancel each other (one is inverted or late): of its "
            f"{self._channels} channels these were taken: {which}"
        )


FULL_SCALES = (1.0, 2.0**15, 2.0**23, 2.0**31)  # of float samples, and of whole numbers that were stored as float
OVER = 8.0  # a peak up to so much above full scale is a loud recording, more is another scale
LOOK_AHEAD = 2  # blocks
UNSURE_BLOCKS = 100  # that the beginning of a recording which goes beyond 1 is kept back for: it fits many scales


class FullScale:
    """Samples of a float format to [-1, 1].

    Those formats bound nothing: some files hold whole numbers up to 32767, others go a little beyond 1. The scale is
    told by the peak so far, a few blocks ahead of what is given out, and the level only ever falls, over one block.
    """

    def __init__(self, sample_rate: int) -> None:
        self.warnings: list[str] = []
        self._block = max(1, sample_rate // BLOCKS_PER_S)
        self._pending: Wave = np.zeros(0)
        self._held: deque[Wave] = deque()
        self._peak = 0.0
        self._gain: float | None = None
        self._unsure_blocks = 0

    def push(self, samples: Wave) -> Wave:
        """Takes samples, gives those whose scale is known."""
        self._pending = np.concatenate([self._pending, samples])
        whole = len(self._pending) // self._block * self._block
        done: list[Wave] = []
        for at in range(0, whole, self._block):
            self._hold(self._pending[at : at + self._block])
            while self._held and self._is_sure():
                done.append(self._scaled(self._held.popleft()))
        self._pending = self._pending[whole:]
        return np.concatenate(done) if done else np.zeros(0)

    def finish(self) -> Wave:
        """The rest."""
        if len(self._pending):
            self._hold(self._pending)
            self._pending = np.zeros(0)
        done = [self._scaled(block) for block in self._held]
        self._held.clear()
        return np.concatenate(done) if done else np.zeros(0)

    def _hold(self, block: Wave) -> None:
        self._held.append(block)
        self._peak = max(self._peak, float(np.abs(block).max()))
        self._unsure_blocks += self._peak > 0

    def _is_sure(self) -> bool:
        if self._peak == 0:
            return True
        unsure = self._peak > 1 and self._unsure_blocks < UNSURE_BLOCKS
        return len(self._held) > LOOK_AHEAD and not unsure

    def _scaled(self, block: Wave) -> Wave:
        gain = self._wanted_gain()
        before = gain if self._gain is None else self._gain
        if self._peak > 0:
            self._gain = gain
        if before == gain:
            return block * gain
        towards = np.arange(1, len(block) + 1) / len(block)
        return block * (before * (1 - towards) + gain * towards)

    def _wanted_gain(self) -> float:
        for full_scale in FULL_SCALES:
            if self._peak <= full_scale * OVER:
                break
        divisor = max(full_scale, self._peak)
        if full_scale > 1:
            self._tell(f"the recording's samples are not scaled to 1; they were divided by {divisor:.0f}")
        elif divisor > 1.001:
            self._tell(f"the recording goes beyond full scale (up to {divisor:.2f}); its level was lowered to fit")
        return 1 / divisor

    def _tell(self, warning: str) -> None:
        if not self.warnings:
            self.warnings.append(warning)


CLIPPED = 1.5  # lossy codecs overshoot a little; from here on it is heard


class Mono:
    """Frames of one recording, (C, T) in nominal full scale, to mono in [-1, 1]."""

    def __init__(self, channels: int, sample_rate: int, *, unbounded: bool) -> None:
        self.channels = channels
        self._mixdown = Mixdown(channels, sample_rate) if channels > 1 else None
        self._full_scale = FullScale(sample_rate) if unbounded else None
        self._clipping: list[str] = []

    @property
    def warnings(self) -> list[str]:
        """What was odd so far."""
        found = list(self._clipping)
        for step in (self._mixdown, self._full_scale):
            found += step.warnings if step is not None else []
        return found

    def push(self, by_channel: Wave) -> Samples:
        """As much as is ready."""
        wave = by_channel[0] if self._mixdown is None else self._mixdown.push(by_channel)
        return self._bounded(wave if self._full_scale is None else self._full_scale.push(wave))

    def finish(self) -> Samples:
        """The rest."""
        wave = np.zeros(0) if self._mixdown is None else self._mixdown.finish()
        if self._full_scale is not None:
            wave = np.concatenate([self._full_scale.push(wave), self._full_scale.finish()])
        return self._bounded(wave)

    def _bounded(self, wave: Wave) -> Samples:
        if not self._clipping and wave.size and np.abs(wave).max() > CLIPPED:
            self._clipping.append("the recording goes far beyond full scale; it was clipped")
        return np.clip(wave, -1.0, 1.0).astype(np.float32)
