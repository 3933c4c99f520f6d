"""Conversions of pairs and their scores: each pair by every way of converting it, means with bootstrap intervals."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

import stages
from benchmarks.judges import (
    Dnsmos,
    Floats,
    Heard,
    Ratings,
    level_db,
    pitch_correlation,
    semitones_above,
    words,
)
from benchmarks.pairs import RATE, Excerpt, Pair, Speaker
from stages.local import LocalStages

RESAMPLINGS = 2000
NOISE_BELOW_DB = 30.0
"""A listener hardly minds white noise this far below the speech."""


@dataclass(frozen=True)
class Score:
    """One conversion. None: not measurable, or nothing to compare with.

    Similarities are cosines of speaker vectors, word errors are shares of words, ratings go from 1 to 5.
    """

    to_target: float
    to_source: float
    to_target_unheard: float | None
    """To other sound of the target than the conversion was given."""
    nearer_to_target: float
    """1 where the conversion stands nearer to its target than to its source."""
    wer: float | None
    """Against the source's transcript, where it is known."""
    wer_added: float | None
    """The same, less the source's."""
    wer_own_words: float | None
    """Against the words that the same recogniser hears in the source, which need no transcript."""
    wer_own_words_added: float | None
    """The same, less those of the source with a little noise, where the recogniser errs by itself."""
    pitch_correlation: float | None
    """Of log pitch to the source's, where both are voiced."""
    semitones_off: float | None
    """Median pitch above (+) or below (-) the target's."""
    semitones_away: float | None
    """The same without its sign."""
    level_db: float
    """Above (+) or below (-) the source's."""
    speech: float | None
    background: float | None
    overall: float | None
    real_time_factor: float
    """Processor time over the source's length: the way of a single thread, whatever else the machine does."""


@dataclass(frozen=True)
class Judged:
    """One pair: what its source scores, and the conversion by every way."""

    source: str
    target: str
    source_to_target: float
    words_said: int
    """Words of the transcript; 0 where it is not known."""
    words_heard: int
    """Words that the recogniser hears in the source."""
    source_wer: float | None
    source_wer_own_words: float | None
    """How far the recogniser contradicts itself once the source has a little noise: what to compare with."""
    source_overall: float | None
    ways: dict[str, Score]


@dataclass(frozen=True)
class Mean:
    """A mean, its 95 % bootstrap interval, and over how many values."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(values: Sequence[float | None], weights: Sequence[float] | None = None, seed: int = 0) -> Mean | None:
    """Weighted mean of the values that are there, and where it lies in 95 of 100 samples drawn from them."""
    weighted = [(v, w) for v, w in zip(values, weights or [1.0] * len(values), strict=True) if v is not None]
    if not weighted:
        return None
    x, weight = np.array(weighted, np.float64).T
    drawn = np.random.default_rng(seed).integers(0, len(x), (RESAMPLINGS, len(x)))
    resampled = (x * weight)[drawn].sum(axis=1) / weight[drawn].sum(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Mean(float((x * weight).sum() / weight.sum()), float(low), float(high), len(x))


@dataclass(frozen=True)
class Way:
    """One way of converting: which model, block by block as in a call or whole as a file, in how many steps."""

    local: LocalStages
    live: bool
    steps: int | None = None
    seed: int = 0
    block_ms: int | None = None
    """Of calls; None: as a call that wishes for nothing."""

    @property
    def n_steps(self) -> int:
        """The steps that it takes."""
        preset = self.local.preset
        return self.steps or (preset.live.steps if self.live else preset.file.steps)

    def convert(self, source: Excerpt, voice: stages.Voice) -> Floats:
        """The source in that voice at the model's rate."""
        return self.local.convert(
            source.samples, RATE, voice, self.seed, steps=self.steps, live=self.live, block_ms=self.block_ms
        )


