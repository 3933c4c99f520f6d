"""The loop of the trainings: goes on from a preset's weights, and averages over the processes that torchrun starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import training
from training.loop import Recipe, averaged_weights, train

# Each process asks for another size, 1 and 3: one step with the mean gradient.
TOGETHER = """
import os, sys
from pathlib import Path
import torch
from torch import nn
from training.loop import Recipe, train
torch.manual_seed(0)
model = nn.Linear(1, 1, bias=False)
wanted = 1.0 + 2.0 * int(os.environ["RANK"])
loss_of = lambda rng: {"distance": wanted * model.weight.sum()}
train(model, loss_of, Recipe(minutes=1e-9, learning_rate=0.1, warmup_steps=1, clip_norm=9.0), Path(sys.argv[1]), "toy")
print("gradient", model.weight.grad.item())
"""


def test_a_training_goes_on_from_the_weights_of_a_preset(tmp_path: Path) -> None:
    """They hold the network alone: what a training has beside it starts anew, and so does its time."""
    model = nn.ModuleDict({"network": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    weight = torch.full((2, 2), 7.0)
    torch.save({"average": {"network.weight": weight, "network.bias": torch.zeros(2)}}, tmp_path / "toy.pt")
    seen: list[torch.Tensor] = []

    def loss_of(_: object) -> dict[str, torch.Tensor]:
        seen.append(model["network"].weight.detach().clone())  # type: ignore[operator]
        return {"size": model["head"](model["network"](torch.ones(1, 2))).square().sum()}

    train(model, loss_of, Recipe(minutes=1e-9, learning_rate=1e-6, warmup_steps=1), tmp_path, "toy")
    torch.testing.assert_close(seen[0], weight)
    assert torch.load(tmp_path / "toy.pt", weights_only=True)["step"] == 1
    torch.testing.assert_close(averaged_weights(tmp_path, "toy")["network.weight"], weight, atol=1e-3, rtol=0)


def test_processes_share_their_gradients(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        str(tmp_path),
    ]
    found = {"PYTHONPATH": str(Path(training.__file__).parent.parent)}  # training is not installed
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **found})
    assert ran.returncode == 0, ran.stderr
    gradients = [float(line.split()[1]) for line in ran.stdout.splitlines() if line.startswith("gradient")]
    assert gradients == pytest.approx([2.0, 2.0])
    assert torch.load(tmp_path / "toy.pt", weights_only=True)["step"] == 1
