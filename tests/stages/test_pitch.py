"""Pitch is found within a percent from 62 to 1090 Hz at any level, and silence and noise have none."""

import numpy as np
import pytest

from configs.schema import LiveSettings
from stages.blocks import BlockMaker
from stages.geometry import Geometry
from stages.pitch import pitch_hz, relative_pitch
from tests.stages.sounds import speech

RATE, N = 16000, 32000


def harmonics(hz: np.ndarray) -> np.ndarray:
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    return np.asarray(0.1 * np.sum([np.sin(k * phase) / k for k in range(1, 8)], axis=0), np.float32)


@pytest.mark.parametrize("hz", [62.0, 70.0, 110.0, 200.0, 350.0, 480.0, 500.0, 523.0, 659.0, 880.0, 1090.0])
def test_steady_tone(hz: float) -> None:
    pitch = pitch_hz(harmonics(np.full(N, hz)), N // 320 + 1)[3:-3]
    assert np.abs(pitch / hz - 1).max() < 0.01


@pytest.mark.parametrize("hz", [300.0, 587.0, 1047.0])
def test_a_whistle_has_no_other_harmonics(hz: float) -> None:
    sine = (0.2 * np.sin(2 * np.pi * hz / RATE * np.arange(N))).astype(np.float32)
    pitch = pitch_hz(sine, N // 320 + 1)[3:-3]
    assert np.abs(pitch / hz - 1).max() < 0.01


@pytest.mark.parametrize(("low", "high"), [(62, 100), (100, 200), (350, 800), (300, 1050)])
def test_glide_is_followed_without_octave_jumps(low: float, high: float) -> None:
    hz = np.geomspace(low, high, N)
    pitch = pitch_hz(harmonics(hz), N // 320 + 1)[3:-3]
    assert np.abs(np.log2(pitch / hz[::320][3 : 3 + len(pitch)])).max() < 0.05


def test_vibrato_across_500_hz_is_followed() -> None:
    hz = 500 * 2 ** (np.sin(2 * np.pi * 5.5 / RATE * np.arange(N)) / 12)
    pitch = pitch_hz(harmonics(hz), N // 320 + 1)[3:-3]
    assert np.abs(np.log2(pitch / hz[::320][3 : 3 + len(pitch)])).max() < 0.03


def test_a_high_note_is_heard_in_a_noisy_room() -> None:
    tone = harmonics(np.full(N, 784.0))
    room = np.random.default_rng(0).normal(0, tone.std() * 10 ** (-12 / 20), N).astype(np.float32)
    pitch = pitch_hz(tone + room, N // 320 + 1)[3:-3]
    assert np.mean(np.abs(pitch / 784 - 1) < 0.02) > 0.95


@pytest.mark.parametrize("quieter_db", [10, 20, 25, 40])
def test_voicing_does_not_depend_on_the_level(quieter_db: float) -> None:
    sound = speech()[: 8 * RATE]  # -20 dB of full scale
    usual = pitch_hz(sound, 401)
    quiet = pitch_hz(sound * np.float32(10 ** (-quieter_db / 20)), 401)
    assert (usual > 0).mean() > 0.4
    assert np.mean((usual > 0) == (quiet > 0)) > 0.99
    assert np.mean(np.isclose(usual, quiet, rtol=0.01)) > 0.99


def test_a_quiet_speaker_after_a_loud_one_is_voiced() -> None:
    sound = speech()[: 8 * RATE]
    after = np.concatenate([sound, sound * np.float32(10 ** (-30 / 20))])
    usual, quiet = np.split(pitch_hz(after, 800), 2)
    settled = slice(120, None)
    assert np.mean((usual > 0)[settled] == (quiet > 0)[settled]) > 0.98


def test_speech_is_not_heard_an_octave_up() -> None:
    """Nobody in the samples speaks above 500 Hz, but their formants ring there."""
    pitch = pitch_hz(speech(), len(speech()) // 320)
    assert (pitch > 500).mean() < 0.003


def test_nothing_voiced_in_silence_and_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, N).astype(np.float32)
    assert not pitch_hz(np.zeros(N, np.float32), 101).any()
    assert (pitch_hz(noise, 101) > 0).mean() < 0.1


def test_relative_pitch_does_not_tell_how_high_the_voice_is() -> None:
    melody = 1 + 0.2 * np.sin(np.arange(N) / 4000)
    low, high = (relative_pitch(harmonics(hz * melody), 101)[3:-3] for hz in (110, 190))
    assert np.abs(np.log2(low / high)).max() < 0.03
    assert np.median(low) == pytest.approx(1.0)


def test_a_wave_shorter_than_a_frame_is_unvoiced() -> None:
    assert not pitch_hz(np.ones(100, np.float32), 1).any()


def test_a_call_remembers_the_speakers_usual_pitch() -> None:
    """Two seconds low, then a high sentence: the last window alone would call the high one usual."""
    speech = harmonics(np.concatenate([np.full(4 * RATE, 100.0), np.full(2 * RATE, 150.0)]))
    windows = list(BlockMaker(Geometry.from_settings(LiveSettings())).push(speech))
    assert windows[0].usual_hz is None
    assert windows[-1].usual_hz == pytest.approx(100, rel=0.02)


def usual_while_hearing(sound: np.ndarray, block_ms: int = 120) -> np.ndarray:
    """The usual pitch that each block of a call is told relative to; 0 before it is known."""
    windows = BlockMaker(Geometry.from_settings(LiveSettings(), block_ms)).push(sound)
    return np.array([window.usual_hz or 0.0 for window in windows])


def sung(notes_hz: np.ndarray, note_s: float, rest_s: float = 0.0) -> np.ndarray:
    """Notes with edges of 50 ms, and a rest behind each."""
    n = round(note_s * RATE)
    edges = np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.05 * RATE))
    rest = np.zeros(round(rest_s * RATE), np.float32)
    notes = [harmonics(np.full(n, hz)) * edges.astype(np.float32) for hz in notes_hz]
    return np.concatenate([part for note in notes for part in (note, rest)])


SCALE = 2.0 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12)


@pytest.mark.parametrize("rest_s", [0.0, 0.2])
@pytest.mark.parametrize("notes", [220 * SCALE, 440 * SCALE[::-1], 220 * SCALE[[0, 7, 6, 4, 6, 7, 0, 5]]])
def test_no_interval_of_a_tune_is_bent_in_a_call(notes: np.ndarray, rest_s: float) -> None:
    note_s = 0.7
    usual = usual_while_hearing(sung(notes, note_s, rest_s))
    known = usual[usual > 0]
    one_note = round((note_s + rest_s) / 0.12) + 1
    bent = np.abs(np.log2(known[one_note:] / known[:-one_note]))
    assert len(known) > len(usual) - 13  # a second of voice makes it known
    assert bent.max() < 50 / 1200


@pytest.mark.parametrize(("first_hz", "second_hz"), [(110.0, 200.0), (220.0, 120.0)])
def test_another_speaker_in_a_call_is_followed(first_hz: float, second_hz: float) -> None:
    """Phrases of 1.5 s with half a second between; the second speaker's third phrase is his own already."""
    intonation = 2 ** (np.array([2, 1, 0, -1, -3]) / 12)
    first, second = (sung(hz * intonation, 0.3) for hz in (first_hz, second_hz))
    pause = np.zeros(RATE // 2, np.float32)
    usual = usual_while_hearing(np.concatenate([first, pause] * 5 + [second, pause] * 5))
    before, after = usual[: round(10 / 0.12)], usual[round((10 + 4) / 0.12) + 1 :]
    assert np.abs(12 * np.log2(before[before > 0] / first_hz)).max() < 2.5
    assert np.abs(12 * np.log2(after / second_hz)).max() < 1.5


def test_a_usual_pitch_caught_wrong_settles() -> None:
    """The first second was said in a high voice."""
    phrase, pause = sung(150 * 2 ** (np.array([2, 0, -2, 0]) / 12), 0.3), np.zeros(RATE // 2, np.float32)
    high = harmonics(np.full(RATE * 12 // 10, 190.0))
    usual = usual_while_hearing(np.concatenate([high, pause] + [phrase, pause] * 10))
    assert usual[10] == pytest.approx(190, rel=0.08), "but for what speech begins higher"
    assert abs(12 * np.log2(usual[-1] / 150)) < 1