class Bench:
    """Converts pairs by every way and asks the judges; sources and targets are judged once."""

    def __init__(self, ways: dict[str, Way], dnsmos: Dnsmos | None = None) -> None:
        self._ways, self._dnsmos = ways, dnsmos
        self._heard = dict[str, Heard]()
        self._voices = dict[tuple[str, str], stages.Voice]()

    def heard(self, excerpt: Excerpt) -> Heard:
        """What the judges say of an excerpt."""
        if excerpt.name not in self._heard:
            self._heard[excerpt.name] = Heard(excerpt.samples, RATE, self._dnsmos)
        return self._heard[excerpt.name]

    def judge(self, pair: Pair) -> tuple[Judged, dict[str, Floats]]:
        """Scores of one pair, and its conversions at the model's rate, by way."""
        source, target = self.heard(pair.source), self.heard(pair.target)
        said = words(pair.source.transcript)
        scores, conversions = dict[str, Score](), dict[str, Floats]()
        for name, way in self._ways.items():
            voice = self._voice(way.local, pair.target)
            start = time.process_time()
            conversions[name] = way.convert(pair.source, voice)
            took_s = time.process_time() - start
            made = Heard(conversions[name], stages.MODEL_RATE, self._dnsmos)
            scores[name] = self._score(pair, made, took_s)
        judged = Judged(
            source=f"{pair.source_speaker}: {pair.source.name}",
            target=f"{pair.target_speaker}: {pair.target.name}",
            source_to_target=source.similarity(target),
            words_said=len(said),
            words_heard=len(source.words),
            source_wer=source.word_error_rate(said),
            source_wer_own_words=self._noisy(pair.source).word_error_rate(source.words),
            source_overall=source.ratings.overall if source.ratings else None,
            ways=scores,
        )
        return judged, conversions

    def strangers(self, speakers: list[Speaker]) -> Mean | None:
        """Similarity of two different speakers, over all twos of them: where no conversion at all would stand."""
        firsts = [self.heard(speaker.excerpts[0]) for speaker in speakers]
        return bootstrap([a.similarity(b) for a, b in itertools.combinations(firsts, 2)])

    def same_speaker(self, speakers: list[Speaker]) -> Mean | None:
        """Similarity of two recordings, or two parts of one, of a speaker: where a perfect conversion would stand."""
        twos = [speaker.excerpts[:2] for speaker in speakers if len(speaker.excerpts) > 1]
        return bootstrap([self.heard(a).similarity(self.heard(b)) for a, b in twos])

    def _noisy(self, excerpt: Excerpt) -> Heard:
        name = f"{excerpt.name} with noise"
        if name not in self._heard:
            noise = np.random.default_rng(0).standard_normal(len(excerpt.samples))
            level = 10 ** ((level_db(excerpt.samples) - NOISE_BELOW_DB) / 20)
            self._heard[name] = Heard((excerpt.samples + level * noise).astype(np.float32), RATE)
        return self._heard[name]

    def _voice(self, local: LocalStages, target: Excerpt) -> stages.Voice:
        key = (local.fingerprint, target.name)
        if key not in self._voices:
            self._voices[key] = local.voice(target.samples, RATE)
        return self._voices[key]

    def _score(self, pair: Pair, made: Heard, took_s: float) -> Score:
        source, target = self.heard(pair.source), self.heard(pair.target)
        to_target, to_source = made.similarity(target), made.similarity(source)
        said = words(pair.source.transcript)
        own_words, noisy = made.word_error_rate(source.words), self._noisy(pair.source).word_error_rate(source.words)
        semitones = semitones_above(made.pitch, target.pitch)
        ratings: Ratings | None = made.ratings
        return Score(
            to_target=to_target,
            to_source=to_source,
            to_target_unheard=made.similarity(self.heard(pair.unheard)) if pair.unheard else None,
            nearer_to_target=float(to_target > to_source),
            wer=made.word_error_rate(said),
            wer_added=_less(made.word_error_rate(said), source.word_error_rate(said)),
            wer_own_words=own_words,
            wer_own_words_added=_less(own_words, noisy),
            pitch_correlation=pitch_correlation(source.pitch, made.pitch),
            semitones_off=semitones,
            semitones_away=abs(semitones) if semitones is not None else None,
            level_db=level_db(made.samples) - level_db(source.samples),
            speech=ratings.speech if ratings else None,
            background=ratings.background if ratings else None,
            overall=ratings.overall if ratings else None,
            real_time_factor=took_s / source.duration_s,
        )


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


MEASURES = tuple(field.name for field in fields(Score))
SOURCE_MEASURES = ("source_to_target", "source_wer", "source_wer_own_words", "source_overall")
# Shares of words are weighted by their number, so that the mean is errors over words of all pairs together.
WEIGHED_BY = {
    "wer": "words_said",
    "wer_added": "words_said",
    "wer_own_words": "words_heard",
    "wer_own_words_added": "words_heard",
    "source_wer": "words_said",
    "source_wer_own_words": "words_heard",
}


def _mean(judged: list[Judged], name: str, values: list[float | None]) -> Mean | None:
    weights = [float(getattr(pair, WEIGHED_BY[name])) for pair in judged] if name in WEIGHED_BY else None
    return bootstrap(values, weights)


def means(judged: list[Judged], way: str) -> dict[str, Mean | None]:
    """Mean of every measure of one way, over the pairs that have it."""
    return {name: _mean(judged, name, [getattr(pair.ways[way], name) for pair in judged]) for name in MEASURES}


def source_means(judged: list[Judged]) -> dict[str, Mean | None]:
    """What the sources themselves score."""
    return {name: _mean(judged, name, [getattr(pair, name) for pair in judged]) for name in SOURCE_MEASURES}


def gaps(judged: list[Judged], way: str, other: str) -> dict[str, Mean | None]:
    """Mean of every measure of one way less that of another, pair by pair."""
    differences = dict[str, Mean | None]()
    for name in MEASURES:
        twos = [(getattr(pair.ways[way], name), getattr(pair.ways[other], name)) for pair in judged]
        differences[name] = _mean(judged, name, [_less(a, b) for a, b in twos])
    return differences
