"""References: what is refused, what is cut or repeated, and how a voice is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import stages
from configs import load_preset
from stages.checkpoints import Checkpoint
from stages.geometry import MODEL_RATE, mel_frames, prompt_samples
from stages.local import LocalStages
from stages.resample import to_content_rate, to_model_rate
from stages.types import DiffuseRequest, EncodeRequest, Voice
from stages.voice import bands_towards, fingerprint, without_leading_silence
from tests.stages.sounds import noise, quick_preset
from webrtc.files import decode_file

SAMPLES = Path(__file__).parents[2] / "samples"


def test_what_lies_beyond_the_cut_does_not_matter(quick_stages: LocalStages) -> None:
    reference = noise(32, 8000)
    changed = reference.copy()
    changed[31 * 8000 :] = 0
    one, two = (quick_stages.voice(samples, 8000) for samples in (reference, changed))
    assert np.array_equal(one.file.style, two.file.style)
    assert np.array_equal(one.live.mel, two.live.mel)


def test_prompt_lengths(checkpoint: Checkpoint) -> None:
    preset = quick_preset()
    preset = preset.model_copy(update={"live": preset.live.model_copy(update={"prompt_ms": 2400})})
    stages = LocalStages(preset, checkpoint)
    reference = noise(1.0, MODEL_RATE)
    short, long = stages.voice(reference, MODEL_RATE), stages.voice(noise(4.0, MODEL_RATE), MODEL_RATE)
    live_frames = mel_frames(prompt_samples(2400))
    assert short.live.frames == long.live.frames == live_frames == len(short.live.condition)
    assert short.file.frames == mel_frames(MODEL_RATE)
    assert long.file.frames == mel_frames(prompt_samples(preset.file.prompt_ms)) == len(long.file.condition)
    assert short.live.style.shape == (192,)
    # A reference shorter than the live prompt is repeated: it equals the voice of its own repetition.
    repeated = stages.voice(np.tile(reference, 3), MODEL_RATE)
    assert np.array_equal(short.live.mel, repeated.live.mel)
    assert np.array_equal(short.live.style, repeated.live.style)


def test_silence_before_the_voice_is_cut() -> None:
    voice = noise(2.0, MODEL_RATE)
    late = np.concatenate([np.zeros(MODEL_RATE // 2, np.float32), voice])
    assert np.array_equal(without_leading_silence(late), voice)
    assert np.array_equal(without_leading_silence(voice), voice)
    mostly_silent = np.concatenate([np.zeros(2 * MODEL_RATE, np.float32), voice[:2000]])
    assert len(without_leading_silence(mostly_silent)) == MODEL_RATE


def test_a_voice_survives_being_stored(quick_voice: Voice) -> None:
    stored = Voice.from_bytes(quick_voice.to_bytes())
    assert stored.fingerprint == quick_voice.fingerprint
    assert stored.n_bytes == quick_voice.n_bytes > 10000
    for use in ("live", "file"):
        for name in ("mel", "condition", "style", "bands"):
            assert np.array_equal(getattr(getattr(stored, use), name), getattr(getattr(quick_voice, use), name))


@pytest.mark.parametrize("data", [b"", b"not a voice", save({"live.mel": np.zeros((80, 3), np.float32)})])
def test_other_data_are_no_voice(data: bytes) -> None:
    with pytest.raises(ValueError, match="is not a stored voice"):
        Voice.from_bytes(data)


def test_the_fingerprint_names_all_that_a_voice_depends_on(checkpoint: Checkpoint) -> None:
    preset = load_preset("seed-vc-small")
    longer = preset.model_copy(update={"live": preset.live.model_copy(update={"prompt_ms": 2000})})
    other_weights = Checkpoint(checkpoint.sizes, checkpoint.states, "another")
    marks = {
        fingerprint(preset, checkpoint),
        fingerprint(preset, other_weights),
        fingerprint(longer, checkpoint),
        fingerprint(preset.model_copy(update={"whisper_window": "cut"}), checkpoint),
        fingerprint(preset.model_copy(update={"precision": "float16"}), checkpoint),
    }
    assert len(marks) == 5
    steps = preset.model_copy(update={"live": preset.live.model_copy(update={"steps": 3})})
    assert fingerprint(steps, checkpoint) == fingerprint(preset, checkpoint)


def test_bands_bring_a_dull_mel_to_the_real_ones_mean_and_spread() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(-5, 2, (80, 400)).astype(np.float32) + np.linspace(1, -1, 80, dtype=np.float32)[:, None]
    made = 0.7 * real - 1.0
    bands = bands_towards(real, made)
    assert np.allclose(bands[:, :-1] @ made + bands[:, -1:], real, atol=0.1)
    flat = np.full((80, 10), -5, np.float32)
    assert np.isfinite(bands_towards(real[:, :10], flat)).all()


def test_bands_move_what_lies_in_the_wrong_bands() -> None:
    """A formant that the network puts two bands too low is put where the voice has it; one more frame tells nothing."""
    rng = np.random.default_rng(0)
    place = rng.uniform(20, 60, 600)
    band = np.arange(80)[:, None]
    real, made = (-8 + 5 * np.exp(-(((band - place - shift) / 6) ** 2)).astype(np.float32) for shift in (0, -2))
    bands = bands_towards(real[:, :400], made[:, :400])
    corrected = bands[:, :-1] @ made[:, 400:] + bands[:, -1:]
    before, after = (np.abs(mel - real[:, 400:]).mean() for mel in (made[:, 400:], corrected))
    assert after < 0.75 * before
    short = bands_towards(real[:, :3], made[:, :3])
    assert np.abs(short[:, :-1] @ made[:, 400:] + short[:, -1:]).max() < 30, "three frames give no wild map"


def test_a_calibrated_voice_is_nearer_to_its_reference() -> None:
    """The reference converted to itself: the louder frames' mean spectrum, with and without."""
    preset = load_preset("tiny")
    samples, rate = decode_file(SAMPLES / "voices" / "martin.flac")
    distance = {}
    for calibrated in (True, False):
        local = stages.load(preset.model_copy(update={"calibrate_voices": calibrated}))
        voice = local.voice(samples, rate)
        content = local.encode(EncodeRequest(to_content_rate(to_model_rate(samples, rate))))
        n = (len(content) - 1) * 441 // 256
        made = local.diffuse(content, DiffuseRequest(voice, n, 0, n, 0, 0, 1, 0.0, live=True))[:80]
        real = voice.file.mel
        loud = [mel[:, mel.mean(axis=0) > np.median(mel.mean(axis=0))].mean(axis=1) for mel in (made, real)]
        distance[calibrated] = float(np.abs(loud[0] - loud[1]).mean())
    assert distance[True] < 0.7 * distance[False]
