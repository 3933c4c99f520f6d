"""The shipped preset with sounds that are not speech, and at its seams, on the way of a call and of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import stages
from stages import gate, vad
from stages.gate import SILENCE_PEAK
from stages.geometry import HOP, MODEL_RATE, SEARCH_TICKS, TICK_16K, TICK_MODEL, TICKS_PER_S, Geometry
from stages.local import LocalStages
from stages.pitch import pitch_hz
from stages.resample import to_content_rate
from stages.types import Samples, Voice
from tests.stages.sounds import noise
from webrtc.files import decode_file

SAMPLES = Path(__file__).parents[2] / "samples"
LOUDER_DB = 6.0
"""Noise, music and square waves may come out this much louder than they went in."""
SEAM_SAMPLES = 3
AROUND_S = 0.03
CLICK = 1.5
"""A seam may stand out of its surroundings this many times as far as the 99.9th percentile of all other samples."""
DETECTOR_TICKS = 5
"""How long the speech detector of calls itself holds on, at most."""
WAYS = pytest.mark.parametrize("live", [True, False], ids=["call", "file"])


@pytest.fixture(scope="module")
def tiny() -> Iterator[LocalStages]:
    stages.set_threads(1)
    yield stages.load("tiny")


@pytest.fixture(scope="module")
def voice(tiny: LocalStages) -> Voice:
    return tiny.voice(*decode_file(SAMPLES / "voices" / "martin.flac"))


@pytest.fixture(scope="module")
def speech() -> Samples:
    return decode_file(SAMPLES / "sources" / "station.flac")[0]


def level_db(samples: Samples) -> float:
    """Root mean square in dB of full scale."""
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12))


def seconds(duration_s: float) -> NDArray[np.float64]:
    return np.arange(round(duration_s * MODEL_RATE)) / MODEL_RATE


def chords(duration_s: float) -> Samples:
    """A struck chord of four notes twice a second, at full scale."""
    t = seconds(duration_s)
    notes = np.sum([np.sin(2 * np.pi * hz * t) for hz in (220.0, 277.2, 329.6, 440.0)], axis=0) * np.exp(-3 * (t % 0.5))
    return np.asarray(notes / np.abs(notes).max(), np.float32)


def square(duration_s: float, hz: float) -> Samples:
    """A square wave between -1 and 1."""
    return np.where((seconds(duration_s) * hz) % 1 < 0.5, 1, -1).astype(np.float32)


@WAYS
def test_digital_silence_stays_digital_silence(tiny: LocalStages, voice: Voice, live: bool) -> None:
    made = tiny.convert(np.zeros(2 * MODEL_RATE, np.float32), MODEL_RATE, voice, live=live)
    assert abs(len(made) - 2 * MODEL_RATE) < HOP
    assert not made.any()


@WAYS
def test_noise_below_the_gate_is_silence(tiny: LocalStages, voice: Voice, live: bool) -> None:
    hiss = noise(1.5, MODEL_RATE, peak=SILENCE_PEAK / 3)
    assert not tiny.convert(hiss, MODEL_RATE, voice, live=live).any()


@WAYS
def test_a_pause_between_words_is_silent(tiny: LocalStages, voice: Voice, speech: Samples, live: bool) -> None:
    pause_s, word = 1.0, speech[: round(0.7 * MODEL_RATE)]
    source = np.concatenate([word, np.zeros(round(pause_s * MODEL_RATE), np.float32), word])
    made = tiny.convert(source, MODEL_RATE, voice, live=live)
    held = vad.HOLD_TICKS + DETECTOR_TICKS if live else gate.HOLD_TICKS
    ahead = vad.AHEAD_TICKS if live else gate.AHEAD_TICKS
    closed = len(word) + (held + SEARCH_TICKS + 2) * TICK_MODEL
    opens = len(word) + round(pause_s * MODEL_RATE) - (ahead + SEARCH_TICKS + 1) * TICK_MODEL
    assert not made[closed:opens].any()
    assert made[: len(word)].any() and made[opens:].any()


@WAYS
@pytest.mark.parametrize("peak_db", [-60, -40, 0])
def test_noise_stays_as_quiet_as_it_was(tiny: LocalStages, voice: Voice, live: bool, peak_db: int) -> None:
    hiss = noise(1.5, MODEL_RATE, peak=10 ** (peak_db / 20))
    made = tiny.convert(hiss, MODEL_RATE, voice, live=live)
    assert_bounded(made)
    assert level_db(made) <= level_db(hiss) + LOUDER_DB


@WAYS
@pytest.mark.parametrize(
    "source", [chords(1.5), square(1.5, 150.0), square(1.5, 3000.0), np.ones(MODEL_RATE, np.float32)],
    ids=["chords", "square_150_hz", "square_3_khz", "constant"],
)  # fmt: skip
def test_music_and_square_waves_do_not_explode(tiny: LocalStages, voice: Voice, live: bool, source: Samples) -> None:
    made = tiny.convert(source, MODEL_RATE, voice, live=live)
    assert_bounded(made)
    assert level_db(made) <= level_db(source) + LOUDER_DB


def assert_bounded(made: Samples) -> None:
    """Numbers only, nothing beyond full scale, and nothing that sticks there."""
    assert np.isfinite(made).all()
    assert np.abs(made).max() <= 1.0
    assert np.mean(np.abs(made) > 0.999) < 1e-3


@WAYS
def test_the_level_follows_the_source(tiny: LocalStages, voice: Voice, speech: Samples, live: bool) -> None:
    usual = 0.25 * speech[: round(1.5 * MODEL_RATE)]  # -26 dB of full scale, as in most calls
    quiet = usual * np.float32(10 ** (-12 / 20))
    before, after = (level_db(tiny.convert(wave, MODEL_RATE, voice, live=live)) for wave in (usual, quiet))
    assert before - after == pytest.approx(12, abs=3)


def prominence(wave: Samples) -> NDArray[np.float64]:
    """Second difference of each sample over its root mean square in the 30 ms around: what a click is heard by."""
    bend = np.diff(np.pad(wave.astype(np.float64), 1, mode="edge"), 2)
    n = round(AROUND_S * MODEL_RATE)
    around = np.convolve(bend**2, np.ones(n) / n, mode="same")
    return np.abs(bend) / np.sqrt(around + 1e-8)  # -80 dB: what is quieter than that, nobody hears


def click_ratio(wave: Samples, seams: NDArray[np.int64]) -> float:
    """How far the worst seam stands out, over the 99.9th percentile of the samples elsewhere."""
    stands_out = prominence(wave)
    at_seam = np.zeros(len(wave), bool)
    for offset in range(-SEAM_SAMPLES, SEAM_SAMPLES + 1):
        places = seams + offset
        at_seam[places[(places >= 0) & (places < len(wave))]] = True
    return float(stands_out[at_seam].max() / np.percentile(stands_out[~at_seam], 99.9))


def call_geometry(tiny: LocalStages) -> Geometry:
    """That of a call which wishes for nothing."""
    return Geometry.from_settings(tiny.preset.live, tiny.preset.live.lowest.block_ms)


def call_seams(tiny: LocalStages, n_samples: int) -> NDArray[np.int64]:
    """Where a call's cross-fades begin and end in the converted recording."""
    geometry = call_geometry(tiny)
    skipped = (geometry.sola_ticks + SEARCH_TICKS + geometry.right_ticks) * TICK_MODEL
    begins = np.arange(geometry.block_samples, n_samples + skipped, geometry.block_samples) - skipped
    seams = np.concatenate([begins, begins + geometry.sola_ticks * TICK_MODEL])
    return np.asarray(seams[(seams > 0) & (seams < n_samples)])


