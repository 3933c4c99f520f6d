"""What a preset ships becomes checkpoints from which the trainings load the same networks."""

from pathlib import Path

import torch

from configs.schema import load_preset
from stages.checkpoints import load_network
from stages.local import open_weights
from stages.models.bigvgan import BigVgan
from stages.models.dit import Dit
from training.start import starting_points
from training.train_dit import load_converter
from training.train_encoder import linear_fit
from training.train_style import load_style_encoder
from training.train_vocoder import trained_vocoder


def test_trainings_start_where_the_preset_stands(tmp_path: Path) -> None:
    preset = load_preset("tiny")
    checkpoint = open_weights(preset)
    for stem, weights in starting_points(checkpoint).items():
        torch.save({"average": weights}, tmp_path / f"{stem}.pt")
    mel = torch.randn(1, 80, 12) - 5
    vocoder = load_network(BigVgan(preset.model.bigvgan), "bigvgan", checkpoint, "cpu")
    torch.testing.assert_close(trained_vocoder(preset.model, tmp_path)(mel), vocoder(mel), atol=1e-4, rtol=1e-4)
    shipped = load_network(Dit(preset.model.dit), "cfm", checkpoint, "cpu").state_dict()
    torch.testing.assert_close(load_converter(preset.model, tmp_path).dit.state_dict(), shipped)
    load_style_encoder(preset.model.campplus, tmp_path)


def test_a_linear_fit_finds_the_layer() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(6, 3), torch.randn(20000, 6)
    weight, bias = linear_fit(x, layer(x).detach())
    torch.testing.assert_close(weight, layer.weight.detach(), atol=5e-3, rtol=0)
    torch.testing.assert_close(bias, layer.bias.detach(), atol=5e-3, rtol=0)
