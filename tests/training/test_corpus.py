"""The corpus as the trainings read it: packed clips, labels on the frames, windows whose labels fit their sound."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from configs.schema import WhisperSizes
from training.augment import colour, warp
from training.batches import mel_frames
from training.data import CONTENT_RATE, MODEL_RATE, TICK, Corpus, Floats, held_out, pack
from training.features import VARIANTS, Features, encode_whole, unwarped
from training.labels import PHONE_INDEX, UNKNOWN, frame_labels, read_phones
from training.teacher import TEACHER_WIDTH, Teacher, heard_whole
from training.train_encoder import PhoneModel, Windows
from training.train_listener import Excerpts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic clips of 3 s: a second of tone (called AA) between two of silence."""
    folder = tmp_path_factory.mktemp("data")
    synth = folder / "synth"
    synth.mkdir()
    rows, phones = ["path,speaker,duration_s,transcript"], []
    for i in range(2):
        wave = np.zeros(3 * MODEL_RATE, np.float32)
        wave[MODEL_RATE : 2 * MODEL_RATE] = 0.5 * np.sin(np.arange(MODEL_RATE) * 0.2)
        soundfile.write(synth / f"{i}.flac", wave, MODEL_RATE)
        rows.append(f"{i}.flac,voice{i},3.0,ah")
        phones.append({"path": f"{i}.flac", "phones": [[0, 1, "SIL"], [1, 2, "AA"], [2, 3, "SIL"]]})
    (synth / "manifest.csv").write_text("\n".join(rows) + "\n")
    (synth / "phones.jsonl").write_text("\n".join(json.dumps(row) for row in phones) + "\n")
    pack(folder)
    teacher = folder / "teacher"
    teacher.mkdir()
    is_tone = (np.arange(151) // 50 == 1)[:, None] * np.ones(TEACHER_WIDTH)
    np.save(teacher / "0.npy", np.concatenate([5 + is_tone, 7 + is_tone]).astype(np.float16))
    told = "".join(json.dumps({"path": f"synth/{i}.flac", "n": 151}) + "\n" for i in range(2))
    (teacher / "0.jsonl").write_text(told)
    return folder


def test_packed_clips_are_the_recordings(root: Path) -> None:
    corpus = Corpus(root)
    assert [clip.speaker for clip in corpus.train()] == ["voice0", "voice1"]
    assert not held_out(corpus.clips[0])
    wave = corpus.wave_16k(corpus.clips[1])
    assert len(wave) == pytest.approx(3 * CONTENT_RATE, abs=2)
    assert np.abs(wave[:CONTENT_RATE]).max() < 0.02 < 0.4 < np.abs(wave[CONTENT_RATE : 2 * CONTENT_RATE]).max()
    assert len(corpus.wave_22k(corpus.clips[0], 100, 50)) == 50


def test_labels_stand_at_multiples_of_20_ms() -> None:
    labels = frame_labels([(0.0, 0.1, "SIL"), (0.1, 0.15, "AA")], 10)
    silence, vowel = PHONE_INDEX["SIL"], PHONE_INDEX["AA"]
    assert labels.tolist() == [silence] * 5 + [vowel] * 3 + [UNKNOWN] * 2


def test_what_a_window_is_said_to_hold_fits_its_sound(root: Path) -> None:
    windows = Windows(Corpus(root), root)
    rng = np.random.default_rng(3)
    phones_agree, teacher_agrees = [], []
    for _ in range(20):
        window = windows.draw(rng, 138)
        wave, labels = window.waves.numpy(), window.labels.numpy()
        assert len(wave) == 138 * TICK
        assert len(labels) == len(window.told) == len(window.is_told) == 139
        level = np.array([np.sqrt(np.mean(wave[i * TICK : (i + 1) * TICK] ** 2)) for i in range(138)])
        known = labels[:-1] != UNKNOWN
        loud = level > 0.3 * level.max()
        phones_agree.append(np.mean((labels[:-1] == PHONE_INDEX["AA"])[known] == loud[known]))
        told, asked = window.told[:-1, 0].numpy(), window.is_told[:-1].numpy() > 0
        teacher_agrees.append(np.mean((told > 0)[asked] == loud[asked]))
        assert not window.told[window.is_told == 0].any()
    assert np.mean(phones_agree) > 0.9
    assert np.mean(teacher_agrees) > 0.9


def test_a_teachers_features_lose_the_speakers_own_mean(root: Path) -> None:
    corpus = Corpus(root)
    teacher = Teacher(root, corpus.clips)
    first, second = (teacher.told(clip, np.arange(151)) for clip in corpus.clips)
    assert np.allclose(first, second, atol=1e-3)
    assert np.abs(first.mean(axis=0)).max() < 1e-3
    assert np.allclose(first.std(axis=0), 1.0, atol=1e-2)
    assert np.array_equal(teacher.told(corpus.clips[0], np.array([-3, 400])), first[[0, -1]])


@pytest.mark.parametrize("seconds", [3.0, 15.0, 31.3])
def test_a_teacher_hears_a_long_clip_in_windows_without_gaps(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    n = int(seconds * CONTENT_RATE)

    def heard_place(_: object, wave: Floats) -> Floats:
        return np.float32(wave[0]) + np.arange(len(wave) // TICK + 1, dtype=np.float32)[:, None]

    monkeypatch.setattr("training.teacher.heard", heard_place)
    rows = heard_whole(None, np.arange(n, dtype=np.float32) / np.float32(TICK))
    assert np.array_equal(rows[:, 0], np.arange(n // TICK + 1))


def test_read_phones_takes_espeaks_lag_away(tmp_path: Path) -> None:
    (tmp_path / "synth").mkdir()
    row = {"path": "esp_us_m1/a.flac", "phones": [[0.5, 0.6, "AA"]]}
    (tmp_path / "synth" / "phones.jsonl").write_text(json.dumps(row) + "\n")
    assert read_phones(tmp_path)["synth/esp_us_m1/a.flac"][0][:2] == pytest.approx((0.49, 0.59))


def test_what_an_excerpt_is_said_to_hold_fits_its_mel(root: Path) -> None:
    clips = Corpus(root).clips
    is_tone = (np.arange(151) // 50 == 1).astype(np.float32)
    mel = np.where(np.arange(mel_frames(150)) * 256 // 22050 == 1, -1.0, -9.0)[:, None] * np.ones(80)
    content = np.tile(is_tone[:, None], (len(VARIANTS), 1, 1))
    features = [Features(clip, content, 100 * is_tone, mel.astype(np.float16)) for clip in clips]

    def reading(rows: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((rows[:, 0] > 0).long(), 40).float()

    heard = Excerpts(features, Teacher(root, clips), reading).batch(np.random.default_rng(0))
    loud = heard.mel.mean(dim=1) > -5
    assert 0.2 < loud.float().mean() < 0.8
    assert heard.is_told.all()
    for said in (heard.phones[:, 1] > 0, heard.told[:, 0] > 0):
        assert (said == loud).float().mean() > 0.97


def test_augmentation_keeps_length_and_range() -> None:
    rng = np.random.default_rng(0)
    wave = (0.3 * rng.standard_normal(16000)).astype(np.float32)
    for _ in range(20):
        heard = colour(wave, rng)
        assert heard.shape == wave.shape
        assert np.isfinite(heard).all()
        assert np.abs(heard).max() <= 1
    assert len(warp(wave, 1.25)) == pytest.approx(12800, abs=2)


def test_warped_features_return_to_the_clips_time() -> None:
    rows = np.arange(80, dtype=np.float32)[:, None] * 1.25  # a copy at factor 1.25 lasts 80 frames instead of 100
    back = unwarped(rows, 1.25, 100)[:, 0]
    assert np.abs(back - np.arange(100)).max() <= 1.25


def test_long_clips_are_encoded_in_windows_without_gaps() -> None:
    model = PhoneModel(WhisperSizes(d_model=32, n_heads=2, n_layers=1, ffn_dim=64)).eval()
    wave = (0.1 * np.random.default_rng(0).standard_normal(23 * CONTENT_RATE)).astype(np.float32)
    rows = encode_whole(model, wave)
    assert rows.shape == (23 * 50 + 1, 32)
    assert np.isfinite(rows).all()


def test_mel_frames_of_a_block() -> None:
    assert [mel_frames(ticks) for ticks in (38, 50, 250)] == [65, 86, 430]
