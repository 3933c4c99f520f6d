"""What is played in each 20 ms: blocks come in unevenly, even frames go out. Pure: time is an argument.

Some sound is kept in hand, so that nearly all blocks come in time; waiting for the last few would delay the call more
than it is worth (`WORTH`). Where a block is late, the sound is extended (`webrtc.bridge`) until the block is there and
joins it. That lengthens the delay for good, and so does a source that is faster than our clock. So surplus is cut out
again: in quiet places, or where the sound resembles itself (one or more periods of the voice), or at once where there
is far too much.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from webrtc.bridge import HISTORY, Extension
from webrtc.upsample import RATE_IN_HZ, Upsampler
from webrtc.upsample import RATE_OUT_HZ as RATE_HZ

Samples = NDArray[np.float32]  # (T,) mono, full scale at 1

FRAME = 960  # samples in 20 ms
MS = RATE_HZ // 1000

FADE = 5 * MS
HEADROOM = 10 * MS
"""Silence put before the first block, and before the first after a pause: the next one may come this much later."""
REMEMBERED = 100
"""The last blocks, by which the sound kept in hand is chosen: 12 s of blocks of 120 ms."""
WORTH = 400 * MS
"""The delay that it is worth to have all blocks in time; to have one in a hundred more in time is worth a hundredth of
it. Simulated over times of 430 blocks on a busy host: 30 ms less than where all are waited for, with as many words
recognised and no lower DNSMOS."""
LEAST_KNOWN = 8
"""Blocks that must have come before anything is cut."""
SPARE = 2 * MS
"""The latest block that is waited for should come at least this long before its frame is made."""
SLEW = 0.1 * MS
"""How much earlier or later than its time a frame may be made: half a percent, which receivers follow unheard."""
LATE_IN_A_ROW = 3
"""After so many late blocks in a row the stages take longer than before: only these blocks count then."""
LATE_AT_MOST = RATE_HZ // 2
"""A longer gap is a pause of the stream; it says nothing about how late blocks are."""
QUIET = 0.003  # -50 dBFS
MIN_CUT = 3 * MS
MAX_ALIGNED_CUT = FRAME
ALIGNED_FADE = 10 * MS
JOIN, JOIN_WITHIN = 5 * MS, 10 * MS
"""How long a late block is cross-faded with the extension, and within which time a place that fits is looked for."""
ALIKE = 0.6
"""Correlation from which a cut is not heard."""
AS_GOOD = 0.02
"""Of cuts whose correlation is this near to the best one, the longest is made."""
URGENT = 100 * MS
"""With a surplus from this on, a cut does not wait for a good place."""
CUT_EVERY = 4
"""Frames between two tries of an aligned cut: the sound is at most a quarter faster."""


def _rise(length: int) -> Samples:
    return np.asarray(np.sin(np.pi / 2 * (np.arange(length) + 0.5) / length) ** 2, np.float32)


RISE, _ALIGNED_RISE, _JOIN_RISE = _rise(FADE), _rise(ALIGNED_FADE), _rise(JOIN)


@dataclass(slots=True)
class PlayoutCounts:
    """What became of the sound, in samples at 48 kHz unless a field says otherwise."""

    bridged: int = 0
    """How often nothing was there to play in the middle of sound, and it was extended."""
    extended: int = 0
    """Sound made up where a block was late."""
    silence: int = 0
    """Silence played after the extension where the block was later still; before the first block it is not counted."""
    cut: int = 0
    """Surplus taken out in quiet or self-similar places."""
    dropped: int = 0
    """Sound thrown away, oldest first, because more than the bound was waiting."""


class Playout:
    """Blocks at 22.05 kHz of any size in; one frame of 960 samples at 48 kHz out per call of `frame`.

    Moments are seconds of one clock.
    """

    def __init__(self, max_ms: int = 300) -> None:
        self._max = max_ms * MS  # samples that may wait when a block comes
        self.counts = PlayoutCounts()
        self.clear()

    def clear(self) -> None:
        """Forgets all sound, as before the first block."""
        self._upsample = Upsampler()
        self._waiting: Samples = np.zeros(0, np.float32)
        self._played: Samples = np.zeros(HISTORY, np.float32)  # the end of it, which an extension goes on from
        self._extension: Extension | None = None  # there while a block is late
        self._silent = True  # what waits ends in silence
        self._risen = 0  # samples of the fade-in that are done
        self._gap: int | None = None  # played since the sound ended; None: not in a gap after sound
        self._framed_s: float | None = None  # when the last frame was made
        self._delay = 0.0  # the sum of cuts, bridges and moved frames, in samples
        self._early: deque[float] = deque(maxlen=REMEMBERED)  # how long before its turn each came, less `_delay` then
        self._block = 0  # samples of the last block
        self._late_in_a_row = 0
        self._since_try = 0

    @property
    def buffered_ms(self) -> float:
        """Sound that waits to be played."""
        return len(self._waiting) / MS

    @property
    def delay_ms(self) -> float:
        """How long the last few blocks waited for their turn; no sound waits longer than the bound and a block."""
        lately = list(self._early)[-LEAST_KNOWN:]
        waited = float(np.mean(lately)) + self._delay if lately else 0.0
        return float(np.clip(waited, 0, self._max + self._block / RATE_IN_HZ * RATE_HZ)) / MS

    @property
    def slew_s(self) -> float:
        """How much later (negative: earlier) than 20 ms after the last one the next frame is best made.

        Without it, blocks that come at even intervals wait for the next frame, 10 ms in the mean.
        """
        if len(self._early) < LEAST_KNOWN or self._extension is not None:
            return 0.0
        spare = self._spare
        if spare > 0:
            spare %= FRAME  # whole frames are cut out
        return -float(np.clip(spare, -SLEW, SLEW)) / RATE_HZ if abs(spare) > SLEW else 0.0

    def push(self, samples: Samples, now_s: float) -> None:
        """Appends sound. Where more than the bound waits already, the oldest of that is dropped."""
        sound = self._upsample(np.nan_to_num(samples, posinf=0.0, neginf=0.0))  # a network's overflow ends no call
        if not len(sound):
            return
        paused = self._gap is not None and self._gap > LATE_AT_MOST
        if paused or len(samples) != self._block:
            self._early.clear()  # blocks of another length come at other times
        elif sound.any() and (self._gap is not None or not self._silent):
            self._note_arrival(now_s)
        self._block = len(samples)
        pieces = [self._waiting]
        if self._silent:
            pieces.append(np.zeros(HEADROOM, np.float32))
            self._silent, self._risen = False, 0
            self._delay += (self._gap or 0) + HEADROOM
        elif self._extension is not None:
            sound = self._joined(self._extension, sound)
        self._extension = self._gap = None
        pieces.append(self._rising(sound))
        self._waiting = np.concatenate(pieces)
        excess = len(self._waiting) - len(sound) - self._max
        if excess > 0:
            self._cut(excess, RISE)
            self.counts.dropped += excess

    def frame(self, due_s: float) -> Samples:
        """The next 960 samples."""
        if self._framed_s is not None:
            self._delay += (due_s - self._framed_s) * RATE_HZ - FRAME
        self._framed_s = due_s
        if not self._silent:
            self._shrink()
            missing = FRAME - len(self._waiting)
            if missing > 0:
                self._go_on(missing)
        out = np.zeros(FRAME, np.float32)
        take = min(FRAME, len(self._waiting))
        out[:take], self._waiting = self._waiting[:take], self._waiting[take:]
        if self._gap is not None:
            self._gap += FRAME - take
            self.counts.silence += FRAME - take
        self._played = np.concatenate((self._played, out))[-HISTORY:]
        return out

    def _note_arrival(self, now_s: float) -> None:
        """Remembers how long before its turn a block has come."""
        since = 0.0 if self._framed_s is None else min(float(FRAME), (now_s - self._framed_s) * RATE_HZ)
        self._early.append(len(self._waiting) - (self._gap or 0) + FRAME - since - self._delay)
        self._late_in_a_row = self._late_in_a_row + 1 if self._gap else 0
        if self._late_in_a_row >= LATE_IN_A_ROW:
            self._early = deque(list(self._early)[-LATE_IN_A_ROW:], maxlen=REMEMBERED)

    @property
    def _begun(self) -> int:
        """How much of the frame in which the next block begins is filled already, in samples."""
        return len(self._waiting) % FRAME

    @property
    def _spare(self) -> float:
        """How long the latest block that is waited for comes before that frame is made, in samples."""
        early = np.sort(self._early)
        late = np.arange(len(early)) / len(early)  # share of the blocks before each of them
        return float(early[np.argmax(early - WORTH * late)]) + self._delay - self._begun - SPARE

    def _rising(self, sound: Samples) -> Samples:
        """Fades in what follows silence; short blocks fade in over several pushes."""
        count = min(len(sound), FADE - self._risen)
        if count == 0:
            return sound
        risen = sound.copy()
        risen[:count] *= RISE[self._risen : self._risen + count]
        self._risen += count
        return risen

    def _go_on(self, missing: int) -> None:
        """Extends the sound until the next block comes; when the extension is over, only silence follows."""
        if self._extension is None:
            past = np.concatenate((self._played, self._waiting))[-HISTORY:]
            self._extension = Extension(past)
            self.counts.bridged += bool(np.abs(past).max() > QUIET)
        self._waiting = np.concatenate((self._waiting, self._extension.next(missing)))
        self._gap = (self._gap or 0) + missing
        self.counts.extended += missing
        if self._extension.over:
            self._extension, self._silent = None, True

    def _joined(self, extension: Extension, sound: Samples) -> Samples:
        """A late block, cross-faded with the extension where they fit best."""
        going_on = extension.next(JOIN_WITHIN + JOIN)
        later = int(np.argmax(_likeness(going_on, sound[:JOIN])))
        joined = going_on[later : later + JOIN] * (1 - _JOIN_RISE) + sound[:JOIN] * _JOIN_RISE
        self._delay += (self._gap or 0) + later
        self.counts.extended += later
        return np.concatenate((going_on[:later], joined, sound[JOIN:]))

    def _shrink(self) -> None:
        """Cuts out the surplus: what is kept in hand beyond what nearly all of the last blocks needed."""
        self._since_try += 1
        if len(self._early) < LEAST_KNOWN or self._extension is not None:
            return
        surplus = self._begun + max(0, int(self._spare // FRAME)) * FRAME
        surplus = min(surplus, len(self._waiting) - FRAME - ALIGNED_FADE)
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
        """How much to cut so that the ends fit together, at most the surplus; 0 where no cut would pass unheard."""
        longest = min(surplus, MAX_ALIGNED_CUT)
        alike = _likeness(self._waiting[MIN_CUT : longest + ALIGNED_FADE], self._waiting[:ALIGNED_FADE])
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
        self._delay -= count


def _likeness(sound: Samples, part: Samples) -> Samples:
    """The correlation of the part with the sound at each place of it, at most 1."""
    energy = np.cumsum(np.concatenate(([0.0], sound.astype(np.float64) ** 2)))
    energy = energy[len(part) :] - energy[: -len(part)]
    alike = np.correlate(sound, part) / np.sqrt(energy * np.dot(part, part) + 1e-9)
    return np.asarray(alike, np.float32)
