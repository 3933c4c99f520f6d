"""Batches equal singles, seeds decide the sound, and the call path works through real networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stages.checkpoints import Checkpoint
from stages.diffusion import DiffusionStage
from stages.encoder import EncoderStage, melody
from stages.geometry import CONTENT_RATE, MODEL_RATE
from stages.local import LocalStages
from stages.types import BadAudio, Content, DiffuseRequest, EncodeRequest, VocodeRequest, Voice
from stages.vocoder import VocoderStage
from tests.stages.sounds import noise, quick_preset, speech

SINGLE = DiffuseRequest("", frames=40, start=0, stop=40, seed=1, first_frame=0, steps=2, cfg_rate=0.7)


def assert_close(batch: Sequence[np.ndarray], singles: Sequence[np.ndarray]) -> None:
    assert [one.shape for one in batch] == [one.shape for one in singles]
    for one, alone in zip(batch, singles, strict=True):
        assert np.abs(one - alone).max() <= 1e-4
    loudest = [np.abs(one).max() for one in singles]
    assert min(loudest) > 1e-2  # nothing is equal for being empty


def test_encoder_batch(checkpoint: Checkpoint) -> None:
    encoder = EncoderStage(quick_preset(), checkpoint)
    lengths = (1.0, 0.5, 1.0, 0.31, 0.5, 1.0)
    # Of different loudness: each window's own peak decides what Whisper's mel keeps.
    windows = [noise(seconds, CONTENT_RATE, seed=i, peak=0.7**i) for i, seconds in enumerate(lengths)]
    requests = [EncodeRequest(window, drop_frames=i) for i, window in enumerate(windows)]
    batch = encoder(requests)
    assert_close(batch, [encoder([request])[0] for request in requests])
    assert [len(content) for content in batch] == [int(50 * s) + 1 - i for i, s in enumerate(lengths)]


def test_dropped_frames_change_nothing_in_the_others(checkpoint: Checkpoint) -> None:
    encoder, window = EncoderStage(quick_preset(), checkpoint), noise(1.0, CONTENT_RATE)
    (whole,) = encoder([EncodeRequest(window)])
    for n_dropped in (1, 20, 50):
        assert_close(encoder([EncodeRequest(window, n_dropped)]), [whole[n_dropped:]])


def test_the_pitch_of_a_windows_end_needs_little_before_it() -> None:
    sound = speech()
    same = []
    for start in range(0, len(sound) - 2 * CONTENT_RATE, CONTENT_RATE // 2):
        window = sound[start : start + 89 * 320]
        whole, end = (melody(EncodeRequest(window, n, usual_hz=150.0), 90 - n) for n in (0, 50))
        same.append(np.isclose(whole[50:], end, rtol=0.01))
    assert np.mean(same) > 0.97


def test_encoder_takes_its_longest_window(checkpoint: Checkpoint) -> None:
    (content,) = EncoderStage(quick_preset(), checkpoint)([EncodeRequest(np.zeros(480000, np.float32))])
    assert len(content) == 1500  # 30 s hold no 1501st position


def test_encoder_refuses_what_it_cannot_hold(checkpoint: Checkpoint) -> None:
    with pytest.raises(BadAudio, match="480001 samples; the encoder holds at most 480000"):
        EncoderStage(quick_preset(), checkpoint)([EncodeRequest(np.zeros(480001, np.float32))])


@pytest.fixture(scope="module")
def voices(quick_stages: LocalStages, quick_voice: Voice) -> list[Voice]:
    return [quick_voice, quick_stages.voice(noise(1.2, MODEL_RATE, seed=9), MODEL_RATE)]


def test_temperature_scales_the_noise(quick_stages: LocalStages, checkpoint: Checkpoint, voices: list[Voice]) -> None:
    content = quick_stages.encode(EncodeRequest(noise(0.4, CONTENT_RATE)))

    def mel(temperature: float, **changes: Any) -> np.ndarray:
        diffusion = DiffusionStage(quick_preset().model_copy(update={"temperature": temperature}), checkpoint)
        return diffusion([content], [dataclasses.replace(SINGLE, cfg_rate=0.0, **changes)], voices[:1])[0]

    assert np.array_equal(mel(0.0, seed=1), mel(0.0, seed=2))
    assert np.array_equal(mel(0.0, steps=1), mel(0.0, steps=4)), "trained to land in one step"
    assert not np.allclose(mel(1.0, seed=1), mel(1.0, seed=2), atol=1e-2)
    drawn = np.random.default_rng(0).standard_normal((80, 40)).astype(np.float32)
    np.testing.assert_allclose(mel(0.5, noise=drawn), mel(1.0, noise=drawn / 2), atol=1e-6)


def test_diffusion_batch(quick_stages: LocalStages, checkpoint: Checkpoint, voices: list[Voice]) -> None:
    diffusion = DiffusionStage(quick_preset(), checkpoint)
    long, short = (quick_stages.encode(EncodeRequest(noise(seconds, CONTENT_RATE))) for seconds in (0.6, 0.4))
    own_noise = np.random.default_rng(0).standard_normal((80, 40)).astype(np.float32)
    rows: list[tuple[Content, Voice, DiffuseRequest]] = [
        (long, voices[0], SINGLE),
        (short, voices[0], SINGLE),
        (long, voices[1], dataclasses.replace(SINGLE, seed=2)),
        (long, voices[0], dataclasses.replace(SINGLE, cfg_rate=0.0)),
        (long, voices[1], dataclasses.replace(SINGLE, cfg_rate=0.3, first_frame=-7)),
        (long, voices[0], dataclasses.replace(SINGLE, steps=1)),
        (long, voices[1], dataclasses.replace(SINGLE, steps=1, live=True)),
        (long, voices[0], dataclasses.replace(SINGLE, steps=1, live=True, seed=3)),
        (long, voices[0], dataclasses.replace(SINGLE, start=10, stop=25)),
        (long, voices[1], dataclasses.replace(SINGLE, noise=own_noise)),
        (short, voices[1], dataclasses.replace(SINGLE, cfg_rate=0.0)),
    ]
    contents, owners, requests = (list(column) for column in zip(*rows, strict=True))
    batch = diffusion(contents, requests, owners)
    assert_close(batch, [diffusion([c], [r], [v])[0] for c, v, r in rows])
    assert batch[8].shape == (80, 15)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("last_frames", [1, 12, 40])
def test_the_last_frames_alone_equal_those_of_all(
    quick_stages: LocalStages, voices: list[Voice], steps: int, last_frames: int
) -> None:
    content = quick_stages.encode(EncodeRequest(noise(0.6, CONTENT_RATE)))
    request = dataclasses.replace(SINGLE, voice=voices[0], steps=steps)
    alone = quick_stages.diffuse(content, dataclasses.replace(request, last_frames=last_frames))
    assert_close([alone], [quick_stages.diffuse(content, request)[:, -last_frames:]])


def test_vocoder_batch(checkpoint: Checkpoint) -> None:
    vocoder, generator = VocoderStage(quick_preset(), checkpoint), np.random.default_rng(0)
    mels = [generator.normal(-3, 2, (80, n)).astype(np.float32) for n in (20, 31, 20, 31, 12)]
    requests = [VocodeRequest(), VocodeRequest(12), VocodeRequest(live=True), VocodeRequest(), VocodeRequest(12)]
    batch = vocoder(mels, requests)
    assert_close(batch, [vocoder([mel], [request])[0] for mel, request in zip(mels, requests, strict=True)])
    assert [len(wave) // 256 for wave in batch] == [20, 12, 20, 31, 12]


@pytest.mark.parametrize("live", [False, True])
def test_the_seed_decides_the_sound(quick_stages: LocalStages, quick_voice: Voice, live: bool) -> None:
    source = noise(0.6, 16000)
    first, again, other, high = (
        quick_stages.convert(source, 16000, quick_voice, seed, live=live) for seed in (7, 7, 8, 7 + 2**63)
    )
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - high).max() > 1e-3


def test_voices_differ(quick_stages: LocalStages, voices: list[Voice]) -> None:
    source = noise(0.4, 16000)
    one, two = (quick_stages.convert(source, 16000, voice) for voice in voices)
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros((2, 100), np.float32), "not_mono"),
        (np.zeros(100, np.int16), "not_float"),
        (np.array([0.1, np.nan, np.inf], np.float32), "not_finite"),
    ],
)
def test_bad_sources(quick_stages: LocalStages, quick_voice: Voice, samples: np.ndarray, reason: str) -> None:
    with pytest.raises(BadAudio) as caught:
        quick_stages.convert(samples, 16000, quick_voice)
    assert caught.value.reason == reason
