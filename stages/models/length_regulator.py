"""Length regulator: content features at 50 Hz stretched to the mel frame rate and smoothed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from configs.schema import RegulatorSizes

N_CONVS = 4


def nearest_index(n_in: int, n_out: int) -> Tensor:
    """Source frame of each target frame [n_out], int64, in float32 arithmetic.

    Exact integers would differ in places (1500 to 2583: frames 861 and 1722), and upstream's networks were trained
    with the float32 rounding.
    """
    ratio = np.float32(n_in) / np.float32(n_out)
    index = np.floor(np.arange(n_out, dtype=np.float32) * ratio).astype(np.int64)
    return torch.from_numpy(np.minimum(index, n_in - 1))


class LengthRegulator(nn.Module):
    """Content [B, T_in, in_channels] to conditions [B, max(lengths), channels].

    Group norm sees the whole sequence, so a frame depends on the total length: a chunk of a long sequence is not the
    sequence of a chunk. Rows behind an item's length are zero.
    """

    def __init__(self, sizes: RegulatorSizes) -> None:
        super().__init__()
        channels = sizes.channels
        self.content_in_proj = nn.Linear(sizes.in_channels, channels)
        layers: list[nn.Module] = []
        for _ in range(N_CONVS):
            layers += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        n_out = int(lengths.max())
        x = self.content_in_proj(x)
        x = x[:, nearest_index(x.shape[1], n_out).to(x.device)]  # (B, n_out, channels)
        x = self.model(x.transpose(1, 2)).transpose(1, 2)
        mask = torch.arange(n_out, device=x.device) < lengths.to(x.device).unsqueeze(1)
        return x * mask.unsqueeze(-1)
