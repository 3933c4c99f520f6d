"""The recorded fixtures: tensors, and each output's stated tolerance."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
TINY_MODEL = FOLDER / "tiny_model"
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())["files"]


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return dict(load_file(FOLDER / f"{name}.safetensors"))


def assert_golden(name: str, output: str, actual: Tensor | np.ndarray) -> None:
    """`actual` equals the recorded output within the manifest's tolerance."""
    expected = tensors(name)[output]
    tolerance = MANIFEST[f"{name}.safetensors"]["outputs"][output]["tolerance_abs"]
    actual = torch.as_tensor(actual)
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= tolerance, f"{name}.{output}: error {error:.2e}, tolerance {tolerance:.0e}"
