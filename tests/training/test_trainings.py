"""A few steps lower each loss, a training resumes, and what is exported loads and converts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stages
from configs.schema import (
    BigvganSizes,
    CampplusSizes,
    DitSizes,
    ModelSizes,
    Preset,
    RegulatorSizes,
    WavenetSizes,
    WhisperSizes,
    load_preset,
)
from stages.models.bigvgan import BigVgan
from stages.models.mel import MelSpectrogram
from stages.models.mel_match import MelMatch
from training.batches import BAND_HZ, Batch, Disguise
from training.data import TICK
from training.export import export
from training.loop import Losses, Recipe, averaged_weights, train
from training.teacher import TEACHER_WIDTH
from training.train_dit import Converter, Student
from training.train_encoder import PhoneModel, Window, masked_bands
from training.train_listener import Heard, MelListener, VoiceListener
from training.train_style import SpeakerModel
from training.train_vocoder import Contest, SpectralLoss, prepare, prepared

SIZES = ModelSizes(
    whisper=WhisperSizes(d_model=32, n_heads=2, n_layers=1, ffn_dim=64),
    campplus=CampplusSizes(head_channels=2, init_channels=8, growth=2),
    regulator=RegulatorSizes(in_channels=32, channels=16, f0_bins=64),
    dit=DitSizes(
        hidden_dim=32,
        num_heads=2,
        depth=3,
        content_dim=16,
        wavenet=WavenetSizes(hidden_dim=32, num_layers=2),
    ),
    bigvgan=BigvganSizes(initial_channels=64, resblock_kernels=(3,), resblock_dilations=((1, 3, 5),)),
)
N_SPEAKERS = 4


def noise_batch() -> Batch:
    """Two pairs of 20 and 30 frames."""
    return Batch(
        torch.randn(2, 12, 32),
        torch.full((2, 12), 120.0),
        torch.randn(2, 80, 20),
        torch.randn(2, 18, 32),
        torch.full((2, 18), 130.0),
        torch.randn(2, 80, 30) - 5,
        torch.randn(2, 192),
    )


def trainings() -> dict[str, tuple[nn.Module, list[Losses]]]:
    """Each network with its losses over a few steps on one batch of noise."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    phones, speakers, converter = PhoneModel(SIZES.whisper), SpeakerModel(SIZES.campplus, N_SPEAKERS), Converter(SIZES)
    listener, voices, renderer = MelListener(), VoiceListener(N_SPEAKERS), Converter(SIZES)
    student = Student(
        Converter(SIZES), MelListener().requires_grad_(False), VoiceListener(N_SPEAKERS).requires_grad_(False)
    )
    vocoder, mel = BigVgan(SIZES.bigvgan), MelSpectrogram(SIZES.mel)
    prepare(vocoder)
    spectral = SpectralLoss(mel)
    contest = Contest(prepared(SIZES), mel, MelMatch(SIZES.mel, 2))
    window = Window(
        0.1 * torch.randn(2, 20 * TICK),
        torch.randint(0, 40, (2, 21)),
        torch.randn(2, 21, TEACHER_WIDTH),
        torch.ones(2, 21),
    )
    heard = Heard(
        torch.randn(2, 80, 20), torch.rand(2, 40, 20), torch.randn(2, TEACHER_WIDTH, 20), torch.ones(2, 20)
    )  # fmt: skip
    fbank, owners = torch.randn(8, 100, 80), torch.arange(8) % N_SPEAKERS
    descriptions = torch.randn(8, 81)
    batch, real, pitch = noise_batch(), 0.1 * torch.randn(2, 16 * 256), torch.full((2, 16), 120.0)
    portraits = torch.randn(8, 80, 20)
    losses_of: dict[str, tuple[nn.Module, Callable[[], Losses]]] = {
        "encoder": (phones, lambda: phones.loss(window, masked_bands(rng, 2, 80))),
        "style": (speakers, lambda: speakers.loss(fbank, owners, descriptions)),
        "dit": (converter, lambda: converter.loss(batch, rng)),
        "listener": (listener, lambda: listener.loss(heard)),
        "voice_listener": (voices, lambda: voices.loss(portraits, owners)),
        "finetune": (renderer, lambda: renderer.distance(batch)),
        "dit_student": (student, lambda: student.loss(batch)),
        "vocoder_adversarial": (contest, lambda: contest.loss(real, pitch)),
        "vocoder": (vocoder, lambda: spectral(vocoder(mel(real)), real)),
    }
    results: dict[str, tuple[nn.Module, list[Losses]]] = {}
    for name, (model, loss_of) in losses_of.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        history = []
        for _ in range(12):
            losses = loss_of()
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            history.append({key: value.detach() for key, value in losses.items()})
        results[name] = (model, history)
    return results


def test_a_few_steps_lower_every_loss() -> None:
    for name, (_, history) in trainings().items():
        totals = [float(sum(losses.values())) for losses in history]
        assert np.mean(totals[-3:]) < np.mean(totals[:3]), f"{name}: {totals}"


def test_a_training_writes_a_checkpoint_and_goes_on_from_it(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)

    def loss_of(rng: np.random.Generator) -> Losses:
        return {"size": model(torch.ones(1, 3)).square().sum()}

    train(model, loss_of, Recipe(minutes=1e-9, learning_rate=0.1, warmup_steps=1), tmp_path, "toy")
    first = torch.load(tmp_path / "toy.pt", weights_only=True)
    assert first["step"] == 1
    with torch.no_grad():
        model.weight.zero_()
    longer = Recipe(minutes=first["minutes"] + 1e-9, learning_rate=0.1, warmup_steps=1)
    train(model, loss_of, longer, tmp_path, "toy")
    second = torch.load(tmp_path / "toy.pt", weights_only=True)
    assert second["step"] == 2
    assert not torch.allclose(second["model"]["weight"], torch.zeros(3, 3), atol=0.2), "the weights were read back"
    assert averaged_weights(tmp_path, "toy").keys() == model.state_dict().keys()


def test_exported_weights_load_and_convert(tmp_path: Path) -> None:
    for name, (model, _) in trainings().items():
        torch.save({"average": model.state_dict()}, tmp_path / f"{name}.pt")
    export(SIZES, tmp_path, tmp_path / "weights")
    preset = load_preset("tiny").model_copy(update={"model": SIZES, "weights": tmp_path / "weights"})
    local = stages.load(preset)
    assert isinstance(preset, Preset)
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.standard_normal(2 * 22050)).astype(np.float32)
    converted = local.convert(noise, 22050, local.voice(noise, 22050))
    assert np.isfinite(converted).all()
    assert len(converted) == pytest.approx(len(noise), abs=1200)


def test_a_disguised_voice_moves_its_bands_and_keeps_its_level() -> None:
    """A peak at band 30 is found at the band of its frequency times the factor; flat stays flat."""
    for seed in range(40):
        disguise = Disguise(np.random.default_rng(seed))
        frames = np.full((1, 80), -8.0, np.float32)
        frames[0, 28:33] = (-6.0, -3.0, 0.0, -3.0, -6.0)
        peak = int((disguise.mel(frames) - disguise.colour)[0].argmax())
        assert BAND_HZ[peak] == pytest.approx(BAND_HZ[30] * disguise.factor, rel=0.06)
        flat = disguise.mel(np.full((1, 80), -4.0, np.float32)) - disguise.colour
        np.testing.assert_allclose(flat, -4.0, atol=1e-5)
