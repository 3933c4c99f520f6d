"""What a group of aligned recordings must pass to be trained on: equal times, the words, the voices that were meant.

The judges are those of the benchmarks, which know nothing of the synthesiser: Resemblyzer for voices, Moonshine for
English words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.judges import level_db, recognised, speaker_embedding, word_errors, words
from training.data import Floats

FRAME_S = 0.01
MOST_LAG = 10  # frames to each side that are looked at
LEAST_CORRELATION = 0.7
SHORTEST_S, LONGEST_S = 1.2, 15.0
QUIETEST_DB = -45.0
LOUDEST_PEAK = 1.0
MOST_WORD_ERRORS = 0.35
"""A third: the recogniser itself errs, most of all on words that nothing leads up to."""
LEAST_SIMILARITY = 0.6


@dataclass(frozen=True)
class Spoken:
    """One recording of a group: its samples at the rate, and the speaker vector [256] of its voice elsewhere."""

    samples: Floats
    rate: int
    voice: Floats


@dataclass(frozen=True)
class Finding:
    """What the judges found in one recording; `word_errors` is None where no judge knows the language."""

    level_db: float
    correlation: float  # of its loudness over time with the first recording's
    similarity: float  # to its own voice
    word_errors: float | None


class Fault(Exception):
    """A group cannot be used; the message is the check that it fails, one word."""


def envelope(samples: Floats, rate: int) -> Floats:
    """Level in dB of each 10 ms, not below -60 dB of the loudest."""
    hop = round(FRAME_S * rate)
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    power = np.mean(np.square(frames, dtype=np.float64), axis=1)
    return np.asarray(10 * np.log10(np.maximum(power, 1e-6 * power.max(initial=1e-12))), np.float32)


def lag_of(a: Floats, b: Floats) -> tuple[int, float]:
    """By how many frames envelope `b` comes after `a` of the same length, and how alike they then are (-1 to 1)."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt(np.sum(a * a) * np.sum(b * b))) or 1.0
    most = min(MOST_LAG, len(a) - 1)
    shifts = range(-most, most + 1)
    found = [float(np.sum(a[max(0, -s) : len(a) - max(0, s)] * b[max(0, s) : len(b) + min(0, s)])) for s in shifts]
    best = int(np.argmax(found))
    return shifts[best], found[best] / scale


def check(group: Sequence[Spoken], text: str, language: str) -> list[Finding]:
    """What is found in each recording of a group.

    Raises:
        Fault: the group is not to be used: `length`, `level`, `clipping`, `alignment`, `likeness` or `words`.
    """
    first = group[0]
    lengths = {len(spoken.samples) for spoken in group}
    if len(lengths) > 1 or not SHORTEST_S <= len(first.samples) / first.rate <= LONGEST_S:
        raise Fault("length")
    if not all(np.isfinite(spoken.samples).all() and level_db(spoken.samples) > QUIETEST_DB for spoken in group):
        raise Fault("level")
    if any(np.abs(spoken.samples).max() > LOUDEST_PEAK for spoken in group):
        raise Fault("clipping")
    envelopes = [envelope(spoken.samples, spoken.rate) for spoken in group]
    places = [lag_of(envelopes[0], other) for other in envelopes]
    if any(lag != 0 or alike < LEAST_CORRELATION for lag, alike in places):
        raise Fault("alignment")
    heard = [speaker_embedding(spoken.samples, spoken.rate) for spoken in group]
    likeness = np.array([[float(a @ spoken.voice) for spoken in group] for a in heard])
    if likeness.diagonal().min() < LEAST_SIMILARITY or (likeness.argmax(axis=1) != np.arange(len(group))).any():
        raise Fault("likeness")
    said = words(text)
    errors = [
        word_errors(said, words(recognised(spoken.samples, spoken.rate))) / len(said) if language == "en" else None
        for spoken in group
    ]
    if any(rate is not None and rate > MOST_WORD_ERRORS for rate in errors):
        raise Fault("words")
    return [
        Finding(level_db(spoken.samples), places[i][1], float(likeness[i, i]), errors[i])
        for i, spoken in enumerate(group)
    ]
