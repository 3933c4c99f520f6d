"""What is played in each 20 ms: blocks that come when they come in, even frames out. Pure, without a clock of its own.

A late block leaves silence behind it and would leave the call delayed for good. So the surplus is cut out again: in
quiet places, or where the sound resembles itself (one or more periods of the voice), or at once where there is far
too much.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from webrtc.upsample import RATE_OUT_HZ as RATE_HZ
from webrtc.upsample import Upsampler

Samples = NDArray[np.float32]  # (T,) mono, full scale at 1

FRAME = 960  # samples in 20 ms
MS = RATE_HZ // 1000

FADE = 5 * MS
HEADROOM = 10 * MS
"""Silence before the first block and after each gap, so that the next block may come a little later than the first."""
WINDOW = 50
"""Frames over which the least level is taken: whatever never got used in a second is surplus."""
MAX_MARGIN = 40 * MS
MARGIN_STEP = 5 * MS  # at least, per late block
MARGIN_DECAY = MS / 2 * FRAME / RATE_HZ  # samples per frame: 0.5 ms each second
LATE_AT_MOST = RATE_HZ // 2
"""A longer gap is a pause of the stream and says nothing about how late its blocks may be."""
QUIET = 0.003  # -50 dBFS
MIN_CUT = 3 * MS
MAX_ALIGNED_CUT = FRAME
ALIGNED_FADE = 10 * MS
ALIKE = 0.6
"""Correlation from which a cut is not heard."""
AS_GOOD = 0.02
"""Of cuts whose correlations differ no more than this, the longest is made."""
URGENT = 100 * MS
"""Surplus from which a cut is better than waiting for a good place."""
CUT_EVERY = 4
"""Frames between two tries of an aligned cut: the sound is at most a quarter faster."""

RISE: Samples = (np.sin(np.pi / 2 * (np.arange(FADE) + 0.5) / FADE) ** 2).astype(np.float32)
FALL: Samples = RISE[::-1].copy()
_ALIGNED_RISE: Samples = (np.sin(np.pi / 2 * (np.arange(ALIGNED_FADE) + 0.5) / ALIGNED_FADE) ** 2).astype(np.float32)


@dataclass(slots=True)
class PlayoutCounts:
    """What became of the sound, in samples at 48 kHz unless it says otherwise."""

    gaps: int = 0
    """How often nothing was there to play."""
    silence: int = 0
    """Silence put in for want of sound, the start of the call not counted."""
    cut: int = 0
    """Surplus taken out in quiet or self-similar places."""
    dropped: int = 0
    """Sound thrown away, oldest first, because more than the bound was waiting."""


class Playout:
    """Blocks at 22.05 kHz of any size in; one frame of 960 samples at 48 kHz out per call of `frame`."""

    def __init__(self, max_ms: int = 300) -> None:
        self._max = max_ms * MS  # that may wait when a block comes
        self.counts = PlayoutCounts()
        self.clear()

    def clear(self) -> None:
        """Forgets all sound, as before the first block."""
        self._upsample = Upsampler()
        self._waiting: Samples = np.zeros(0, np.float32)
        self._played: Samples = np.zeros(FADE, np.float32)  # the last of it, to fade out from
        self._faded = True  # what waits ends in silence
        self._risen = 0  # samples of the fade-in that are done
        self._gap: int | None = None  # silence played since the sound ended; None: not in a gap after sound
        self._margin = float(HEADROOM)
        self._levels: deque[int] = deque(maxlen=WINDOW)
        self._since_try = 0

    @property
    def buffered_ms(self) -> float:
        """Sound that waits to be played."""
        return len(self._waiting) / MS

    @property
    def delay_ms(self) -> float:
        """How long each block waits before its first sample is played: the least that was left in the last second."""
        return max(0, min(self._levels, default=0)) / MS

    def push(self, samples: Samples) -> None:
        """Appends sound; of what waits already the oldest is dropped beyond the bound, at whatever block size."""
        resampled = self._upsample(samples)
        if not len(resampled):
            return
        pieces = [self._waiting]
        if self._faded:
            pieces.append(np.zeros(HEADROOM, np.float32))
            self._faded, self._risen = False, 0
            self._end_gap()
        pieces.append(self._rising(resampled))
        self._waiting = np.concatenate(pieces)
        excess = len(self._waiting) - len(resampled) - self._max
        if excess > 0:
            self._cut(excess, RISE)
            self.counts.dropped += excess

    def frame(self) -> Samples:
        """The 960 samples of this tick."""
        if not self._faded:
            self._shrink()
            if len(self._waiting) < FRAME:
                self._fade_out()
        out = np.zeros(FRAME, np.float32)
        take = min(FRAME, len(self._waiting))
        out[:take], self._waiting = self._waiting[:take], self._waiting[take:]
        if self._gap is not None:
            self._gap += FRAME - take
            self.counts.silence += FRAME - take
        if not self._faded:
            self._levels.append(len(self._waiting))
            self._margin = max(float(HEADROOM), self._margin - MARGIN_DECAY)
        self._played = out[-FADE:]
        return out

    def _rising(self, sound: Samples) -> Samples:
        """Fades in what follows silence, over as many pushes as it takes."""
        count = min(len(sound), FADE - self._risen)
        if count == 0:
            return sound
        risen = sound.copy()
        risen[:count] *= RISE[self._risen : self._risen + count]
        self._risen += count
        return risen

    def _fade_out(self) -> None:
        """Lets the sound end: its last 5 ms run backwards, so that there is no step, and sink to silence."""
        ended = np.concatenate((self._played, self._waiting))[-FADE:]
        self._waiting = np.concatenate((self._waiting, ended[::-1] * FALL))
        self._faded, self._gap = True, 0
        self._levels.clear()
        self.counts.gaps += 1

    def _end_gap(self) -> None:
        """A block that came too late shows how much more is to be kept in hand, for the next minute."""
        if self._gap is not None and self._gap <= LATE_AT_MOST:
            self._margin = min(float(MAX_MARGIN), self._margin + max(self._gap, MARGIN_STEP))
        self._gap = None

    def _shrink(self) -> None:
        """Takes out what has been too much for a whole second."""
        self._since_try += 1
        if len(self._levels) < WINDOW:
            return
        surplus = min(min(self._levels) - int(self._margin), len(self._waiting) - FRAME - ALIGNED_FADE)
        if surplus < MIN_CUT:
            return
        loud = np.flatnonzero(np.abs(self._waiting) > QUIET)
        quiet = min(surplus, (int(loud[0]) if len(loud) else len(self._waiting)) - FADE)
        if quiet >= MIN_CUT:
            self._cut(quiet, RISE)
            self.counts.cut += quiet
        elif self._since_try >= CUT_EVERY:
            self._since_try = 0
            lag = self._best_lag(surplus)
            if lag:
                self._cut(lag, _ALIGNED_RISE)
                self.counts.cut += lag

    def _best_lag(self, surplus: int) -> int:
        """How much to cut so that the ends fit together, at most the surplus; 0: not here."""
        longest = min(surplus, MAX_ALIGNED_CUT)
        head = self._waiting[:ALIGNED_FADE]
        following = self._waiting[MIN_CUT : longest + ALIGNED_FADE]
        energy = np.cumsum(np.concatenate(([0.0], following.astype(np.float64) ** 2)))
        energy = energy[ALIGNED_FADE:] - energy[:-ALIGNED_FADE]
        alike = np.correlate(following, head) / np.sqrt(energy * np.dot(head, head) + 1e-9)
        best = float(alike.max())
        if best < ALIKE and surplus < URGENT:
            return 0
        return MIN_CUT + int(np.flatnonzero(alike >= best - AS_GOOD)[-1])

    def _cut(self, count: int, rise: Samples) -> None:
        """Removes `count` samples at the front, cross-fading from where the sound is to where it goes on."""
        fade = min(len(rise), len(self._waiting) - count)
        rise = rise[:fade]
        joined = self._waiting[:fade] * (1 - rise) + self._waiting[count : count + fade] * rise
        self._waiting = np.concatenate((joined, self._waiting[count + fade :]))
        self._levels = deque((level - count for level in self._levels), maxlen=WINDOW)
