"""A folder of recordings becomes a preset that loads, converts, and is not the one it came from."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import stages
from configs.schema import ConfigError, load_preset
from stages.local import open_weights
from training.curves import draw
from training.finetune import collect, finetune


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two clips of a buzzing voice, one that is too short and one that is no sound."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, length_s in (("a.wav", 2.0), ("b.flac", 1.5), ("short.wav", 0.4)):
        t = np.arange(int(length_s * 22050)) / 22050
        wave = 0.2 * np.sign(np.sin(2 * np.pi * 120 * t)) + 0.02 * rng.standard_normal(len(t))
        soundfile.write(folder / name, wave, 22050)
    (folder / "notes.txt").write_text("not a recording")
    return folder


def test_a_fine_tuned_preset_loads_and_sounds_different(clips: Path, tmp_path: Path) -> None:
    to = tmp_path / "mine"
    preset = load_preset("tiny")
    checkpoint = open_weights(preset)
    args = argparse.Namespace(clips=clips, to=to, minutes=0.02, seed=0, device="cpu")
    finetune(preset, checkpoint, args)
    mine, tiny = stages.load(load_preset(to / "preset.yaml")), stages.load("tiny")
    rng = np.random.default_rng(1)
    source = (0.1 * rng.standard_normal(22050)).astype(np.float32)
    reference, rate = soundfile.read(clips / "a.wav", dtype="float32")
    waves = [local.convert(source, 22050, local.voice(reference, rate)) for local in (mine, tiny)]
    assert np.isfinite(waves[0]).all()
    assert not np.allclose(waves[0], waves[1], atol=1e-4)


def test_clips_are_collected_by_voice(clips: Path, tmp_path: Path) -> None:
    assert collect(clips, tmp_path / "work") == 2
    rows = (tmp_path / "work" / "human" / "manifest.csv").read_text().splitlines()
    assert rows[1].split(",")[1] == "own_clips"


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no recording"):
        collect(tmp_path / "empty", tmp_path / "work")


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"step": 50 * i, "minutes": i, "rate": 1e-3, "losses": {"a": 1 / i}} for i in range(1, 4)]
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw(tmp_path / "toy.jsonl", tmp_path / "toy.png")
    assert (tmp_path / "toy.png").read_bytes()[:4] == b"\x89PNG"
