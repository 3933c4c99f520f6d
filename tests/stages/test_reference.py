"""What is mended in a reference recording, and what is told about it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soxr

import stages
from configs import load_preset
from stages.geometry import MODEL_RATE
from stages.local import LocalStages
from stages.pitch import median_hz, pitch_hz
from stages.reference import (
    SEARCHED_S,
    background,
    brought_into,
    check_reference,
    clipped_share,
    level_dbfs,
    prepared,
    several_speakers,
    spoken,
    without_rumble,
)
from stages.resample import to_content_rate
from stages.types import BadAudio, Samples
from tests.stages.golden import tensors
from tests.stages.sounds import noise
from webrtc.files import decode_file

SAMPLES = Path(__file__).parents[2] / "samples"
VOICES = ("angus", "clara", "martin", "vera")


@cache
def recorded(voice: str, seconds: float = 8.0) -> Samples:
    samples, rate = decode_file(SAMPLES / "voices" / f"{voice}.flac")
    assert rate == MODEL_RATE
    return samples[: int(seconds * rate)]


def silence(seconds: float, level: float = 1e-4) -> Samples:
    """Faint room noise."""
    return (level * np.random.default_rng(1).standard_normal(round(seconds * MODEL_RATE))).astype(np.float32)


def chord(seconds: float) -> Samples:
    """Four steady tones, RMS 0.1."""
    t = np.arange(round(seconds * MODEL_RATE)) / MODEL_RATE
    return np.asarray(0.07 * sum(np.sin(2 * np.pi * hz * t) for hz in (220, 277, 330, 440)), np.float32)


def progression(seconds: float) -> Samples:
    """Chords with overtones, another each second, RMS 0.1."""
    t = np.arange(MODEL_RATE) / MODEL_RATE
    bars = [
        sum(np.sin(2 * np.pi * root * step * k * t) / k for step in (1, 1.26, 1.5) for k in (1, 2, 3))
        for root in (110, 147, 98, 131)
    ]
    music = np.resize(np.concatenate(bars), round(seconds * MODEL_RATE))
    return np.asarray(0.1 * music / np.sqrt(np.mean(music**2)), np.float32)


def at_level(wave: Samples, dbfs: float) -> Samples:
    return np.asarray(wave * 10 ** ((dbfs - level_dbfs(wave)) / 20), np.float32)


def usual_pitch(wave: Samples) -> float:
    content = to_content_rate(wave)
    return median_hz(pitch_hz(content, len(content) // 320))


@pytest.fixture(scope="module")
def tiny() -> LocalStages:
    return stages.load(load_preset("tiny"))


@pytest.mark.parametrize(
    ("reference", "reason", "message"),
    [
        (noise(0.99, 16000), "too_short", "lasts 0.99 s; at least 1 s"),
        (np.zeros(32000, np.float32), "silent", "silent"),
        (noise(2.0, 16000, peak=0.0009), "silent", "silent"),
        (np.append(noise(2.0, 16000), np.float32(np.nan)), "not_finite", "1 values that are not finite"),
        (np.append(noise(2.0, 16000), np.float32(np.inf)), "not_finite", "1 values that are not finite"),
        (np.zeros(0, np.float32), "empty", "no samples"),
        (noise(4.0, 16000).reshape(2, -1), "not_mono", r"shape \(2, 32000\)"),
        (np.ones(32000, np.int16), "not_float", "type int16"),
    ],
)
def test_refused_references(reference: Samples, reason: str, message: str) -> None:
    with pytest.raises(BadAudio, match=message) as caught:
        check_reference(reference, 16000)
    assert caught.value.reason == reason


@pytest.mark.parametrize("voice", VOICES)
def test_a_good_recording_is_found_good(voice: str) -> None:
    report = prepared(recorded(voice), MODEL_RATE).report
    assert report.speech_s > 6
    assert report.warnings == []


def test_a_recording_that_is_in_order_passes_unchanged() -> None:
    reference = tensors("e2e_block_synth")["reference_wav"].numpy()
    made = prepared(reference, MODEL_RATE)
    assert np.array_equal(made.wave, reference)
    lowest, highest = load_preset("seed-vc-small").reference_dbfs
    assert brought_into(made.wave, level_dbfs(made.wave), lowest, highest) is made.wave


def test_one_voice_comes_of_all_levels(tiny: LocalStages) -> None:
    """However loud, with DC or without: the same pitch, the same spectrum, and the level of the recording is told."""
    usual = tiny.voice(recorded("vera"), MODEL_RATE)
    for level in (-19, -30, -45, -55):
        voice, _, report = tiny.make_voice(at_level(recorded("vera"), level), MODEL_RATE)
        assert report.level_dbfs == pytest.approx(level, abs=1)
        assert voice.live.pitch_hz == pytest.approx(usual.live.pitch_hz, rel=0.01)
        assert np.allclose(voice.file.mel, usual.file.mel, atol=0.05)
        assert np.allclose(voice.file.style, usual.file.style, atol=0.05)


@pytest.mark.parametrize("rate", [8000, MODEL_RATE, 48000])
def test_dc_and_rumble_are_taken_out(rate: int) -> None:
    voice = np.asarray(soxr.resample(at_level(recorded("martin"), -25), MODEL_RATE, rate), np.float32)
    t = np.arange(len(voice)) / rate
    rumble = (0.1 + 0.05 * np.sin(2 * np.pi * 12 * t)).astype(np.float32)
    clean = without_rumble(voice + rumble, rate)
    assert abs(clean.mean()) < 1e-4
    assert level_dbfs(clean - voice) < level_dbfs(voice) - 20
    steady = without_rumble(recorded("vera"), MODEL_RATE)
    assert np.array_equal(steady, recorded("vera")), "what has none is left alone"


@pytest.mark.parametrize("level", [0.0, 1e-4, 3e-3])
def test_speech_is_found_behind_a_click_and_a_long_silence(level: float) -> None:
    click = 0.9 * noise(0.01, MODEL_RATE, peak=1.0)
    late = np.concatenate([click, silence(12.0, level), recorded("vera"), silence(4.0, level)])
    made, alone = prepared(late, MODEL_RATE), prepared(recorded("vera"), MODEL_RATE)
    assert made.report.speech_s == pytest.approx(alone.report.speech_s, abs=0.3)
    assert len(made.wave) == pytest.approx(len(alone.wave), abs=0.5 * MODEL_RATE)
    assert level_dbfs(made.wave[: MODEL_RATE // 5]) > -40, "the short prompt of calls begins with the voice"


@pytest.mark.parametrize("kind", ["ring", "chord", "progression", "cough"])
def test_what_is_no_speech_is_left_out(kind: str) -> None:
    t = np.arange(4 * MODEL_RATE) / MODEL_RATE
    before: Samples = np.asarray(
        {
            "ring": 0.1 * (np.sin(2 * np.pi * 440 * t) + np.sin(2 * np.pi * 480 * t)) * (t % 3 < 1.5),
            "chord": chord(4.0),
            "progression": progression(4.0),
            "cough": np.concatenate([noise(0.3, MODEL_RATE), silence(1.0)]),
        }[kind],
        np.float32,
    )
    reference = np.concatenate([before, silence(1.0), recorded("vera")])
    made, alone = prepared(reference, MODEL_RATE), prepared(recorded("vera"), MODEL_RATE)
    assert made.report.speech_s == pytest.approx(alone.report.speech_s, abs=1.0)
    assert usual_pitch(made.wave) == pytest.approx(usual_pitch(alone.wave), rel=0.03)


def test_short_phrases_are_joined_with_short_pauses_and_no_clicks() -> None:
    voice = recorded("clara")
    phrases = [voice[start : start + MODEL_RATE] for start in range(0, 5 * MODEL_RATE, MODEL_RATE)]
    apart = np.concatenate([part for phrase in phrases for part in (silence(3.0), phrase)])
    made = prepared(apart, MODEL_RATE)
    assert made.report.speech_s == pytest.approx(4.5, abs=0.7)
    assert 4.5 * MODEL_RATE < len(made.wave) < 8.5 * MODEL_RATE
    steepest = float(np.abs(np.diff(made.wave)).max())
    assert steepest <= float(np.abs(np.diff(apart)).max()) * 1.05


def test_little_speech_is_told_and_none_too() -> None:
    short = np.concatenate([silence(6.0), recorded("vera", 3.0)])
    report = prepared(short, MODEL_RATE).report
    assert report.speech_s == pytest.approx(2.8, abs=0.4)
    assert [f"{report.speech_s:.1f} s of speech found; 10 s or more sound better"] == report.warnings
    nobody = prepared(silence(4.0, 1e-2), MODEL_RATE)
    assert "no speech was found" in nobody.report.warnings[0]
    assert len(nobody.wave) == 4 * MODEL_RATE


def test_of_a_long_recording_the_speech_is_taken_wherever_it_is() -> None:
    reference = np.concatenate([silence(35.0), recorded("vera")])
    wave, rate, warnings = spoken(reference, MODEL_RATE)
    assert warnings == [f"the reference lasts {len(reference) / MODEL_RATE:.1f} s; only its speech is used"]
    assert len(wave) / rate == pytest.approx(8.0, abs=0.7)
    noisy = noise(31.5, 8000)
    wave, rate, warnings = spoken(noisy, 8000)
    assert len(wave) == 30 * rate and "31.5 s" in warnings[0] and "30 s" in warnings[0]
    short = noisy[: 30 * 8000]
    assert spoken(short, 8000) == (short, 8000, [])
    endless = np.zeros(int((SEARCHED_S + 60) * 8000), np.float32)
    assert len(spoken(endless, 8000)[0]) == 30 * MODEL_RATE


@pytest.mark.parametrize("music", [chord(8.0), progression(8.0)], ids=["chord", "progression"])
@pytest.mark.parametrize("voice", ["vera", "martin"])
def test_music_behind_the_voice_is_told_and_the_pitch_is_the_voices(voice: str, music: Samples) -> None:
    mixed = recorded(voice) + music[: len(recorded(voice))]
    made = prepared(mixed, MODEL_RATE)
    assert made.report.music
    assert any("music" in warning for warning in made.report.warnings)
    assert usual_pitch(made.wave) == pytest.approx(usual_pitch(recorded(voice)), rel=0.06)


@pytest.mark.parametrize("voice", VOICES)
def test_other_voices_behind_the_voice_are_told_and_noise_is_no_music(voice: str) -> None:
    wave = recorded(voice)
    others = sum(np.resize(recorded(other), len(wave)) for other in VOICES if other != voice)
    snr_db, music = background(wave + at_level(np.asarray(others, np.float32), level_dbfs(wave) - 12))
    assert music and snr_db < 25
    hiss = at_level(noise(8.0, MODEL_RATE)[: len(wave)], level_dbfs(wave) - 12)
    snr_db, music = background(wave + hiss)
    assert not music and 12 < snr_db < 26


def test_noise_behind_the_voice_is_told() -> None:
    wave = recorded("clara")
    report = prepared(wave + at_level(noise(8.0, MODEL_RATE)[: len(wave)], level_dbfs(wave) - 8), MODEL_RATE).report
    assert not report.music
    assert any("over the noise" in warning for warning in report.warnings)


def test_clipping_is_measured() -> None:
    wave = recorded("martin")
    for gain in (4, 8):
        clipped = np.clip(gain * wave, -1, 1)
        truth = float((np.abs(gain * wave) >= 1).mean())
        assert clipped_share(clipped) == pytest.approx(truth, rel=0.3)
        assert clipped_share(0.3 * clipped) == pytest.approx(truth, rel=0.3), "turned down afterwards"
    assert clipped_share(wave) < 1e-4


def test_two_speakers_are_told_from_one(tiny: LocalStages) -> None:
    for voice in VOICES:
        assert not tiny.make_voice(recorded(voice), MODEL_RATE)[2].several_speakers, voice
    both = np.concatenate([recorded("clara", 6.0), recorded("martin", 6.0)])
    _, warnings, report = tiny.make_voice(both, MODEL_RATE)
    assert report.several_speakers
    assert any("more than one speaker" in warning for warning in warnings)
    generator = np.random.default_rng(0)
    one = (generator.normal(0, 0.2, (8, 16)) + np.eye(16)[0]).astype(np.float32)
    assert not several_speakers(one, np.full(8, 110.0))
    two = np.concatenate([one, np.roll(one, 1, axis=1)])
    assert several_speakers(two, np.full(16, 110.0))
    assert not several_speakers(two[6:9], np.full(3, 110.0)), "too few to tell"