def file_seams(tiny: LocalStages, voice: Voice, n_samples: int) -> NDArray[np.int64]:
    """Where a file's cross-fades begin and end: chunks fill the context behind the prompt."""
    file = tiny.preset.file
    advance = (file.context_frames - voice.file.frames - file.overlap_frames) * HOP
    begins = np.arange(advance, n_samples, advance)
    seams = np.concatenate([begins, begins + file.overlap_frames * HOP])
    return np.asarray(seams[seams < n_samples])


@WAYS
def test_no_clicks_at_the_seams(tiny: LocalStages, voice: Voice, speech: Samples, live: bool) -> None:
    source = speech[: 3 * MODEL_RATE] if live else speech
    made = tiny.convert(source, MODEL_RATE, voice, live=live)
    seams = call_seams(tiny, len(made)) if live else file_seams(tiny, voice, len(made))
    assert len(seams) >= (2 * len(made) // call_geometry(tiny).block_samples - 2 if live else 2)
    assert click_ratio(made, seams) < CLICK

    jumping = made.copy()  # what a plain cut sounds like: each block ends a little off
    for seam in seams[::2]:
        jumping[seam:] += 0.2 * level_peak(made) * (1 if jumping[seam - 1] < 0 else -1)
    assert click_ratio(jumping, seams) > CLICK


def level_peak(wave: Samples) -> float:
    return float(np.abs(wave).max())


def vowel(hz: float, duration_s: float) -> Samples:
    """A note sung on an open vowel: harmonics that fall, raised where its two formants are."""
    numbers = np.arange(1, int(MODEL_RATE / 2 / hz))[:, None]
    raised = 1 + sum(8 / (1 + ((numbers * hz - centre) / 130) ** 2) for centre in (700, 1200))
    wave = np.sum(raised / numbers * np.cos(2 * np.pi * hz * numbers * seconds(duration_s)), axis=0)
    return np.asarray(0.3 * wave / np.abs(wave).max(), np.float32)


@WAYS
def test_an_offset_of_the_source_changes_nothing(tiny: LocalStages, voice: Voice, speech: Samples, live: bool) -> None:
    source = speech[: 2 * MODEL_RATE] * np.float32(0.18)  # -30 dB of full scale
    clean, offset = (tiny.convert(wave, MODEL_RATE, voice, live=live) for wave in (source, source + np.float32(0.2)))
    assert level_db(offset) == pytest.approx(level_db(clean), abs=0.3)


def test_a_melody_keeps_its_intervals_above_500_hz(tiny: LocalStages, voice: Voice) -> None:
    """Measured in the result by the product's own tracker, two octaves below the notes that were sung."""
    notes_hz, note_s = (440.0, 587.0, 659.0, 523.0), 0.6
    source = np.concatenate([vowel(hz, note_s) for hz in notes_hz])
    made = to_content_rate(tiny.convert(source, MODEL_RATE, voice))
    pitch = pitch_hz(made, len(made) // TICK_16K)
    ticks = round(note_s * TICKS_PER_S)
    heard = np.array([np.median(pitch[i * ticks + 6 : (i + 1) * ticks - 6]) for i in range(len(notes_hz))])
    assert np.abs(np.diff(np.log2(heard)) - np.diff(np.log2(notes_hz))).max() < 50 / 1200


@WAYS
def test_a_result_has_no_offset(tiny: LocalStages, voice: Voice, speech: Samples, live: bool) -> None:
    source = speech[: 3 * MODEL_RATE]
    assert abs(tiny.convert(source, MODEL_RATE, voice, live=live).mean()) < 0.002


def low_passed(wave: Samples, hz: float) -> Samples:
    """What lies below, as loud as the whole was."""
    spectrum = np.fft.rfft(wave)
    spectrum[np.fft.rfftfreq(len(wave), 1 / MODEL_RATE) > hz] = 0
    low = np.fft.irfft(spectrum, len(wave))
    return np.asarray(low * np.sqrt(np.mean(np.square(wave)) / np.mean(np.square(low))), np.float32)


def tick_db(wave: Samples) -> NDArray[np.float64]:
    """Level of each tick."""
    ticks = wave[: len(wave) // TICK_MODEL * TICK_MODEL].reshape(-1, TICK_MODEL)
    return np.asarray(10 * np.log10(np.mean(np.square(ticks, dtype=np.float64), axis=1) + 1e-12))


def share_heard(made: Samples, spoken: Samples) -> float:
    """Of the ticks in which a recording is about as loud as it gets, those in which a result is no more than 25 dB
    below its own loudest."""
    n = min(len(made), len(spoken))
    heard_db, spoken_db = tick_db(made[:n]), tick_db(spoken[:n])
    return float(np.mean(heard_db[spoken_db > spoken_db.max() - 15] > heard_db.max() - 25))


def assert_no_click(made: Samples, source: Samples) -> None:
    """Nothing stands out more than it does in the source, or than speech itself does."""
    assert prominence(made).max() <= CLICK * max(prominence(source).max(), np.sqrt(AROUND_S * MODEL_RATE) / 2)


@WAYS
def test_a_clipped_source_is_converted(tiny: LocalStages, voice: Voice, speech: Samples, live: bool) -> None:
    spoken = speech[: 2 * MODEL_RATE]
    clipped = np.clip(30 * spoken, -1, 1)
    made = tiny.convert(clipped, MODEL_RATE, voice, live=live)
    assert_bounded(made)
    assert_no_click(made, clipped)
    assert share_heard(made, spoken) > 0.9


@WAYS
def test_a_source_of_the_lowest_tones_does_not_explode(
    tiny: LocalStages, voice: Voice, speech: Samples, live: bool
) -> None:
    hum = (0.3 * np.sin(2 * np.pi * 70 * seconds(1.5))).astype(np.float32)
    for source in (low_passed(speech[: 2 * MODEL_RATE], 100.0), hum):
        made = tiny.convert(source, MODEL_RATE, voice, live=live)
        assert_bounded(made)
        assert level_db(made) <= level_db(source) + LOUDER_DB
        assert_no_click(made, source)


@WAYS
@pytest.mark.parametrize("jump_db", [-30.0, 30.0])
def test_a_jump_of_the_level_makes_no_click(
    tiny: LocalStages, voice: Voice, speech: Samples, live: bool, jump_db: float
) -> None:
    """Within a word, from one sample to the next: a microphone that is switched, a gain that is turned."""
    spoken = 0.5 * speech[: 3 * MODEL_RATE]
    gain = np.where(
        np.arange(len(spoken)) < 1.5 * MODEL_RATE, 10 ** (min(0, -jump_db) / 20), 10 ** (min(0, jump_db) / 20)
    )
    source = (spoken * gain).astype(np.float32)
    made = tiny.convert(source, MODEL_RATE, voice, live=live)
    assert_bounded(made)
    assert_no_click(made, source)
    for part in (slice(0, MODEL_RATE), slice(2 * MODEL_RATE, 3 * MODEL_RATE)):
        assert share_heard(made[part], spoken[part]) > 0.9
    assert level_db(made) <= level_db(source) + LOUDER_DB
